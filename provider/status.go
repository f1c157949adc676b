// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of containers and pods, as the kubelet and containerd have them.
const (
	reasonContainerCreating = "ContainerCreating"
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
	reasonPodCompleted      = "PodCompleted"
	reasonPodFailed         = "PodFailed"
	reasonGatesNotReady     = "ReadinessGatesNotReady"
	reasonStatusUnknown     = "ContainerStatusUnknown"

	// reasonMachineDied ends the containers of a machine that ended by itself.
	reasonMachineDied = "MachineDied"
	// reasonMachineSilent ends the containers of a machine whose agent does not answer.
	reasonMachineSilent = "MachineUnresponsive"
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
		st.Conditions = keptConditions(s.pod, previous)
		return st
	}
	if s.plan == nil { // it waits for its template, or was deleted meanwhile
		no := false
		for i := range s.pod.Spec.Containers {
			c := &s.pod.Spec.Containers[i]
			st.ContainerStatuses = append(st.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, Image: c.Image, Started: &no,
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reasonContainerCreating, Message: s.waiting.text()}}})
		}
	}
	for i, c := range s.containers {
		st.ContainerStatuses = append(st.ContainerStatuses, containerStatus(s, i, c, now))
	}
	st.Phase = phase(s, st.ContainerStatuses, now)
	if order(previous.Phase) > order(st.Phase) {
		st.Phase = previous.Phase
	}
	if s.machine.reason != "" && st.Phase == corev1.PodPending {
		st.Reason, st.Message = s.machine.reason, s.machine.message
	}
	if s.waiting != nil && st.Phase == corev1.PodPending {
		st.Reason, st.Message = s.waiting.reason, s.waiting.message
	}
	st.Conditions = conditions(s, &st, previous, now)
	return st
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

// phase follows the kubelet's rules for the phase of a pod.
func phase(s *state, statuses []corev1.ContainerStatus, now time.Time) corev1.PodPhase {
	over := s.stage == stageFinished || podOver(s, now)
	down := s.stage >= stageTerminating && s.machine.step == machineNone && !s.machine.adopt
	var waiting, running, failed int
	for i := range statuses {
		c := &statuses[i]
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
	switch {
	case over && failed == 0, down && failed == 0 && waiting == 0 && running == 0:
		return corev1.PodSucceeded
	case over, down:
		return corev1.PodFailed
	case waiting > 0:
		return corev1.PodPending
	default:
		return corev1.PodRunning
	}
}

func containerStatus(s *state, i int, c *containerState, now time.Time) corev1.ContainerStatus {
	spec := s.plan.containers[i].spec
	st := corev1.ContainerStatus{
		Name: c.name, Image: spec.Image, RestartCount: int32(c.attempt), //nolint:gosec // restarts are at least 10 s apart
	}
	no := false
	st.Started = &no
	if img := s.images[s.plan.containers[i].image]; img != nil && img.image != nil {
		st.ImageID = img.image.ID
	}
	if c.last != nil {
		st.LastTerminationState.Terminated = terminated(c.last)
	}
	switch c.step {
	case containerRunning:
		started := c.isStarted()
		st.Started, st.Ready = &started, c.isReady()
		st.ContainerID = containerIDScheme + c.id(s)
		st.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.startedAt)}
	case containerExited:
		st.ContainerID = containerIDScheme + c.id(s)
		st.State.Terminated = terminated(c.exit)
	default:
		if c.step == containerWaiting && c.last != nil && c.attempt > 0 {
			// The count goes up when the next run begins, as the kubelet's does.
			st.RestartCount--
			st.ContainerID = containerIDScheme + c.last.ID
		}
		if s.stage >= stageTerminating && c.last != nil {
			st.State.Terminated, st.LastTerminationState = terminated(c.last), corev1.ContainerState{}
			break
		}
		reason, message := waitingFor(s, i, c, now)
		st.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	}
	return st
}

// waitingFor says why a container does not run.
func waitingFor(s *state, i int, c *containerState, now time.Time) (reason, message string) {
	if img := s.images[s.plan.containers[i].image]; img != nil && img.image == nil && img.reason != "" {
		return img.reason, img.message
	}
	if c.reason != "" {
		return c.reason, c.message
	}
	if c.last != nil && c.step == containerWaiting && now.Before(c.notBefore) {
		return reasonCrashLoop, fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			c.backoff.Delay, c.name, s.pod.Name, s.pod.Namespace, s.pod.UID)
	}
	if c.last == nil {
		return reasonContainerCreating, s.machine.message
	}
	return reasonContainerCreating, ""
}

func terminated(t *termination) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode: t.ExitCode, Signal: t.Signal, Reason: t.Reason, Message: t.Message,
		StartedAt: metav1.NewTime(t.StartedAt), FinishedAt: metav1.NewTime(t.FinishedAt),
		ContainerID: containerIDScheme + t.ID,
	}
}

// id is the current run's id in the machine. It follows from pod, container and
// attempt alone, so that a create whose answer was lost is found again.
func (c *containerState) id(s *state) string { return containerID(s.pod, c.name, c.attempt) }

func containerID(pod *corev1.Pod, name string, attempt int) string {
	return fmt.Sprintf("%s-%d-%s", name, attempt, pod.UID)
}

// ours are the conditions that this node writes; all others are kept.
func ours(t corev1.PodConditionType) bool {
	switch t {
	case corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady, corev1.PodReadyToStartContainers:
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
	for _, c := range api {
		if !ours(c.Type) {
			out = append(out, c)
		}
	}
	for _, c := range status {
		if ours(c.Type) {
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
	over := ""
	switch st.Phase {
	case corev1.PodSucceeded:
		over = reasonPodCompleted
	case corev1.PodFailed:
		over = reasonPodFailed
	default:
	}
	var unready []string
	for _, c := range st.ContainerStatuses {
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
	set(corev1.PodReadyToStartContainers, s.machine.step == machineHeld && s.machine.prepared, "", "")
	initialized := ""
	if over == reasonPodCompleted {
		initialized = over
	}
	set(corev1.PodInitialized, true, initialized, "")
	set(corev1.ContainersReady, ready, reason, message)
	if gates := closedGates(s.pod); ready && len(gates) > 0 {
		ready, reason, message = false, reasonGatesNotReady, strings.Join(gates, "; ")
	}
	set(corev1.PodReady, ready, reason, message)
	return list
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
