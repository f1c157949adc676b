// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of containers and pods, as the kubelet and containerd have them.
const (
	reasonContainerCreating = "ContainerCreating"
	reasonPodInitializing   = "PodInitializing"
	reasonPostStart         = "PostStartHookError"
	reasonCrashLoop         = "CrashLoopBackOff"
	reasonCompleted         = "Completed"
	reasonError             = "Error"
	reasonStartError        = "StartError"
	reasonConfigError       = "CreateContainerConfigError"
	reasonCreateError       = "CreateContainerError"
	reasonRunError          = "RunContainerError"
	reasonErrImagePull      = "ErrImagePull"
	reasonImageBackOff      = "ImagePullBackOff"
	reasonInvalidImage      = "InvalidImageName"
	reasonImageNeverPull    = "ErrImageNeverPull"
	reasonNotReady          = "ContainersNotReady"
	reasonNotInitialized    = "ContainersNotInitialized"
	reasonPodCompleted      = "PodCompleted"
	reasonPodFailed         = "PodFailed"
	reasonGatesNotReady     = "ReadinessGatesNotReady"
	reasonStatusUnknown     = "ContainerStatusUnknown"

	// reasonMachineDied ends the containers of a machine that ended by itself.
	reasonMachineDied = "MachineDied"
	// reasonMachineStuck ends the containers of a machine that does not answer.
	reasonMachineStuck = "MachineStuck"
)

// containerIDScheme is the runtime's name in container ids.
const containerIDScheme = "firkin://"

// podStatus computes the pod's status from the worker's state. It is pure. previous
// is the status that was published before: transition times are taken from it, and
// what it says is never taken back.
func podStatus(s *state, previous *corev1.PodStatus, nodeIP string, now time.Time) corev1.PodStatus {
	st := corev1.PodStatus{
		QOSClass:           s.pod.Status.QOSClass,
		NominatedNodeName:  s.pod.Status.NominatedNodeName,
		StartTime:          &metav1.Time{Time: s.startTime.Truncate(time.Second)},
		ObservedGeneration: s.pod.Generation,
	}
	// Until there is a network of pods, a pod is reached at its node's addresses.
	reached := s.machine.generation > 0 && s.machine.path != ""
	for i, ip := range nodeAddresses(nodeIP) {
		if i == 0 {
			st.HostIP = ip
			if reached {
				st.PodIP = ip
			}
		}
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: ip})
		if reached {
			st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	if s.refusal != nil {
		st.Phase, st.Reason, st.Message = corev1.PodFailed, s.refusal.Reason, s.refusal.Message
		if order(previous.Phase) >= order(corev1.PodFailed) { // it was over before
			st.Phase, st.Reason, st.Message = previous.Phase, previous.Reason, previous.Message
		}
		st.Conditions = keptConditions(s.pod, previous)
		keepRefused(&st, previous, now)
		return st
	}
	if s.plan == nil { // it waits for its template, or was deleted meanwhile
		for c := range containersOf(s.pod) {
			cs := corev1.ContainerStatus{Name: c.Name, Image: c.Image, State: corev1.ContainerState{Waiting: waitingState(creating(s.pod), s.waiting.text())}}
			if c.kind != kindEphemeral {
				cs.Started = new(bool)
			}
			addStatus(&st, c.kind, cs)
		}
	}
	for i, c := range s.containers {
		addStatus(&st, s.plan.containers[i].kind, containerStatus(s, i, c, now))
	}
	boundMessages(&st)
	st.Phase = phase(s, &st, now)
	if over := order(corev1.PodFailed); order(previous.Phase) > order(st.Phase) || order(previous.Phase) == over && order(st.Phase) == over {
		st.Phase = previous.Phase
	}
	if s.machine.reason != "" && st.Phase == corev1.PodPending {
		st.Reason, st.Message = s.machine.reason, s.machine.message
	}
	if u := s.unrecorded; u != nil && st.Phase == corev1.PodPending {
		st.Reason, st.Message = eventUnrecorded, u.message
	}
	if s.waiting != nil && st.Phase == corev1.PodPending {
		st.Reason, st.Message = s.waiting.reason, s.waiting.message
	}
	if k := s.kill; k != nil && !k.settled && st.Phase == corev1.PodFailed {
		st.Reason, st.Message = k.reason, k.message
	}
	st.Conditions = conditions(s, &st, previous, now)
	return st
}

