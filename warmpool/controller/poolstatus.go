// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// unmetPeriod is how long a node may lack room before that is a problem: pods come and go.
const unmetPeriod = time.Minute

// poolStatus says what is true of a pool. It is bounded, and changes only when
// something else does. Pure.
func poolStatus(f *fleet, p *plan, pool *managedPool, now time.Time) v1alpha1.WarmPoolStatus {
	s := v1alpha1.WarmPoolStatus{
		ObservedGeneration: pool.object.Generation,
		Selector:           "firkin.dev/pool=" + pool.Key.Name,
	}
	if pool.template != nil {
		s.Revision = pool.template.revision
	}
	v := poolView{pool: pool, now: now}
	for _, m := range f.nodes {
		v.look(m, &s)
	}
	slices.SortStableFunc(s.Nodes, func(a, b v1alpha1.WarmPoolNodeStatus) int {
		return cmp.Or(compareBools(a.SkipReason == "", b.SkipReason == ""), cmp.Compare(a.Name, b.Name))
	})
	if len(s.Nodes) > v1alpha1.MaxPoolNodes {
		s.Nodes = s.Nodes[:v1alpha1.MaxPoolNodes]
	}
	slices.SortFunc(s.Nodes, func(a, b v1alpha1.WarmPoolNodeStatus) int { return cmp.Compare(a.Name, b.Name) })
	v.place(p)

	problem := degraded(v.problems)
	progress := v.progressing(&s)
	ready := condition(v1alpha1.ConditionReady, true, v1alpha1.ReasonReady, fmt.Sprintf("%d of %s ready", s.Ready, plural(pool.Replicas, "replica")))
	switch {
	case pool.Replicas == 0:
		ready.Reason, ready.Message = v1alpha1.ReasonScaledToZero, ""
	case int(s.Ready) >= pool.Replicas:
	case v.blocked != "":
		ready = condition(v1alpha1.ConditionReady, false, v.blocked, ready.Message+"; "+problem.Message)
	case progress.Reason == v1alpha1.ReasonComplete && problem.Reason != v1alpha1.ReasonAsExpected:
		ready = condition(v1alpha1.ConditionReady, false, problem.Reason, ready.Message+"; "+problem.Message)
	case progress.Reason == v1alpha1.ReasonComplete:
		ready = condition(v1alpha1.ConditionReady, false, v1alpha1.ReasonFilling, ready.Message)
	default:
		ready = condition(v1alpha1.ConditionReady, false, progress.Reason, ready.Message)
	}
	s.Conditions = merge(pool.object.Status.Conditions, now, pool.object.Generation, ready, progress, problem)
	return s
}

// poolView collects what nodes say about a pool.
type poolView struct {
	pool     *managedPool
	now      time.Time
	problems []problem
	// blocked is the reason why the pool cannot become ready by itself.
	blocked                    string
	rolling, building, failing int
}

func (v *poolView) problem(reason, format string, args ...any) {
	v.problems = append(v.problems, problem{reason, fmt.Sprintf(format, args...)})
}

// look adds a node to the status.
func (v *poolView) look(m *member, s *v1alpha1.WarmPoolStatus) {
	held := int32(m.Held[v.pool.Key])
	reported := m.pools[v.pool.Key]
	if held == 0 && reported.Ready == 0 && reported.Restoring == 0 && reported.Active == 0 {
		return
	}
	row := v1alpha1.WarmPoolNodeStatus{Name: m.Name, Desired: held}
	if m.State == NodeUnreachable || m.State == NodeWaiting {
		// Nothing of it can be checked out, whatever it said last.
		row.SkipReason = v1alpha1.ReasonNodeUnreachable
		row.Message = "not ready since " + m.since.UTC().Format(time.RFC3339)
		if m.State == NodeWaiting {
			s.Desired += held
		}
		if held > 0 && m.State == NodeUnreachable {
			v.problem(v1alpha1.ReasonNodeUnreachable, "node %s is %s: %s moved to other nodes; look at it, or delete the Node", m.Name, row.Message, plural(int(held), "replica"))
		}
		s.Nodes = append(s.Nodes, row)
		return
	}
	row.Ready, row.Restoring, row.Outdated, row.Active = reported.Ready, reported.Restoring, reported.Outdated, reported.Active
	row.SkipReason, row.Message = reported.SkipReason, reported.Message
	s.Desired += held
	s.Ready += row.Ready
	s.Restoring += row.Restoring
	s.Outdated += row.Outdated
	s.Active += row.Active
	s.Replicas += row.Ready + row.Restoring
	s.Nodes = append(s.Nodes, row)
	if held == 0 {
		return
	}
	for _, fault := range m.faults {
		v.problem(v1alpha1.ReasonNodeStatusInvalid, "node %s reports what cannot be (%s): restart or remove vk-firkin there", m.Name, fault)
	}
	v.lookAtSnapshot(m, row, reported)
}

