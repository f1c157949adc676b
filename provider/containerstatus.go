// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerStatus is the status of the i-th container.
func containerStatus(s *state, i int, c *containerState, now time.Time) corev1.ContainerStatus {
	p := &s.plan.containers[i]
	st := corev1.ContainerStatus{
		Name: c.name, Image: p.spec.Image, RestartCount: int32(c.attempt), //nolint:gosec // restarts are at least 10 s apart
	}
	st.VolumeMounts = mountStatus(s.pod, p.spec)
	resourceStatus(p.spec, c, &st)
	if p.kind != kindEphemeral { // of those the kubelet does not say it
		no := false
		st.Started = &no
	}
	if img := s.images[p.image]; img != nil && img.image != nil {
		st.ImageID = img.image.ID
	}
	if c.last != nil {
		st.LastTerminationState.Terminated = terminated(c.last)
	}
	switch {
	case c.runs() && !settling(s, i):
		if p.kind != kindEphemeral {
			started := up(s, i)
			st.Started = &started
		}
		st.Ready = (p.kind == kindMain || p.kind == kindSidecar) && up(s, i) && c.isReady()
		st.ContainerID = containerIDScheme + c.id(s)
		st.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.startedAt)}
	case c.step == containerExited:
		st.Ready = p.kind == kindInit && c.exit.ExitCode == 0
		st.ContainerID = containerIDScheme + c.id(s)
		st.State.Terminated = terminated(c.exit)
	case c.runs(): // the API shows a run only when its postStart hook is over
		st.ContainerID = containerIDScheme + c.id(s)
		st.State.Waiting = waitingState(waitingFor(s, i, c, now))
	default:
		if c.startedAt.IsZero() && c.last != nil && c.attempt > 0 {
			// The count goes up when the next run has begun, as the kubelet's does.
			st.RestartCount--
			st.ContainerID = containerIDScheme + c.last.ID
		}
		if s.stage >= stageFinished && c.last != nil {
			st.State.Terminated, st.LastTerminationState = terminated(c.last), corev1.ContainerState{}
			break
		}
		st.State.Waiting = waitingState(waitingFor(s, i, c, now))
	}
	return st
}

func waitingState(reason, message string) *corev1.ContainerStateWaiting {
	return &corev1.ContainerStateWaiting{Reason: reason, Message: message}
}

// waitingFor says why a container does not run.
func waitingFor(s *state, i int, c *containerState, now time.Time) (reason, message string) {
	if reason, message := unfit(s, i); reason != "" {
		return reason, message
	}
	if img := s.images[s.plan.containers[i].image]; img != nil && img.image == nil && img.reason != "" {
		return img.reason, img.message
	}
	if reason, message := imageVolumeWait(s, s.plan.containers[i].spec); reason != "" {
		return reason, message
	}
	if c.reason != "" {
		return c.reason, c.message
	}
	if c.last != nil && c.step == containerWaiting && now.Before(c.notBefore) {
		return reasonCrashLoop, fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			c.backoff.Delay, c.name, s.pod.Name, s.pod.Namespace, s.pod.UID)
	}
	reason = creating(s.pod)
	if c.last == nil {
		return reason, s.machine.message
	}
	return reason, ""
}

// creating is why a container waits that has nothing to wait for but its start. kubectl
// shows how far a pod with init containers is by the second.
func creating(pod *corev1.Pod) string {
	if len(pod.Spec.InitContainers) > 0 {
		return reasonPodInitializing
	}
	return reasonContainerCreating
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
