// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

const (
	simBuildSteps   = 3
	simRestoreSteps = 6 // machines a node restores in a second
)

// work makes a node do for a second what its ledger says, and report it.
func (s *sim) work(n *simNode, l *v1alpha1.NodeLedger) {
	status := v1alpha1.NodeLedgerStatus{ObservedGeneration: l.Generation, Capacity: l.Status.Capacity}
	status.Active.Memory = *resource.NewQuantity(n.used, resource.BinarySI)
	budget := simRestoreSteps
	targets := map[Key]v1alpha1.PoolTarget{}
	for _, t := range l.Spec.Targets {
		k := Key{t.Namespace, t.Pool}
		targets[k] = t
		if n.ready[k] == nil {
			n.ready[k] = map[string]int{}
		}
	}
	built := map[snapshotKey]v1alpha1.SnapshotPhase{}
	for _, k := range slices.SortedFunc(maps.Keys(n.ready), compareKeys) {
		t, wanted := targets[k]
		ready := n.ready[k]
		if !wanted {
			delete(n.ready, k)
			continue
		}
		sk := snapshotKey{Key{t.Namespace, t.Template}, t.Revision}
		phase, seen := built[sk]
		if !seen {
			n.builds[sk]++
			switch {
			case n.brokenRevs[t.Revision]:
				phase = v1alpha1.SnapshotFailed
			case n.builds[sk] > simBuildSteps:
				phase = v1alpha1.SnapshotReady
			default:
				phase = v1alpha1.SnapshotBuilding
			}
			built[sk] = phase
			entry := v1alpha1.SnapshotStatus{Namespace: t.Namespace, Template: t.Template, Revision: t.Revision, Phase: phase}
			if phase == v1alpha1.SnapshotFailed {
				entry.Step, entry.Message, entry.Output = "Setup", "exit status 2", "make: no rule"
			}
			status.Snapshots = append(status.Snapshots, entry)
		}
		outdated := func() int {
			sum := 0
			for revision, c := range ready {
				if revision != t.Revision {
					sum += c
				}
			}
			return sum
		}
		for phase == v1alpha1.SnapshotReady && budget > 0 && ready[t.Revision]+outdated() < int(t.Replicas)+min(outdated(), int(t.MaxSurge)) {
			ready[t.Revision]++
			budget--
		}
		for ready[t.Revision]+outdated() > int(t.Replicas) {
			for revision, c := range ready {
				if c > 0 && (revision != t.Revision || outdated() == 0) {
					ready[revision]--
					break
				}
			}
		}
		total := ready[t.Revision] + outdated()
		p := v1alpha1.PoolStatus{Namespace: k.Namespace, Pool: k.Name, Revision: t.Revision, Desired: t.Replicas, Ready: int32(total), Outdated: int32(outdated())}
		if total < int(t.Replicas) && phase != v1alpha1.SnapshotReady {
			p.SkipReason = "SnapshotNotReady"
		}
		status.Pools = append(status.Pools, p)
	}
	if n.lie != nil {
		n.lie(&status)
	}
	if !equality.Semantic.DeepEqual(l.Status, status) {
		s.writes["status by node"]++
		next := l.DeepCopy()
		next.Status = status
		s.put(next)
	}
}
