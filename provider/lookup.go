// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Target is what the kubelet API needs to know about a container to serve its logs
// or to run a command in it.
type Target struct {
	ContainerRef
	// State is the container's state as the pod's status has it.
	State corev1.ContainerState
	// Previous is the run before this one; nil when there is none, or its log is gone.
	Previous *ContainerRef
	// Running: the container has a process that a command can join.
	Running bool
	// Dial reaches the machine's agent; nil when the pod has no machine.
	Dial Dial
}

// Containers finds the containers of the pods on the node. *Provider implements it.
type Containers interface {
	// Target finds a container of the pod that the API server has by this name now.
	// An empty container name stands for the only one. Errors: ErrNotFound.
	Target(namespace, pod, container string) (Target, error)
	// Pods returns a copy of every pod on the node with its current status.
	Pods() []*corev1.Pod
	// Machine finds the pod that the API server has by this name now. Errors: ErrNotFound.
	Machine(namespace, pod string) (PodMachine, error)
	// Machines returns every pod on the node, also those that have no machine.
	Machines() []PodMachine
}

// podView is what the kubelet API may know of a pod; the worker makes a new one when
// something changes.
type podView struct {
	targets []Target
	// machine: the pod has a machine, of this id and with so much memory.
	machine       bool
	machineID     string
	machineMemory int64
	// releasing: it is being given back.
	releasing bool
	// endsBy is when the pod's containers are killed at the latest; zero while the pod goes on.
	endsBy time.Time
	// request by which it has, or had asked for, that machine; nil for none.
	request *MachineRequest
}

// viewOf is the view of a state.
func viewOf(s *state, h *machineHold) *podView {
	v := &podView{machine: s.machine.step == machineHeld, releasing: s.machine.step == machineReleasing}
	if v.machine && h != nil {
		v.machineID, v.machineMemory = h.lease.MachineID(), s.machine.shape.MemoryBytes
	}
	if end := s.end(); end != nil {
		v.endsBy = end.deadline()
	}
	for i, c := range s.containers {
		t := Target{
			ContainerRef: ContainerRef{PodUID: s.pod.UID, Namespace: s.pod.Namespace, Pod: s.pod.Name, Container: c.name, Attempt: c.attempt, ID: c.id(s)},
			Running:      c.step == containerRunning,
		}
		st := containerStatus(s, i, c, time.Now())
		t.State = st.State
		if c.last != nil {
			previous := t.ContainerRef
			previous.Attempt, previous.ID = c.last.Attempt, c.last.ID
			if c.step == containerWaiting || c.step == containerStarting {
				// The next run has written nothing: its log is still that of the last, which
				// is the previous one as well (validateContainerLogStatus in kubelet_pods.go).
				t.ContainerRef = previous
			}
			t.Previous = &previous
		}
		if h != nil && s.machine.step == machineHeld {
			t.Dial = h.lease.Guest
		}
		v.targets = append(v.targets, t)
	}
	return v
}

// Target implements Containers.
func (p *Provider) Target(namespace, pod, container string) (Target, error) {
	w := p.byName(namespace, pod)
	if w == nil {
		return Target{}, fmt.Errorf("pod %q: %w", namespace+"/"+pod, ErrNotFound)
	}
	targets := w.view.Load().targets
	if container == "" && len(targets) == 1 {
		return targets[0], nil
	}
	for _, t := range targets {
		if t.Container == container {
			return t, nil
		}
	}
	return Target{}, fmt.Errorf("container %q of pod %q: %w", container, namespace+"/"+pod, ErrNotFound)
}

// Pods implements Containers.
func (p *Provider) Pods() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, w := range p.all() {
		pods = append(pods, w.published.Load().DeepCopy())
	}
	return pods
}
