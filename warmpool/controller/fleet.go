// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// Key names a pool or a template.
type Key struct{ Namespace, Name string }

// String is namespace/name.
func (k Key) String() string { return k.Namespace + "/" + k.Name }

func compareKeys(a, b Key) int {
	if a.Namespace != b.Namespace {
		return compareStrings(a.Namespace, b.Namespace)
	}
	return compareStrings(a.Name, b.Name)
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// NodeState is how far a node can be counted on.
type NodeState string

// The states.
const (
	// NodeReady nodes keep and take replicas.
	NodeReady NodeState = "Ready"
	// NodeWaiting nodes are not ready, for less than the grace period: they keep, and take
	// nothing.
	NodeWaiting NodeState = "Waiting"
	// NodeCordoned nodes keep nothing.
	NodeCordoned NodeState = "Cordoned"
	// NodeUnreachable nodes have not been ready for the grace period: they do not count.
	NodeUnreachable NodeState = "Unreachable"
)

// Node is a node as decisions see it. Pure data.
type Node struct {
	Name   string
	Labels map[string]string
	Taints []corev1.Taint
	State  NodeState
	// Memory that machines may have, and Used by pods' machines of it, in bytes.
	Memory, Used int64
	// Slots for macOS guests that the node offers, Withheld of them that it does not offer for
	// now, and UsedSlots of pods' machines.
	Slots, Withheld, UsedSlots int
	// Crowded: pods have held room of its replicas for the crowded period.
	Crowded bool
	// Returning: it came back from being unreachable, less than the return period ago.
	Returning bool
	// Held are the targets that were last written for it.
	Held map[Key]int
	// Ready entries that it reports.
	Ready map[Key]int
}

// free is the memory that no pod holds.
func (n *Node) free() int64 { return max(0, n.Memory-n.Used) }

// Pool is a WarmPool as decisions see it. Pure data.
type Pool struct {
	Key      Key
	Replicas int
	// Min and Max on each node that has any; Max 0 is no bound.
	Min, Max int
	Priority int32
	// Memory of one machine in bytes: a paused machine costs no CPU. 0 places nothing.
	Memory int64
	// MacOS: each machine takes a slot.
	MacOS       bool
	Selector    map[string]string
	Tolerations []corev1.Toleration
}

// minimum is Min as far as it can be kept.
func (p *Pool) minimum() int { return max(1, min(p.Min, p.Replicas, p.maximum())) }

func (p *Pool) maximum() int {
	if p.Max <= 0 {
		return int(^uint(0) >> 1)
	}
	return p.Max
}

// Eligible tells whether a pool may have replicas on a node, whatever the node's state.
func Eligible(p *Pool, n *Node) bool {
	if p.MacOS && n.Slots+n.Withheld == 0 {
		return false
	}
	for key, value := range p.Selector {
		if got, ok := n.Labels[key]; !ok || got != value {
			return false
		}
	}
	return !slices.ContainsFunc(n.Taints, func(taint corev1.Taint) bool {
		if taint.Effect == corev1.TaintEffectPreferNoSchedule || taint.Key == v1alpha1.LabelMachine || slices.Contains(stateTaints, taint.Key) {
			return false
		}
		return !slices.ContainsFunc(p.Tolerations, func(t corev1.Toleration) bool { return tolerates(t, taint) })
	})
}

// stateTaints repeat what NodeState already says, with a grace period.
var stateTaints = []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable}

// tolerates is the scheduler's rule. An operator that is not known tolerates nothing.
func tolerates(t corev1.Toleration, taint corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case corev1.TolerationOpExists:
		return true
	case corev1.TolerationOpEqual, "":
		return t.Key != "" && t.Value == taint.Value
	default: // Lt and Gt are of a later Kubernetes than the taints of these nodes
		return false
	}
}

// Assignment is a number of replicas for each pool and node. Zeros are left out.
type Assignment map[Key]map[string]int

// On is the number of replicas of a pool on a node.
func (a Assignment) On(k Key, node string) int { return a[k][node] }

// Sum is the number of replicas of a pool.
func (a Assignment) Sum(k Key) int {
	sum := 0
	for n := range maps.Values(a[k]) {
		sum += n
	}
	return sum
}

func (a Assignment) set(k Key, node string, count int) {
	switch {
	case count > 0 && a[k] == nil:
		a[k] = map[string]int{node: count}
	case count > 0:
		a[k][node] = count
	default:
		delete(a[k], node)
	}
}

// Shortfall is why replicas of a pool have no node.
type Shortfall struct {
	// Unplaced replicas.
	Unplaced int
	// Eligible nodes pass selector and tolerations; Usable of them are ready and not cordoned.
	Eligible, Usable int
	// Full of the usable nodes have no room, AtMax have as many as the pool's bound.
	Full, AtMax int
	// NoSlot of the full nodes have memory, and no slot for a macOS guest.
	NoSlot int
	// MostFree is the most memory that one of the usable nodes has left.
	MostFree int64
}
