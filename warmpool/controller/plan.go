// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"slices"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// plan is what the ledgers should say.
type plan struct {
	// assignment is where the replicas belong, before pacing.
	assignment Assignment
	shortfalls map[Key]Shortfall
	// specs of the nodes whose ledger should be looked at.
	specs map[string]v1alpha1.NodeLedgerSpec
	// paced tells that some node is not told everything yet.
	paced bool
	// overflowing are nodes whose ledger has no room for more templates or targets.
	overflowing map[string]bool
}

// makePlan decides about all pools at once. Pure.
func makePlan(f *fleet, fillLimit int) *plan {
	pools := make([]*Pool, 0, len(f.pools))
	for _, p := range f.pools {
		pools = append(pools, &p.Pool)
	}
	nodes := make([]*Node, 0, len(f.nodes))
	for _, m := range f.nodes {
		nodes = append(nodes, &m.Node)
	}
	p := &plan{specs: map[string]v1alpha1.NodeLedgerSpec{}, overflowing: map[string]bool{}}
	p.assignment, p.shortfalls = Distribute(pools, nodes)
	ordered := slices.SortedFunc(slices.Values(f.pools), func(a, b *managedPool) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), compareKeys(a.Key, b.Key))
	})
	revisions := map[Key]map[string]string{}
	for _, pool := range ordered {
		if pool.Memory > 0 {
			revisions[pool.Key] = rollPool(f, pool, p.assignment)
		}
	}
	for _, m := range f.nodes {
		if m.State == NodeUnreachable {
			p.specs[m.Name] = orphanedSpec(m, ordered)
			continue
		}
		p.specs[m.Name] = p.nodeSpec(m, ordered, revisions, fillLimit)
	}
	return p
}

// rollPool says which revision each node of the pool keeps.
func rollPool(f *fleet, pool *managedPool, a Assignment) map[string]string {
	latest := pool.template.revision
	var nodes []Rolled
	for _, m := range f.nodes {
		if m.State == NodeUnreachable || a.On(pool.Key, m.Name) == 0 {
			continue
		}
		n := Rolled{Node: m.Name, Gone: m.State == NodeWaiting}
		if t, ok := m.target(pool.Key); ok && t.Template == pool.template.key.Name && m.template(pool.template.key, t.Revision) != nil {
			n.Revision = t.Revision
		}
		status := m.pools[pool.Key]
		snapshot := m.snapshots[snapshotKey{pool.template.key, n.Revision}]
		n.Idle = status.Ready == 0
		n.Done = status.Revision == n.Revision && status.Outdated == 0 && snapshot.Phase == v1alpha1.SnapshotReady &&
			(status.Ready > 0 || status.Active > 0 || status.SkipReason != "")
		nodes = append(nodes, n)
	}
	return Roll(latest, nodes, RollLimit(len(nodes)))
}

// template is the spec of a revision that the node has been given.
func (m *member) template(k Key, revision string) *v1alpha1.SnapshotTemplateSpec {
	for i := range m.ledger.Spec.Templates {
		if t := &m.ledger.Spec.Templates[i]; t.Namespace == k.Namespace && t.Name == k.Name && t.Revision == revision {
			return &t.Spec
		}
	}
	return nil
}

// nodeSpec is a reachable node's spec. pools are in the order of priority.
func (p *plan) nodeSpec(m *member, pools []*managedPool, revisions map[Key]map[string]string, fillLimit int) v1alpha1.NodeLedgerSpec {
	wanted, held := make([]int, len(pools)), make([]int, len(pools))
	outstanding := 0
	for i, pool := range pools {
		wanted[i], held[i] = p.assignment.On(pool.Key, m.Name), m.Held[pool.Key]
		outstanding += max(0, held[i]-m.Ready[pool.Key])
	}
	paced := Pace(wanted, held, outstanding, fillLimit)
	p.paced = p.paced || !slices.Equal(paced, wanted)

	b := newSpecBuilder()
	for i, pool := range pools {
		if paced[i] == 0 {
			continue
		}
		revision := revisions[pool.Key][m.Name]
		spec := &pool.template.object.Spec
		size := pool.template.bytes
		if revision != pool.template.revision {
			spec = m.template(pool.template.key, revision)
		}
		if !b.add(pool.target(revision, paced[i]), spec, size) {
			p.overflowing[m.Name] = true
		}
	}
	return b.spec()
}

