// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"iter"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// containerKind is what part a container has in its pod.
type containerKind int

const (
	// kindMain: the pod is for it. Its end is the pod's.
	kindMain containerKind = iota
	// kindInit runs to its end before what follows it begins.
	kindInit
	// kindSidecar is an init container that stays: what follows it begins when it is up.
	kindSidecar
	// kindEphemeral was put into the running pod by hand, and runs once.
	kindEphemeral
)

// inOrder: what follows a container of this kind waits for it.
func (k containerKind) inOrder() bool { return k == kindInit || k == kindSidecar }

func kindOfInit(c *corev1.Container) containerKind {
	if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
		return kindSidecar
	}
	return kindInit
}

// specified is a container as the pod has it.
type specified struct {
	*corev1.Container
	kind containerKind
	// field names it in messages.
	field string
	// target is the container whose processes an ephemeral one shares.
	target string
}

// containersOf are all containers of a pod in the order in which they begin: init
// containers and sidecars, main containers, ephemeral ones. Ephemeral ones are copies.
func containersOf(pod *corev1.Pod) iter.Seq[specified] {
	return func(yield func(specified) bool) {
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			if !yield(specified{Container: c, kind: kindOfInit(c), field: fmt.Sprintf("spec.initContainers[%d]", i)}) {
				return
			}
		}
		for i := range pod.Spec.Containers {
			if !yield(specified{Container: &pod.Spec.Containers[i], field: fmt.Sprintf("spec.containers[%d]", i)}) {
				return
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			e := &pod.Spec.EphemeralContainers[i]
			c := corev1.Container(e.EphemeralContainerCommon)
			if !yield(specified{Container: &c, kind: kindEphemeral, field: fmt.Sprintf("spec.ephemeralContainers[%d]", i), target: e.TargetContainerName}) {
				return
			}
		}
	}
}

// containerNamed finds a container of the pod, of any kind; nil when there is none.
func containerNamed(pod *corev1.Pod, name string) *corev1.Container {
	for c := range containersOf(pod) {
		if c.Name == name {
			return c.Container
		}
	}
	return nil
}

// restarts says whether a run that ended so is followed by another, as long as the pod
// goes on. A container's own policy and rules come before the pod's:
// https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#individual-container-restart-policy-and-rules
func restarts(policy corev1.RestartPolicy, p *containerPlan, t *termination) bool {
	switch p.kind {
	case kindEphemeral:
		return false
	case kindInit:
		if t.ExitCode == 0 {
			return false
		}
	case kindMain, kindSidecar: // a sidecar is one by its own policy, Always
	}
	own := p.spec.RestartPolicy
	if t.Again { // rules are about runs that ended by themselves
		if own != nil && *own != corev1.ContainerRestartPolicyNever || own == nil && policy != corev1.RestartPolicyNever {
			return true
		}
	}
	if own != nil {
		for i := range p.spec.RestartPolicyRules {
			if matches(&p.spec.RestartPolicyRules[i], t.ExitCode) {
				return true
			}
		}
		policy = corev1.RestartPolicy(*own)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return t.ExitCode != 0
	default:
		return true
	}
}

// matches says whether a rule is about an exit code. The only action that is accepted is
// to restart the container: see unsupported.
func matches(r *corev1.ContainerRestartRule, code int32) bool {
	if r.ExitCodes == nil {
		return false
	}
	in := slices.Contains(r.ExitCodes.Values, code)
	if r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpNotIn {
		return !in
	}
	return in
}

// again says whether the ended run of a container is followed by another, now that its
// pod goes on.
func again(s *state, i int) bool {
	c, p := s.containers[i], &s.plan.containers[i]
	if p.kind == kindInit && c.exit.ExitCode == 0 {
		// In a new machine it runs once more: volumes, and what else it prepared, went
		// with the machine before.
		return s.machine.step == machineNone && !s.machine.adopt
	}
	return restarts(s.plan.restartPolicy, p, c.exit)
}

