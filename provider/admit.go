// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/clock"
)

// admit makes the plan of the pod, or refuses it. It runs first in the loop, and again
// while the pod waits for its template.
func (w *worker) admit() {
	s := &w.s
	if s.plan != nil || s.refusal != nil {
		return // from a record
	}
	if r := w.env.admission.admit(w.start, s.pod); r != nil {
		w.refuse(r)
		return
	}
	p, refused, wait := w.env.translate(s.pod)
	if wait != nil {
		w.await(wait)
		return
	}
	s.waiting = nil
	if refused != nil {
		w.refuse(refused)
		return
	}
	s.plan = p
	s.images = map[imageKey]*imageState{}
	for _, key := range imagesOf(s) {
		s.images[key] = &imageState{}
	}
	for _, c := range p.containers {
		s.containers = append(s.containers, newContainer(s.pod, c, time.Now()))
	}
	w.dirty = true
	w.mark.begin(w.env.observer, s.pod, s.startTime)
}

// refuse ends the pod before it began.
func (w *worker) refuse(r *refusal) {
	w.s.refusal, w.s.waiting = r, nil
	w.env.admission.forget(w.s.pod.UID)
	w.env.events.pod(w.s.pod, true, r.Reason, r.Message)
	w.tellRefused(r.Reason, r.Message)
	w.log.Info("Refusing pod", "reason", r.Reason, "message", r.Message)
	w.dirty = true
}

// tellRefused tells whoever remembers it that the pod did not get what it asks for.
func (w *worker) tellRefused(reason, message string) {
	if w.env.refused != nil {
		w.env.refused(w.s.pod, reason, message)
	}
}

// await notes what the pod waits for, and tells its owner once. What is only not known
// yet is told when it lasts.
func (w *worker) await(wait *templateWait) {
	before := w.s.waiting
	if before != nil {
		wait.failures = before.failures
	}
	wait.failures++
	wait.retryAt = time.Now().Add(retryDelay(wait.failures, templateRetryFirst, templateRetryMax))
	w.s.waiting = wait
	again := before != nil && before.reason == wait.reason && before.message == wait.message
	if wait.reason == ReasonTemplateUnknown && wait.failures != unknownTries || wait.reason != ReasonTemplateUnknown && again {
		return
	}
	w.log.Info("Pod waits for its template", "reason", wait.reason, "message", wait.message)
	w.tellRefused(wait.reason, wait.message)
	w.env.events.pod(w.s.pod, true, wait.reason, wait.message)
}

// unknownTries is how often a template is looked for in vain until it is told that the
// API server has not listed them: a node that has just started waits less.
const unknownTries = 3

// templateChanged lets the pods that wait for a template look again. Without a name it
// is about all.
func (p *Provider) templateChanged(namespace, name string) {
	for _, w := range p.all() {
		pod := w.published.Load()
		if name != "" && (pod.Namespace != namespace || templateName(pod) != name) {
			continue
		}
		w.post(func(s *state) {
			if s.waiting != nil {
				s.waiting.retryAt = time.Time{}
			}
		})
	}
}

// newState is that of a pod that this node has not had before.
func newState(pod *corev1.Pod, now time.Time) state {
	s := state{pod: pod, startTime: now}
	if t := pod.Status.StartTime; t != nil { // an earlier process got as far as reporting it
		s.startTime = clock.Anchor(t.Time, now)
	}
	return s
}

// newContainer is a container that this node has no record of. What the API says that ran
// counts all the same: each run has an id of its own, restarts are not forgotten, and what
// runs once only does not run again.
func newContainer(pod *corev1.Pod, p containerPlan, now time.Time) *containerState {
	c := &containerState{name: p.spec.Name}
	st := &pod.Status
	for _, s := range slices.Concat(st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses) {
		if s.Name != c.name || s.ContainerID == "" {
			continue
		}
		last := &termination{Attempt: int(s.RestartCount), ID: strings.TrimPrefix(s.ContainerID, containerIDScheme), ExitCode: 137, Reason: reasonStatusUnknown,
			Message: "The node has lost its record of the container", StartedAt: now, FinishedAt: now}
		switch {
		case s.State.Terminated != nil:
			*last = terminationIn(s.State.Terminated, last.Attempt)
		case s.State.Running != nil:
			last.StartedAt = s.State.Running.StartedAt.Time
		}
		if p.kind == kindEphemeral || p.kind == kindMain && s.State.Terminated != nil && !restarts(pod.Spec.RestartPolicy, &p, last) {
			c.attempt, c.step, c.exit, c.drained, c.everStarted = last.Attempt, containerExited, last, true, true
			return c
		}
		c.attempt, c.last = last.Attempt+1, last
	}
	return c
}

// terminationIn reads how a run ended from what the API has.
func terminationIn(t *corev1.ContainerStateTerminated, attempt int) termination {
	return termination{Attempt: attempt, ID: strings.TrimPrefix(t.ContainerID, containerIDScheme), ExitCode: t.ExitCode, Signal: t.Signal,
		Reason: t.Reason, Message: t.Message, StartedAt: t.StartedAt.Time, FinishedAt: t.FinishedAt.Time}
}

// milestones are the times of a pod's start, for the observer. Only a pod that this
// process starts from nothing has them.
type milestones struct {
	observer Observer
	path     string
	// waiting are durations that wait for the path to be known.
	waiting []phaseTime

	began, imaged, running time.Time
	prepared               time.Time
	// resumed is when the first machine began to be restored, resumed or booted.
	resumed           time.Time
	started, reported bool
	// heard: some output came.
	heard bool
}

type phaseTime struct {
	phase Phase
	took  time.Duration
}

func (m *milestones) begin(o Observer, pod *corev1.Pod, seen time.Time) {
	if o == nil {
		return
	}
	m.observer, m.began = o, seen
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue {
			// The API keeps whole seconds: this is up to a second too long.
			m.observe(PhaseScheduleSeen, max(0, seen.Sub(c.LastTransitionTime.Time)))
		}
	}
}

func (m *milestones) observe(p Phase, took time.Duration) {
	if m.observer == nil {
		return
	}
	if m.path == "" {
		m.waiting = append(m.waiting, phaseTime{p, took})
		return
	}
	m.observer.ObservePhase(p, m.path, took)
}

// know sets the path and tells what waited for it.
func (m *milestones) know(path string) {
	if m.observer == nil || m.path != "" {
		return
	}
	m.path = path
	for _, w := range m.waiting {
		m.observer.ObservePhase(w.phase, path, w.took)
	}
	m.waiting = nil
}