func (v *poolView) lookAtSnapshot(m *member, row v1alpha1.WarmPoolNodeStatus, reported v1alpha1.PoolStatus) {
	target, _ := m.target(v.pool.Key)
	if v.pool.template != nil && target.Revision != v.pool.template.revision || row.Outdated > 0 {
		v.rolling++
	}
	snapshot, ok := m.snapshots[snapshotKey{Key{target.Namespace, target.Template}, target.Revision}]
	switch {
	case ok && snapshot.Phase == v1alpha1.SnapshotFailed:
		v.failing++
		v.problem(v1alpha1.ReasonTemplateBuildFailed, "node %s cannot build template %s (%s): %s; see the template's status.failures",
			m.Name, target.Template, clip(cmp.Or(snapshot.Step, "Build"), 64), clip(snapshot.Message, maxDetail))
	case row.Ready >= row.Desired:
	case ok && snapshot.Phase != v1alpha1.SnapshotReady:
		v.building++
	case row.SkipReason == "InsufficientCapacity" && reported.UnmetSince != nil && v.now.Sub(reported.UnmetSince.Time) < unmetPeriod:
	case row.SkipReason == "InsufficientCapacity" || row.SkipReason == "DiskPressure" || row.SkipReason == "MemoryPressure" || row.SkipReason == "Backoff":
		v.problem(v1alpha1.ReasonNodeSkipped, "node %s restores no more (%s): %s", m.Name, row.SkipReason, cmp.Or(row.Message, "it does not say more"))
	}
}

// place adds what keeps replicas from getting a node.
func (v *poolView) place(p *plan) {
	pool, shortfall := v.pool, p.shortfalls[v.pool.Key]
	if _, ok := v1alpha1.WarmName(pool.Key.Namespace, pool.Key.Name); !ok {
		v.problem(v1alpha1.ReasonNameTooLong, "namespace and name have more than 62 characters together: nodes carry no label of this pool and offer no resource of it; give it a shorter name")
	}
	switch {
	case pool.template == nil:
		v.blocked = v1alpha1.ReasonTemplateNotFound
		v.problem(v.blocked, "there is no SnapshotTemplate %s in namespace %s: create it, or change spec.templateRef", clip(pool.object.Spec.TemplateRef.Name, maxDetail), pool.Key.Namespace)
	case pool.template.problem != "":
		v.blocked = pool.template.reason
		v.problem(v.blocked, "SnapshotTemplate %s: %s", pool.template.key.Name, pool.template.problem)
	case pool.Replicas == 0:
	case shortfall.Eligible == 0 && pool.MacOS:
		v.blocked = v1alpha1.ReasonNoEligibleNodes
		v.problem(v.blocked, "no node with a NodeLedger runs macOS guests and passes spec.nodeSelector and spec.tolerations: join a Mac, or change them")
	case shortfall.Eligible == 0:
		v.blocked = v1alpha1.ReasonNoEligibleNodes
		v.problem(v.blocked, "no node with a NodeLedger passes spec.nodeSelector and spec.tolerations: change them, or join a node")
	case shortfall.Unplaced > 0:
		v.blocked = v1alpha1.ReasonInsufficientCapacity
		v.problem(v.blocked, "%d of %s find no room: of %s, %d usable, %d without room for a machine of %s (most free: %s%s), %d at spec.perNode.max; lower spec.replicas, raise spec.perNode.max, or add nodes",
			shortfall.Unplaced, plural(pool.Replicas, "replica"), plural(shortfall.Eligible, "eligible node"), shortfall.Usable, shortfall.Full, size(pool.Memory), size(shortfall.MostFree), noSlot(shortfall), shortfall.AtMax)
	}
	for _, name := range sortedKeys(p.overflowing) {
		if p.assignment.On(pool.Key, name) > 0 {
			v.problem(v1alpha1.ReasonInsufficientCapacity, "the NodeLedger of node %s has no room for more templates: use fewer or smaller ones", name)
		}
	}
}

// noSlot tells how many nodes lack a slot only.
func noSlot(f Shortfall) string {
	if f.NoSlot == 0 {
		return ""
	}
	return fmt.Sprintf("; %d without a slot for a macOS guest", f.NoSlot)
}

func (v *poolView) progressing(s *v1alpha1.WarmPoolStatus) metav1.Condition {
	switch {
	case v.rolling > 0:
		return condition(v1alpha1.ConditionProgressing, true, v1alpha1.ReasonRolling, plural(v.rolling, "node")+" of an earlier revision")
	case v.building > 0:
		return condition(v1alpha1.ConditionProgressing, true, v1alpha1.ReasonBuilding, plural(v.building, "node")+" without the template's snapshot yet")
	case s.Ready > s.Desired:
		return condition(v1alpha1.ConditionProgressing, true, v1alpha1.ReasonDraining, fmt.Sprintf("%d ready, %d wanted", s.Ready, s.Desired))
	case s.Restoring > 0 || s.Ready < s.Desired && v.failing == 0:
		return condition(v1alpha1.ConditionProgressing, true, v1alpha1.ReasonFilling, fmt.Sprintf("%d of %d ready", s.Ready, s.Desired))
	}
	return condition(v1alpha1.ConditionProgressing, false, v1alpha1.ReasonComplete, "")
}
