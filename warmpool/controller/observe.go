// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// View is the cluster at one moment. What it points to belongs to a cache: it is read only.
type View struct {
	Nodes     []*corev1.Node
	Ledgers   []*v1alpha1.NodeLedger
	Pools     []*v1alpha1.WarmPool
	Templates []*v1alpha1.SnapshotTemplate
	Classes   []*nodev1.RuntimeClass
}

// fleet is a view that was checked and understood.
type fleet struct {
	nodes     []*member
	pools     []*managedPool
	templates map[Key]*managedTemplate
}

// member is a node with its ledger.
type member struct {
	Node
	ledger *v1alpha1.NodeLedger
	// told are the ledger's targets by pool.
	told map[Key]v1alpha1.PoolTarget
	// pools and snapshots that it reports, cut to what can be.
	pools     map[Key]v1alpha1.PoolStatus
	snapshots map[snapshotKey]v1alpha1.SnapshotStatus
	// faults are what it reports and cannot be.
	faults []string
	since  time.Time // since when it is not ready
}

type snapshotKey struct {
	Key
	revision string
}

// target is what the node was last told about a pool.
func (m *member) target(k Key) (v1alpha1.PoolTarget, bool) {
	t, ok := m.told[k]
	return t, ok
}

// take makes a ledger the member's.
func (m *member) take(l *v1alpha1.NodeLedger) {
	m.ledger = l
	m.told = make(map[Key]v1alpha1.PoolTarget, len(l.Spec.Targets))
	m.Held = make(map[Key]int, len(l.Spec.Targets))
	for _, t := range l.Spec.Targets {
		m.told[Key{t.Namespace, t.Pool}] = t
		m.Held[Key{t.Namespace, t.Pool}] = int(max(0, t.Replicas))
	}
}

type managedPool struct {
	Pool
	object   *v1alpha1.WarmPool
	template *managedTemplate // nil: there is none
}

type managedTemplate struct {
	key      Key
	object   *v1alpha1.SnapshotTemplate
	revision string
	memory   int64
	bytes    int
	// problem is why no machine can be made of it.
	problem, reason string
}

const (
	// maxTemplateBytes is how large a template may be: it is copied into the ledger of each
	// node that has a target for it.
	maxTemplateBytes = 64 << 10
	// maxLedgerBytes is how much of templates one ledger holds; an object in etcd has at most 1.5 MiB.
	maxLedgerBytes = 1 << 20
	// maxNodeMemory is more than any host has: a node that says more lies.
	maxNodeMemory = 64 << 40
	maxNodeSlots  = 1000
	minMachine    = 128 << 20
)

// observe understands a view. It judges everything that comes from a node.
func (r *Reconciler) observe(v *View, now time.Time) *fleet {
	f := &fleet{templates: map[Key]*managedTemplate{}}
	for _, t := range v.Templates {
		m := r.observeTemplate(t)
		f.templates[m.key] = m
	}
	for _, p := range v.Pools {
		if p.DeletionTimestamp != nil {
			continue // its targets vanish, which drains its entries
		}
		f.pools = append(f.pools, observePool(p, f.templates))
	}
	slices.SortFunc(f.pools, func(a, b *managedPool) int { return compareKeys(a.Key, b.Key) })
	pools := map[Key]*Pool{}
	for _, p := range f.pools {
		pools[p.Key] = &p.Pool
	}
	nodes := map[string]*corev1.Node{}
	for _, n := range v.Nodes {
		nodes[n.Name] = n
	}
	for _, l := range v.Ledgers {
		// A ledger without a node is garbage that is about to be collected.
		if n := nodes[l.Name]; n != nil && n.DeletionTimestamp == nil && l.DeletionTimestamp == nil {
			f.nodes = append(f.nodes, r.observeNode(n, l, pools, now))
		}
	}
	slices.SortFunc(f.nodes, func(a, b *member) int { return compareStrings(a.Name, b.Name) })
	r.memory.forget(nodes)
	r.memory.templates = f.templates
	return f
}

// observeTemplate remembers the digest of a generation: digesting thousands of objects
// each second would be most of the controller's work.
func (r *Reconciler) observeTemplate(t *v1alpha1.SnapshotTemplate) *managedTemplate {
	k := Key{t.Namespace, t.Name}
	if old := r.memory.templates[k]; old != nil && old.object.UID == t.UID && old.object.Generation == t.Generation && t.Generation != 0 {
		m := *old
		m.object = t
		return &m
	}
	m := &managedTemplate{key: k, object: t, revision: t.Spec.Revision(), memory: t.Spec.Shape.Memory.Value()}
	data, err := json.Marshal(&t.Spec)
	m.bytes = len(data)
	switch {
	case err != nil:
		m.reason, m.problem = v1alpha1.ReasonTemplateInvalid, "spec cannot be encoded: "+err.Error()
	case m.bytes > maxTemplateBytes:
		m.reason = v1alpha1.ReasonTemplateTooLarge
		m.problem = fmt.Sprintf("spec has %d KiB, and a node's ledger has room for %d of a template: move long scripts into the image or a repository", m.bytes>>10, maxTemplateBytes>>10)
	case m.memory < minMachine:
		m.reason = v1alpha1.ReasonTemplateInvalid
		m.problem = fmt.Sprintf("spec.shape.memory %s is less than a machine needs: give at least 128Mi", t.Spec.Shape.Memory.String())
	}
	return m
}

