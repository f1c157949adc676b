// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// warmEntry is a machine of a pool, with all that belongs to it. It is on one shelf
// from its reservation until a pod has it or it is evicted.
type warmEntry struct {
	room     *reservation
	pool     string
	template Template // Shape and Recipe may be missing in entries of an earlier process
	images   []SlotImage
	created  time.Time
	cost     Budget // in the pool

	// Written by the refill before the entry is ready, and then by whom it was given to.
	machine vm.Machine
	conn    Conn // may be nil, or lost

	cancel context.CancelFunc // ends the refill
	off    bool               // guarded by Ledger.mu; evicted: it must not become ready
}

func (e *warmEntry) id() string { return e.room.entry.Machine }

// pool is what the ledger knows about one pool. All fields are guarded by Ledger.mu.
type pool struct {
	name   string
	target *Target // nil: the pool is no more, or was not heard of yet
	// ready are its warm entries, the oldest first; inFlight are being restored.
	ready    []*warmEntry
	inFlight []*warmEntry
	// active were checked out and are in use.
	active     int
	unmetSince time.Time
	skip       Skip
	retry      backoff // of restores that failed
}

func (p *pool) priority() int {
	if p.target == nil {
		return 0
	}
	return p.target.Priority
}

// reclaimable tells whether a pod's need may evict its entries.
func (p *pool) reclaimable() bool { return p.target == nil || p.target.Reclaim != ReclaimNever }

// shelves are all pools. Guarded by Ledger.mu.
type shelves struct {
	pools map[string]*pool
	// byTemplate are the pools that may have entries of a template, in the order in
	// which checkouts ask them.
	byTemplate map[string][]*pool
	// targeted: targets are known. Before, nothing is too much.
	targeted bool
	// drained is how often they were drained, and not resumed: they stay empty, and wanted are the
	// targets that they have again then.
	drained int
	wanted  []Target
}

func newShelves() shelves {
	return shelves{pools: make(map[string]*pool), byTemplate: make(map[string][]*pool)}
}

// pool returns the pool of a name, new if it is not known.
func (s *shelves) pool(name string) *pool {
	p := s.pools[name]
	if p == nil {
		p = &pool{name: name}
		s.pools[name] = p
	}
	return p
}

// touch keeps the time since when the pool has less than it should, and forgets a
// pool of which nothing is left.
func (s *shelves) touch(name string, now time.Time) {
	p := s.pools[name]
	if p == nil {
		return
	}
	switch {
	case p.target == nil || len(p.ready) >= p.target.Desired:
		p.unmetSince = time.Time{}
	case p.unmetSince.IsZero():
		p.unmetSince = now
	}
	if p.target == nil && len(p.ready)+len(p.inFlight)+p.active == 0 {
		delete(s.pools, name)
		for id, pools := range s.byTemplate {
			if i := slices.Index(pools, p); i >= 0 {
				s.byTemplate[id] = slices.Delete(pools, i, i+1)
			}
		}
	}
}

// index makes a pool findable by a template.
func (s *shelves) index(templateID string, p *pool) {
	if pools := s.byTemplate[templateID]; !slices.Contains(pools, p) {
		s.byTemplate[templateID] = append(pools, p)
		slices.SortFunc(s.byTemplate[templateID], comparePools)
	}
}

// comparePools is the order in which checkouts ask pools: what gives way to pods
// anyway before what was set aside, the least important first, so that the most
// important stock is the last to go. Pure.
func comparePools(a, b *pool) int {
	if x, y := a.reclaimable(), b.reclaimable(); x != y {
		if x {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.priority(), b.priority()), cmp.Compare(a.name, b.name))
}

// setTargets replaces all targets.
func (s *shelves) setTargets(targets []Target, now time.Time) {
	s.targeted = true
	for _, p := range s.pools {
		p.target = nil
	}
	for _, t := range targets {
		p := s.pool(t.Pool)
		p.target = &t
		s.index(t.Template.ID(), p)
	}
	for id, pools := range s.byTemplate {
		slices.SortFunc(pools, comparePools)
		if len(pools) == 0 {
			delete(s.byTemplate, id)
		}
	}
	for name, p := range s.pools {
		p.skip = Skip{}
		s.touch(name, now)
	}
}

