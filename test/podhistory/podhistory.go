// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package podhistory knows what a pod's status may never say after another one, and never at once, whatever
// happens to the pod (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/). Tests put every
// status that a node writes before it.
package podhistory

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Faults compares two statuses of one pod that follow each other, not necessarily at once; before is nil for the
// first. It is pure.
func Faults(before, after *corev1.Pod) []string {
	if slices.ContainsFunc(after.Status.Conditions, collected) {
		return nil
	}
	f := faults{pod: after.Namespace + "/" + after.Name}
	f.present(&after.Status)
	if before != nil && before.UID == after.UID {
		f.sequel(&before.Status, &after.Status)
	}
	return f.found
}

// collected: the control plane said Failed of a pod whose node is gone, and nothing about its containers,
// before it deleted it (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-garbage-collection).
func collected(c corev1.PodCondition) bool {
	return c.Type == corev1.DisruptionTarget && c.Reason == "DeletionByPodGC"
}

type faults struct {
	pod   string
	found []string
}

func (f *faults) add(format string, args ...any) {
	f.found = append(f.found, "pod "+f.pod+": "+fmt.Sprintf(format, args...))
}

// present is about what a status says at once.
func (f *faults) present(s *corev1.PodStatus) {
	containersReady := true
	for _, c := range s.ContainerStatuses {
		containersReady = containersReady && c.Ready
		if c.Ready && (c.State.Running == nil || c.Started == nil || !*c.Started) {
			f.add("container %s is ready and not running or not started: %+v", c.Name, c.State)
		}
	}
	for _, c := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses) {
		if over(s.Phase) && c.State.Running != nil {
			f.add("is %s and container %s runs", s.Phase, c.Name)
		}
		if end := c.State.Terminated; end != nil && end.FinishedAt.Before(&end.StartedAt) {
			f.add("container %s finished at %s, before it started at %s", c.Name, end.FinishedAt, end.StartedAt)
		}
	}
	if isTrue(s, corev1.ContainersReady) && !containersReady {
		f.add("has condition ContainersReady and a container that is not ready: %+v", s.ContainerStatuses)
	}
	if isTrue(s, corev1.PodReady) && (!isTrue(s, corev1.ContainersReady) || s.Phase != corev1.PodRunning) {
		f.add("is ready in phase %s, with conditions %+v", s.Phase, s.Conditions)
	}
}

// sequel is about what may follow.
func (f *faults) sequel(before, after *corev1.PodStatus) {
	if over(before.Phase) && after.Phase != before.Phase || rank(after.Phase) < rank(before.Phase) {
		f.add("went from phase %s to %s", before.Phase, after.Phase)
	}
	if before.StartTime != nil && (after.StartTime == nil || !after.StartTime.Equal(before.StartTime)) {
		f.add("changed its start time from %v to %v", before.StartTime, after.StartTime)
	}
	f.containers(before.InitContainerStatuses, after.InitContainerStatuses)
	f.containers(before.ContainerStatuses, after.ContainerStatuses)
	f.containers(before.EphemeralContainerStatuses, after.EphemeralContainerStatuses)
	for _, was := range before.Conditions {
		i := slices.IndexFunc(after.Conditions, func(c corev1.PodCondition) bool { return c.Type == was.Type })
		if i < 0 {
			if was.Type != corev1.PodResizePending && was.Type != corev1.PodResizeInProgress { // which go when the resize is over
				f.add("lost its condition %s", was.Type)
			}
			continue
		}
		is := after.Conditions[i]
		switch {
		case was.Type == corev1.PodScheduled && was.Status == corev1.ConditionTrue && is.Status != corev1.ConditionTrue:
			f.add("is not scheduled any more")
		case is.LastTransitionTime.Before(&was.LastTransitionTime):
			f.add("condition %s changed at %s, before it changed the last time, at %s", is.Type, is.LastTransitionTime, was.LastTransitionTime)
		}
	}
}

func (f *faults) containers(before, after []corev1.ContainerStatus) {
	for _, was := range before {
		i := slices.IndexFunc(after, func(c corev1.ContainerStatus) bool { return c.Name == was.Name })
		if i < 0 {
			f.add("lost the status of container %s", was.Name)
			continue
		}
		is := after[i]
		if is.RestartCount < was.RestartCount {
			f.add("container %s went from %d restarts to %d", is.Name, was.RestartCount, is.RestartCount)
		}
		if was.State.Terminated != nil && is.State.Running != nil && is.ContainerID == was.ContainerID {
			f.add("container %s had ended and runs again by the same id, %s", is.Name, is.ContainerID)
		}
		if was.State.Running != nil && is.State.Running != nil && is.ContainerID == was.ContainerID && !is.State.Running.StartedAt.Equal(&was.State.Running.StartedAt) {
			f.add("container %s runs since %s, and before it was %s", is.Name, is.State.Running.StartedAt, was.State.Running.StartedAt)
		}
	}
}

func over(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

func rank(p corev1.PodPhase) int {
	return slices.Index([]corev1.PodPhase{"", corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed}, p)
}

func isTrue(s *corev1.PodStatus, t corev1.PodConditionType) bool {
	return slices.ContainsFunc(s.Conditions, func(c corev1.PodCondition) bool { return c.Type == t && c.Status == corev1.ConditionTrue })
}