func observePool(p *v1alpha1.WarmPool, templates map[Key]*managedTemplate) *managedPool {
	m := &managedPool{object: p, Pool: Pool{
		Key: Key{p.Namespace, p.Name}, Replicas: 1, Priority: p.Spec.Priority,
		Selector: p.Spec.NodeSelector, Tolerations: p.Spec.Tolerations,
	}}
	if p.Spec.Replicas != nil {
		m.Replicas = int(max(0, *p.Spec.Replicas))
	}
	if b := p.Spec.PerNode; b != nil {
		if b.Min != nil {
			m.Min = int(max(0, *b.Min))
		}
		if b.Max != nil {
			m.Max = int(max(1, *b.Max))
		}
	}
	if m.template = templates[Key{p.Namespace, p.Spec.TemplateRef.Name}]; m.template != nil && m.template.problem == "" {
		m.Memory = m.template.memory
		m.MacOS = m.template.object.Spec.GuestOS == v1alpha1.GuestMacOS
	}
	return m
}

func (r *Reconciler) observeNode(n *corev1.Node, l *v1alpha1.NodeLedger, pools map[Key]*Pool, now time.Time) *member {
	m := &member{
		Node:  Node{Name: n.Name, Labels: n.Labels, Taints: n.Spec.Taints, Ready: map[Key]int{}},
		pools: map[Key]v1alpha1.PoolStatus{}, snapshots: map[snapshotKey]v1alpha1.SnapshotStatus{},
	}
	m.State, m.Returning, m.since = r.memory.state(n, now, r.opts)
	m.Memory = m.bytes("capacity.memory", l.Status.Capacity.Memory)
	m.Used = m.bytes("active.memory", l.Status.Active.Memory)
	if m.Used > m.Memory {
		m.fault("active.memory is more than capacity.memory")
		m.Used = m.Memory
	}
	m.Slots = m.slots("capacity.slots", l.Status.Capacity.Slots)
	m.Withheld = m.slots("withheldSlots", l.Status.WithheldSlots)
	m.UsedSlots = m.slots("active.slots", l.Status.Active.Slots)
	m.take(l)
	for i, p := range l.Status.Pools {
		if i == v1alpha1.MaxNodeEntries {
			m.fault("more than %d pools", v1alpha1.MaxNodeEntries)
			break
		}
		m.observeEntries(p, pools)
	}
	for i, s := range l.Status.Snapshots {
		if i == v1alpha1.MaxNodeEntries {
			m.fault("more than %d snapshots", v1alpha1.MaxNodeEntries)
			break
		}
		m.snapshots[snapshotKey{Key{s.Namespace, s.Template}, s.Revision}] = s
	}
	m.Crowded = r.memory.crowded(m, pools, now, r.opts)
	return m
}

// observeEntries takes a pool's numbers as far as they can be: no node has more
// machines than its memory allows, and none of a pool that does not exist.
func (m *member) observeEntries(p v1alpha1.PoolStatus, pools map[Key]*Pool) {
	k := Key{p.Namespace, p.Pool}
	pool, exists := pools[k]
	if !exists {
		return // deleted, and perhaps still draining; or invented
	}
	most := int32(v1alpha1.MaxReplicas)
	if pool.Memory > 0 {
		most = int32(min(int64(most), m.Memory/pool.Memory))
	}
	for _, c := range []struct {
		name  string
		count *int32
	}{{"ready", &p.Ready}, {"restoring", &p.Restoring}, {"active", &p.Active}, {"outdated", &p.Outdated}, {"desired", &p.Desired}} {
		switch {
		case *c.count < 0:
			m.fault("pool %s: %s is %d", k, c.name, *c.count)
			*c.count = 0
		case *c.count > most && c.name != "desired":
			m.fault("pool %s: %d %s, and %d machines of it fit into its memory", k, *c.count, c.name, most)
			*c.count = most
		}
	}
	p.Outdated = min(p.Outdated, p.Ready)
	p.SkipReason, p.Message = clip(p.SkipReason, 64), clip(p.Message, maxDetail)
	m.pools[k] = p
	m.Ready[k] = int(p.Ready)
}

// bytes reads an amount of memory, between nothing and what a host may have.
func (m *member) bytes(name string, q resource.Quantity) int64 {
	switch {
	case q.Sign() < 0:
		m.fault("%s is negative", name)
		return 0
	case q.CmpInt64(maxNodeMemory) > 0:
		m.fault("%s is %s, more than any host has", name, clip(q.String(), 32))
		return 0
	}
	return q.Value()
}

// slots reads a number of macOS guests; Apple's licence allows two.
func (m *member) slots(name string, n int32) int {
	if n < 0 || n > maxNodeSlots {
		m.fault("%s is %d", name, n)
		return 0
	}
	return int(n)
}

// maxFaults of one node are remembered; one is enough to look at it.
const maxFaults = 3

func (m *member) fault(format string, args ...any) {
	if len(m.faults) < maxFaults {
		m.faults = append(m.faults, fmt.Sprintf(format, args...))
	}
}
