// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"slices"
	"time"
)

// passPause is the least time between two looks at the pools: a burst of changes costs
// one.
const passPause = 5 * time.Millisecond

// supervise keeps the pools, until the supply is shut down: after each change, when a
// pause is over or an entry gets too old, and at every tick.
func (s *Supply) supervise() {
	for {
		next := s.pass(time.Now())
		wait := s.opts.Tick
		if !next.IsZero() {
			wait = min(wait, max(passPause, time.Until(next)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return
		case <-s.kicks:
			timer.Reset(passPause)
			select {
			case <-s.ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
		case <-timer.C:
		}
	}
}

// pass looks at the pools once and begins what is to be done. It returns when it has
// to look again; zero is at the next tick. It does not wait for what it begins, and
// no failure of that is an error of the pass.
func (s *Supply) pass(now time.Time) (next time.Time) {
	next = s.templates.sync(s.ledger.targeted(), now)
	pressure := s.pressed()
	if pressure.Reason == "" && s.opts.FreeBytes != nil && s.opts.RefillFloorBytes > 0 {
		free, err := s.opts.FreeBytes()
		if message := pressureMessage(free, s.opts.RefillFloorBytes, err); message != "" {
			pressure = Skip{Reason: SkipDiskPressure, Message: message}
		}
	}
	in, targets, until := s.planInput(now)
	next = earlier(next, until)
	in.pressure = pressure
	p := makePlan(in)
	for _, e := range p.evict {
		s.ledger.evict(e.entry, e.reason)
	}
	for i := range in.pools {
		for range p.restore[i] {
			if !s.refill(*targets[i]) {
				break
			}
		}
	}
	for _, skip := range s.ledger.setSkips(in.pools, p.skips) {
		s.opts.Observer.Skipped(skip.pool, skip.reason)
		signal(s.changes)
	}
	return next
}

// planInput is the state that a plan is made from, and when it changes by itself.
func (s *Supply) planInput(now time.Time) (in planInput, targets []*Target, next time.Time) {
	s.mu.Lock()
	in.slots = s.opts.Refills
	if s.demand > 0 {
		in.slots = 1 // pods go first
	}
	in.slots = max(0, in.slots-s.refills)
	s.mu.Unlock()
	in.now = now

	l := s.ledger
	l.mu.Lock()
	in.available = l.available()
	in.room = l.offered().minus(l.active.plus(l.warm).minus(l.leaving))
	if s.templates.slotWanted { // only this goroutine writes it
		// The next slot is for a build, which pools wait for.
		in.available.Slots, in.room.Slots = 0, 0
	}
	in.waiting, in.slotsWaiting = l.yields(Budget{}), len(l.queue.waiting) > 0
	if l.shelves.targeted {
		in.pools = make([]planPool, 0, len(l.shelves.pools))
		for _, p := range l.shelves.pools {
			in.pools = append(in.pools, p.plan())
		}
	}
	l.mu.Unlock()
	slices.SortFunc(in.pools, func(a, b planPool) int { return cmp.Compare(a.name, b.name) })

	trials := map[templateName]bool{}
	for i := range in.pools {
		p := &in.pools[i]
		targets = append(targets, p.target)
		if p.target == nil {
			continue
		}
		g, until := s.templates.gate(p.target.Template, now)
		if name := nameOf(p.target.Template); g.trial {
			if trials[name] || anyInFlight(in.pools, name) {
				g = gate{reason: SkipBackoff, message: "another pool tries whether the template works again"}
			}
			trials[name] = true
		}
		if p.retry.waits(now) && g.reason == "" {
			g, until = gate{reason: SkipBackoff, message: "the last machine could not be restored: " + p.retry.message}, p.retry.until
		}
		p.gate = g
		next = earlier(next, until)
		for _, e := range p.ready {
			if p.target.MaxAge <= 0 {
				break
			}
			// Those that are too old already wait for what replaces them.
			if old := e.created.Add(p.target.MaxAge); old.After(now) {
				next = earlier(next, old)
			}
		}
	}
	return in, targets, next
}

// anyInFlight tells whether any pool has an entry of a template on its way. Pure.
func anyInFlight(pools []planPool, name templateName) bool {
	return slices.ContainsFunc(pools, func(p planPool) bool {
		return slices.ContainsFunc(p.inFlight, func(e planEntry) bool { return nameOf(e.entry.template) == name })
	})
}

// plan is the pool as a plan sees it.
func (p *pool) plan() planPool {
	out := planPool{name: p.name, target: p.target, retry: p.retry}
	entries := make([]planEntry, 0, len(p.ready)+len(p.inFlight))
	for _, list := range [][]*warmEntry{p.ready, p.inFlight} {
		for _, e := range list {
			current := p.target != nil && e.template.Revision == p.target.Template.Revision &&
				e.template.Name == p.target.Template.Name && e.template.Namespace == p.target.Template.Namespace
			entry := planEntry{entry: e, current: current, cost: e.cost}
			if e.room.entry.State == StateWarm {
				entry.created = e.created // its refill has finished with it
			}
			entries = append(entries, entry)
		}
	}
	out.ready, out.inFlight = entries[:len(p.ready):len(p.ready)], entries[len(p.ready):]
	return out
}

// targeted are the templates of all targets.
func (l *Ledger) targeted() map[templateName]Template {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(map[templateName]Template)
	for _, p := range l.shelves.pools {
		if p.target != nil {
			all[nameOf(p.target.Template)] = p.target.Template
		}
	}
	return all
}

// changedSkip is a reason that is new for its pool.
type changedSkip struct {
	pool   string
	reason SkipReason
}

// setSkips notes why pools are not filled further, and returns what is new.
func (l *Ledger) setSkips(pools []planPool, skips []Skip) (changed []changedSkip) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range pools {
		p := l.shelves.pools[pools[i].name]
		if p == nil || p.target == nil {
			continue
		}
		if p.skip.Reason != skips[i].Reason && skips[i].Reason != "" {
			changed = append(changed, changedSkip{p.name, skips[i].Reason})
		}
		p.skip = skips[i]
	}
	return changed
}

// drain drops all pools, until resume.
func (l *Ledger) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shelves.drained == 0 {
		for _, p := range l.shelves.pools {
			if p.target != nil {
				l.shelves.wanted = append(l.shelves.wanted, *p.target)
			}
		}
	}
	l.shelves.drained++
	l.shelves.setTargets(nil, l.now())
	for _, p := range l.shelves.pools {
		for _, e := range slices.Concat(p.inFlight, p.ready) {
			l.evictLocked(e, EvictDrained)
		}
	}
}

// resume undoes one drain, if there was any.
func (l *Ledger) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shelves.drained == 0 {
		return
	}
	if l.shelves.drained--; l.shelves.drained == 0 {
		l.retarget(l.shelves.wanted)
		l.shelves.wanted = nil
	}
}

