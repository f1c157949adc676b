// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// memory is what the controller remembers between two passes, and can do without: after
// a restart every period begins again.
type memory struct {
	nodes     map[string]*nodeMemory
	templates map[Key]*managedTemplate
}

type nodeMemory struct {
	notReady    time.Time // since when; zero while it is ready
	unreachable bool
	returned    time.Time // when it came back from being unreachable
	crowded     time.Time // since when pods hold room of its replicas
}

func (m *memory) of(name string) *nodeMemory {
	if m.nodes == nil {
		m.nodes = map[string]*nodeMemory{}
	}
	if m.nodes[name] == nil {
		m.nodes[name] = &nodeMemory{}
	}
	return m.nodes[name]
}

// forget drops nodes and templates that are gone.
func (m *memory) forget(nodes map[string]*corev1.Node) {
	for name := range m.nodes {
		if nodes[name] == nil {
			delete(m.nodes, name)
		}
	}
}

// state judges a node by its Ready condition. The periods are measured with this
// process's clock from when it first saw the change, since nodes' clocks differ; only at the
// first sight of a node is the condition's own time believed.
func (m *memory) state(n *corev1.Node, now time.Time, o Options) (state NodeState, returning bool, since time.Time) {
	known := m.nodes[n.Name] != nil
	mem := m.of(n.Name)
	ready := false
	changed := n.CreationTimestamp.Time
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			ready, changed = c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	if ready {
		if mem.unreachable {
			mem.returned = now
		}
		mem.notReady, mem.unreachable = time.Time{}, false
		returning = !mem.returned.IsZero() && now.Sub(mem.returned) < o.ReturnPeriod
		if n.Spec.Unschedulable {
			return NodeCordoned, returning, time.Time{}
		}
		return NodeReady, returning, time.Time{}
	}
	if mem.notReady.IsZero() {
		mem.notReady = now
		if !known && changed.Before(now) {
			mem.notReady = changed
		}
	}
	if now.Sub(mem.notReady) >= o.GracePeriod {
		mem.unreachable = true
		return NodeUnreachable, false, mem.notReady
	}
	if n.Spec.Unschedulable {
		return NodeCordoned, false, mem.notReady
	}
	return NodeWaiting, false, mem.notReady
}

// crowded tells whether pods have held room of the node's replicas for the crowded period.
func (m *memory) crowded(node *member, pools map[Key]*Pool, now time.Time, o Options) bool {
	mem := m.of(node.Name)
	var held int64
	slots := 0
	for k, count := range node.Held {
		p := pools[k]
		if p == nil {
			continue
		}
		held += int64(count) * p.Memory
		if p.MacOS {
			slots += count
		}
	}
	if held <= node.free() && (slots == 0 || slots <= node.Slots+node.Withheld-node.UsedSlots) {
		mem.crowded = time.Time{}
		return false
	}
	if mem.crowded.IsZero() {
		mem.crowded = now
	}
	return now.Sub(mem.crowded) >= o.CrowdedPeriod
}