// progress counts the leading init containers and sidecars that need not be waited for
// any more: they have done their work, or were up once, in this machine.
func progress(s *state) int {
	n := s.machine.passed
	for ; n < len(s.containers) && s.plan.containers[n].kind.inOrder(); n++ {
		c := s.containers[n]
		if s.plan.containers[n].kind == kindSidecar {
			if !up(s, n) {
				break
			}
		} else if c.step != containerExited || c.exit.ExitCode != 0 {
			break
		}
	}
	return n
}

// inits is how many containers are in order: init containers and sidecars.
func (p *plan) inits() int {
	n := 0
	for n < len(p.containers) && p.containers[n].kind.inOrder() {
		n++
	}
	return n
}

// runnable says whether the order of the pod lets a container run that has no run.
func runnable(s *state, i, passed int) bool {
	switch s.plan.containers[i].kind {
	case kindInit, kindSidecar:
		return i <= passed
	case kindEphemeral:
		reason, _ := unfit(s, i)
		return reason == "" && s.machine.step == machineHeld && s.images[s.plan.containers[i].image].image != nil
	default:
		return passed >= s.plan.inits()
	}
}

// ReasonImageNotInMachine is the reason of an ephemeral container that waits in vain.
const ReasonImageNotInMachine = "ImageNotInMachine"

// unfit says why an ephemeral container can never run in the pod's machine; empty when it
// may, or when that is not known yet.
func unfit(s *state, i int) (reason, message string) {
	p := &s.plan.containers[i]
	if p.kind != kindEphemeral {
		return "", ""
	}
	if p.refused != "" {
		return ReasonUnsupportedField, p.refused
	}
	img := s.images[p.image].image
	if img == nil || s.machine.step != machineHeld || slices.Contains(s.machine.slots, img.Digest) {
		return "", ""
	}
	return ReasonImageNotInMachine, fmt.Sprintf("image %q is not in the pod's machine, which got its images when it was made and takes no other while it runs; "+
		"use an image of the pod (%s), or debug a copy of the pod: kubectl debug --copy-to", p.spec.Image, quoted(s.plan.refs()))
}

func quoted(list []string) string {
	out := ""
	for i, s := range list {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%q", s)
	}
	return out
}

// hasPostStart and hasPreStop say whether a container has the hook.
func hasPostStart(c *corev1.Container) bool {
	return c.Lifecycle != nil && c.Lifecycle.PostStart != nil
}

func hasPreStop(c *corev1.Container) bool { return c.Lifecycle != nil && c.Lifecycle.PreStop != nil }

// settling: the run began, and its postStart hook is not over.
func settling(s *state, i int) bool {
	c := s.containers[i]
	return c.runs() && hasPostStart(s.plan.containers[i].spec) && c.postStart != hookOver
}

// up: the run is what others may rely on: its hook and its startup probe are over.
func up(s *state, i int) bool {
	c := s.containers[i]
	return !settling(s, i) && c.isStarted()
}

// settled: the pod has nothing to wait for any more: an init container failed for good, or
// every main container ended for good, and its output is on disk. What else runs is to end.
func settled(s *state, now time.Time) bool {
	if s.plan == nil || len(s.containers) == 0 {
		return false
	}
	mains := true
	for i, c := range s.containers {
		p := &s.plan.containers[i]
		over := c.step == containerExited && !restarts(s.plan.restartPolicy, p, c.exit) && drainedOrLate(c, now)
		switch p.kind {
		case kindInit:
			if over && c.exit.ExitCode != 0 {
				return true
			}
		case kindMain:
			mains = mains && over
		default:
		}
	}
	return mains
}

// podOver: it is settled, and nothing of it runs, or may run, any more.
func podOver(s *state, now time.Time) bool { return settled(s, now) && quiet(s, now) }

func quiet(s *state, now time.Time) bool {
	for _, c := range s.containers {
		switch c.step {
		case containerWaiting:
		case containerExited:
			if !drainedOrLate(c, now) {
				return false
			}
		default:
			return false
		}
	}
	return true
}