// retarget replaces all targets. With mu held.
func (l *Ledger) retarget(targets []Target) {
	l.shelves.setTargets(targets, l.now())
	l.serve() // other entries may be reclaimable now
	l.changed()
}

func (l *Ledger) hasWarm() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.machines {
		if r.entry.Warm {
			return true
		}
	}
	return false
}

// conns are the connections to warm entries.
func (l *Ledger) conns() (conns []Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.shelves.pools {
		for _, e := range p.ready {
			if e.conn != nil {
				conns = append(conns, e.conn)
			}
		}
	}
	return conns
}

// Status is the supply at this moment: pools by name, templates of targets by name.
func (s *Supply) Status() Status {
	l := s.ledger
	l.mu.Lock()
	st := Status{Account: l.account()}
	for _, p := range l.shelves.pools {
		if p.target == nil && len(p.ready)+len(p.inFlight) == 0 {
			continue
		}
		st.Pools = append(st.Pools, p.status())
	}
	l.mu.Unlock()
	slices.SortFunc(st.Pools, func(a, b PoolStatus) int { return cmp.Compare(a.Pool, b.Pool) })
	st.Templates = s.templates.list()
	st.Quarantined = s.Quarantined()
	return st
}

func (p *pool) status() PoolStatus {
	st := PoolStatus{Pool: p.name, Ready: len(p.ready), Restoring: len(p.inFlight), Active: p.active, UnmetSince: p.unmetSince}
	if t := p.target; t != nil {
		st.Template, st.Revision, st.Desired = t.Template.ID(), t.Template.Revision, t.Desired
		for _, e := range p.ready {
			if e.template.Revision != t.Template.Revision || e.template.ID() != st.Template {
				st.Outdated++
			}
		}
	} else {
		st.Outdated = len(p.ready)
	}
	if p.skip.Reason != SkipAlreadyWarm {
		st.Skip, st.Message = p.skip.Reason, p.skip.Message
	}
	return st
}