// keepRefused takes over what was said of a pod before it was refused: it may have waited, or have run
// under an earlier process that left no record of it.
func keepRefused(st, previous *corev1.PodStatus, now time.Time) {
	for _, c := range previous.Conditions {
		if !ours(c.Type) {
			continue
		}
		if (c.Type == corev1.PodReady || c.Type == corev1.ContainersReady) && c.Status != corev1.ConditionFalse {
			c.Status, c.Reason, c.Message, c.LastTransitionTime = corev1.ConditionFalse, reasonPodFailed, "", metav1.NewTime(now.Truncate(time.Second))
		}
		st.Conditions = append(st.Conditions, c)
	}
	kept := func(list []corev1.ContainerStatus) []corev1.ContainerStatus {
		list = slices.Clone(list)
		for i := range list {
			c := &list[i]
			if c.State.Running != nil {
				c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
					ExitCode: 137, Reason: reasonStatusUnknown, Message: "The container could not be located when the pod was refused",
					StartedAt: c.State.Running.StartedAt, FinishedAt: metav1.NewTime(now), ContainerID: c.ContainerID,
				}}
				c.Started, c.Ready = new(bool), false
			}
		}
		return list
	}
	st.InitContainerStatuses, st.ContainerStatuses = kept(previous.InitContainerStatuses), kept(previous.ContainerStatuses)
	st.EphemeralContainerStatuses = kept(previous.EphemeralContainerStatuses)
}

func addStatus(st *corev1.PodStatus, kind containerKind, c corev1.ContainerStatus) {
	switch kind {
	case kindInit, kindSidecar:
		st.InitContainerStatuses = append(st.InitContainerStatuses, c)
	case kindEphemeral:
		st.EphemeralContainerStatuses = append(st.EphemeralContainerStatuses, c)
	default:
		st.ContainerStatuses = append(st.ContainerStatuses, c)
	}
}

func order(p corev1.PodPhase) int {
	switch p {
	case corev1.PodRunning:
		return 1
	case corev1.PodSucceeded, corev1.PodFailed:
		return 2
	default:
		return 0
	}
}

// phase follows the kubelet's rules for the phase of a pod. Ephemeral containers do not
// count, and sidecars only until they were up once.
func phase(s *state, st *corev1.PodStatus, now time.Time) corev1.PodPhase {
	// A run that nobody saw end, as when a node comes back after the grace period, ends with its machine:
	// until that is gone the pod is not over.
	over := s.stage == stageFinished && !slices.ContainsFunc(s.containers, (*containerState).runs) || podOver(s, now)
	down := s.stage >= stageTerminating && s.machine.step == machineNone && !s.machine.adopt
	var waiting, running, failed int
	for i := range st.ContainerStatuses {
		c := &st.ContainerStatuses[i]
		switch {
		case c.State.Running != nil:
			running++
		case c.State.Terminated != nil:
			if c.State.Terminated.ExitCode != 0 {
				failed++
			}
		case c.LastTerminationState.Terminated == nil:
			waiting++
		}
	}
	for i, c := range s.containers {
		if p := &s.plan.containers[i]; p.kind == kindInit && c.step == containerExited && c.exit.ExitCode != 0 && !restarts(s.plan.restartPolicy, p, c.exit) {
			failed++
		}
	}
	if s.kill != nil && !s.kill.settled {
		failed++
	}
	switch {
	case over && failed == 0, down && failed == 0 && waiting == 0 && running == 0:
		return corev1.PodSucceeded
	case over, down:
		return corev1.PodFailed
	case waiting > 0, s.plan == nil, progress(s) < s.plan.inits():
		return corev1.PodPending
	default:
		return corev1.PodRunning
	}
}

// ours are the conditions that this node writes; all others are kept.
func ours(t corev1.PodConditionType) bool {
	switch t {
	case corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady, corev1.PodReadyToStartContainers, corev1.PodResizePending, corev1.PodResizeInProgress:
		return true
	default:
		return false
	}
}

