// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// PodMachine is what the kubelet API needs to know about a pod to reach its machine.
type PodMachine struct {
	// Pod is a copy, with its current status.
	Pod *corev1.Pod
	// Targets are its containers, of which each is in the machine under its ID.
	Targets []Target
	// Dial reaches the machine's agent; nil when the pod has no machine.
	Dial Dial
}

func machineOf(w *worker) PodMachine {
	m := PodMachine{Pod: w.published.Load().DeepCopy(), Targets: w.view.Load().targets}
	for _, t := range m.Targets {
		if t.Dial != nil {
			m.Dial = t.Dial
		}
	}
	return m
}

// Machine implements Containers.
func (p *Provider) Machine(namespace, pod string) (PodMachine, error) {
	w := p.byName(namespace, pod)
	if w == nil {
		return PodMachine{}, fmt.Errorf("pod %q: %w", namespace+"/"+pod, ErrNotFound)
	}
	return machineOf(w), nil
}

// Machines implements Containers.
func (p *Provider) Machines() []PodMachine {
	var machines []PodMachine
	for _, w := range p.all() {
		machines = append(machines, machineOf(w))
	}
	return machines
}