// target is what a node is told about the pool.
func (p *managedPool) target(revision string, replicas int) v1alpha1.PoolTarget {
	t := v1alpha1.PoolTarget{
		Namespace: p.Key.Namespace, Pool: p.Key.Name, UID: p.object.UID, Template: p.template.key.Name, Revision: revision,
		Replicas: int32(replicas), Priority: p.Priority, ReclaimPolicy: p.object.Spec.ReclaimPolicy, MaxAge: p.object.Spec.MaxAge,
		MaxSurge: 1,
	}
	if t.ReclaimPolicy == "" {
		t.ReclaimPolicy = v1alpha1.ReclaimOnDemand
	}
	if u := p.object.Spec.Update; u != nil {
		if u.MaxSurge != nil {
			t.MaxSurge = max(0, *u.MaxSurge)
		}
		if u.MaxUnavailable != nil {
			t.MaxUnavailable = max(0, *u.MaxUnavailable)
		}
	}
	return t
}

// orphanedSpec is what an unreachable node finds when it comes back: what it had, but
// nothing of pools that are gone.
func orphanedSpec(m *member, pools []*managedPool) v1alpha1.NodeLedgerSpec {
	b := newSpecBuilder()
	for _, t := range m.ledger.Spec.Targets {
		exists := slices.ContainsFunc(pools, func(p *managedPool) bool {
			return p.Key == Key{t.Namespace, t.Pool} && p.object.UID == t.UID && p.template != nil
		})
		if spec := m.template(Key{t.Namespace, t.Template}, t.Revision); exists && spec != nil {
			b.add(t, spec, 0)
		}
	}
	return b.spec()
}

// specBuilder collects targets and their templates, within what one object holds.
type specBuilder struct {
	result    v1alpha1.NodeLedgerSpec
	templates map[snapshotKey]bool
	bytes     int
}

func newSpecBuilder() *specBuilder { return &specBuilder{templates: map[snapshotKey]bool{}} }

// add is false when there is no room.
func (b *specBuilder) add(t v1alpha1.PoolTarget, spec *v1alpha1.SnapshotTemplateSpec, size int) bool {
	k := snapshotKey{Key{t.Namespace, t.Template}, t.Revision}
	if len(b.result.Targets) == v1alpha1.MaxNodeEntries {
		return false
	}
	if !b.templates[k] {
		if b.bytes+size > maxLedgerBytes {
			return false
		}
		b.bytes += size
		b.templates[k] = true
		b.result.Templates = append(b.result.Templates, v1alpha1.TemplateRevision{Namespace: t.Namespace, Name: t.Template, Revision: t.Revision, Spec: *spec})
	}
	b.result.Targets = append(b.result.Targets, t)
	return true
}

// spec is in one order, so that equal specs are equal bytes.
func (b *specBuilder) spec() v1alpha1.NodeLedgerSpec {
	return sortSpec(b.result)
}

func sortSpec(s v1alpha1.NodeLedgerSpec) v1alpha1.NodeLedgerSpec {
	slices.SortFunc(s.Targets, func(a, b v1alpha1.PoolTarget) int {
		return compareKeys(Key{a.Namespace, a.Pool}, Key{b.Namespace, b.Pool})
	})
	slices.SortFunc(s.Templates, func(a, b v1alpha1.TemplateRevision) int {
		return cmp.Or(compareKeys(Key{a.Namespace, a.Name}, Key{b.Namespace, b.Name}), cmp.Compare(a.Revision, b.Revision))
	})
	return s
}