func keptConditions(pod *corev1.Pod, previous *corev1.PodStatus) []corev1.PodCondition {
	var kept []corev1.PodCondition
	seen := map[corev1.PodConditionType]bool{}
	for _, list := range [][]corev1.PodCondition{pod.Status.Conditions, previous.Conditions} {
		for _, c := range list {
			if !ours(c.Type) && !seen[c.Type] {
				seen[c.Type] = true
				kept = append(kept, c)
			}
		}
	}
	return kept
}

// mergeConditions takes the conditions of others from the API, and the node's own from its status.
func mergeConditions(api, status []corev1.PodCondition) []corev1.PodCondition {
	var out []corev1.PodCondition
	disrupted := false
	for _, c := range api {
		if !ours(c.Type) {
			out = append(out, c)
			disrupted = disrupted || c.Type == corev1.DisruptionTarget
		}
	}
	for _, c := range status {
		if ours(c.Type) || c.Type == corev1.DisruptionTarget && !disrupted {
			out = append(out, c)
		}
	}
	return out
}

func conditions(s *state, st *corev1.PodStatus, previous *corev1.PodStatus, now time.Time) []corev1.PodCondition {
	list := keptConditions(s.pod, previous)
	set := func(t corev1.PodConditionType, ok bool, reason, message string) {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message,
			LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)), ObservedGeneration: s.pod.Generation}
		if ok {
			c.Status = corev1.ConditionTrue
		}
		for _, old := range previous.Conditions {
			if old.Type == t && old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
		list = append(list, c)
	}
	if k := s.kill; k != nil && k.disrupts() && !slices.ContainsFunc(list, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }) {
		set(corev1.DisruptionTarget, true, corev1.PodReasonTerminationByKubelet, k.message)
	}
	over := ""
	switch st.Phase {
	case corev1.PodSucceeded:
		over = reasonPodCompleted
	case corev1.PodFailed:
		over = reasonPodFailed
	default:
	}
	var unready, incomplete []string
	for i := range st.InitContainerStatuses {
		c := &st.InitContainerStatuses[i]
		sidecar := kindOfInit(&s.pod.Spec.InitContainers[i]) == kindSidecar
		if sidecar && !c.Ready {
			unready = append(unready, c.Name)
		}
		if !sidecar && !c.Ready || sidecar && (s.plan == nil || i >= progress(s)) {
			incomplete = append(incomplete, c.Name)
		}
	}
	for i := range st.ContainerStatuses {
		c := &st.ContainerStatuses[i]
		if !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	ready, reason, message := len(unready) == 0, "", ""
	switch {
	case over != "":
		ready, reason = false, over
	case !ready:
		reason, message = reasonNotReady, fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	}
	set(corev1.PodReadyToStartContainers, (s.machine.step == machineHeld || s.machine.adopt) && s.machine.prepared, "", "")
	switch {
	case over == reasonPodCompleted:
		set(corev1.PodInitialized, true, over, "")
	case len(incomplete) > 0 && (over == "" || !wasTrue(previous, corev1.PodInitialized)):
		set(corev1.PodInitialized, false, reasonNotInitialized, fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(incomplete, " ")))
	default:
		set(corev1.PodInitialized, true, "", "")
	}
	set(corev1.ContainersReady, ready, reason, message)
	if gates := closedGates(s.pod); ready && len(gates) > 0 {
		ready, reason, message = false, reasonGatesNotReady, strings.Join(gates, "; ")
	}
	set(corev1.PodReady, ready, reason, message)
	if over == "" {
		for _, c := range resizeConditions(s) {
			set(c.Type, true, c.Reason, c.Message)
		}
	}
	return list
}

func wasTrue(previous *corev1.PodStatus, t corev1.PodConditionType) bool {
	for _, c := range previous.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// closedGates are the readiness gates whose condition is not True.
func closedGates(pod *corev1.Pod) []string {
	var closed []string
	for _, g := range pod.Spec.ReadinessGates {
		status := corev1.ConditionStatus("")
		for _, c := range pod.Status.Conditions {
			if c.Type == g.ConditionType {
				status = c.Status
			}
		}
		switch status {
		case corev1.ConditionTrue:
		case "":
			closed = append(closed, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		default:
			closed = append(closed, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, status))
		}
	}
	return closed
}