// find returns the entry that a request gets: of its revision, the oldest of the
// first pool that has any; else of another revision of the same template that has its
// shape, its kind of guest and every image it needs. Nil when there is none.
func (s *shelves) find(w want) *warmEntry {
	pools := s.byTemplate[w.template]
	if w.pool != "" { // that one or none
		i := slices.IndexFunc(pools, func(p *pool) bool { return p.name == w.pool })
		if i < 0 {
			return nil
		}
		pools = pools[i : i+1]
	}
	var outdated *warmEntry
	for _, p := range pools {
		for _, e := range p.ready {
			if e.template.ID() != w.template {
				continue
			}
			if e.template.Revision == w.revision {
				return e
			}
			if outdated == nil && e.template.Shape == w.shape && e.cost.Slots == w.entry.Budget.Slots && hasAll(e.images, w.refs) {
				outdated = e
			}
		}
	}
	return outdated
}

// hasAll tells whether every reference is among the images. Pure.
func hasAll(images []SlotImage, refs []string) bool {
	for _, ref := range refs {
		if !slices.ContainsFunc(images, func(i SlotImage) bool { return i.Ref == ref }) {
			return false
		}
	}
	return true
}

// remove takes an entry off its shelf; false if it is on none.
func (s *shelves) remove(e *warmEntry, now time.Time) bool {
	p := s.pools[e.pool]
	if p == nil {
		return false
	}
	found := false
	for _, list := range []*[]*warmEntry{&p.ready, &p.inFlight} {
		if i := slices.Index(*list, e); i >= 0 {
			*list = slices.Delete(*list, i, i+1)
			found = true
		}
	}
	s.touch(e.pool, now)
	return found
}

// reserveWarm takes room for an entry of a pool that is to be restored, and puts it
// on the pool's shelf. It yields to requests that wait. The error is a *Refusal as of
// reserve; nothing has changed then.
func (l *Ledger) reserveWarm(id string, t Target, cancel context.CancelFunc) (*warmEntry, error) {
	e := Entry{Machine: id, Budget: t.warmCost(), Warm: true, Pool: t.Pool, Template: t.Template.ID()}
	if err := e.Budget.validate(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.shelves.pools[t.Pool]; p == nil || p.target == nil {
		return nil, refuse(ReasonCancelled, nil, "pool %s is no more", t.Pool)
	}
	if l.yields(e.Budget) {
		return nil, refuse(ReasonInsufficientCapacity, nil, "pods wait for room")
	}
	room, err := l.reserveLocked(e)
	if err != nil {
		return nil, err
	}
	entry := &warmEntry{room: room, pool: t.Pool, template: t.Template, cost: e.Budget, cancel: cancel}
	p := l.shelves.pool(t.Pool)
	p.inFlight = append(p.inFlight, entry)
	return entry, nil
}

// shelve makes an entry ready: it can be checked out from now on. False when it was
// evicted meanwhile: its owner deletes it.
func (l *Ledger) shelve(e *warmEntry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.shelves.pool(e.pool)
	if i := slices.Index(p.inFlight, e); i >= 0 {
		p.inFlight = slices.Delete(p.inFlight, i, i+1)
	}
	if e.off || e.room.advanceLocked(StateWarm) != nil {
		l.shelves.touch(e.pool, l.now())
		return false
	}
	// By age: those of an earlier process answer in any order.
	i := slices.IndexFunc(p.ready, func(o *warmEntry) bool { return o.created.After(e.created) })
	if i < 0 {
		i = len(p.ready)
	}
	p.ready = slices.Insert(p.ready, i, e)
	p.retry = backoff{}
	l.shelves.index(e.template.ID(), p)
	l.shelves.touch(e.pool, l.now())
	l.serve() // it may be what a waiting request needs, or evicts
	l.changed()
	return true
}

// unshelve gives up an entry that did not become ready. evicted: it was given up before.
func (l *Ledger) unshelve(e *warmEntry) (evicted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shelves.remove(e, l.now())
	_ = e.room.advanceLocked(StateStopping)
	l.changed()
	return e.off
}

// evict ends an entry that no pod has; false when that is not so any more.
func (l *Ledger) evict(e *warmEntry, reason EvictReason) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.evictLocked(e, reason)
}

func (l *Ledger) evictLocked(e *warmEntry, reason EvictReason) bool {
	inFlight := e.room.entry.State != StateWarm
	if !l.shelves.remove(e, l.now()) {
		return false
	}
	e.off = true
	_ = e.room.advanceLocked(StateStopping)
	e.room.setLeaving(true)
	l.evicted(e, reason, inFlight)
	l.changed()
	return true
}
