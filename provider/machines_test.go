// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"errors"
	"testing"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// TestMachines: the kubelet API reaches the machine of a pod while it has one, and knows
// its containers by the ids that they have there.
func TestMachines(t *testing.T) {
	w := newWorld(t)
	p := w.run().p
	w.create(pod("runs", []string{"hang"}, []string{"hang"}))
	w.create(pod("ended", []string{"echo", "x"}))
	w.await("runs", "is ready", ready)
	w.awaitPhase("ended", corev1.PodSucceeded)
	m, err := p.Machine("default", "runs")
	if err != nil || m.Dial == nil || m.Pod.Name != "runs" || len(m.Targets) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	g, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stats, err := g.Agent.Stats(t.Context(), connect.NewRequest(&agentv1.StatsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, target := range m.Targets {
		known[target.ID] = target.Running
	}
	for _, c := range stats.Msg.GetContainers() {
		if !known[c.GetId()] {
			t.Errorf("container %q of the machine is not among %v", c.GetId(), known)
		}
	}
	if n := len(stats.Msg.GetContainers()); n != 2 {
		t.Errorf("%d containers run in the machine", n)
	}
	if _, err := p.Machine("default", "none"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("a pod that is not there: %v", err)
	}
	w.eventually("the ended pod to have no machine", func() bool {
		for _, m := range p.Machines() {
			if m.Pod.Name == "ended" && m.Dial != nil {
				return false
			}
		}
		return len(p.Machines()) == 2
	}, func() string { return "it has" })
}
