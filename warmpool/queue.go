// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Defaults of the queue of requests that wait for room.
const (
	defaultQueueLength = 64
	defaultQueueWait   = 30 * time.Second
)

// want is what a request needs of the ledger.
type want struct {
	entry Entry // of a machine that is made for it
	// template ("namespace/name") and revision of warm entries that will do; empty:
	// none will. refs and shape are what an outdated one must have.
	template, revision string
	refs               []string
	shape              vm.Shape
	pool               string
}

// grant is what a request got: a warm entry, promoted, or room for a machine.
type grant struct {
	entry *warmEntry
	room  *reservation
	err   error
}

// queue is the requests that wait, the first first. Guarded by Ledger.mu.
type queue struct {
	most    int
	waiting []*waiter
}

type waiter struct {
	want want
	got  chan grant // holds one; written with Ledger.mu held, after the waiter left the queue
}

// admit gives a request its machine or its room. What fits and finds nobody waiting
// gets it at once. Else entries are evicted, the cheapest set that makes it fit, or
// none; and the request waits, at most for wait and ctx, in the order of arrival:
// nobody overtakes, but those that need no slot whoever waits for a slot only. first is for a request that has had its turn and was given a dead
// entry.
//
// The error is a *Refusal: Oversized, QueueFull, InsufficientCapacity when the wait is
// over, Cancelled.
func (l *Ledger) admit(ctx context.Context, w want, wait time.Duration, first bool) (grant, error) {
	if err := w.entry.Budget.validate(); err != nil {
		return grant{}, err
	}
	l.mu.Lock()
	if first || !l.yields(w.entry.Budget) {
		if g, ok := l.try(w); ok {
			l.mu.Unlock()
			return g, g.err
		}
	}
	if len(l.queue.waiting) >= l.queue.most {
		waiting := len(l.queue.waiting)
		l.mu.Unlock()
		return grant{}, refuse(ReasonQueueFull, nil, "the node has no room left, and %d machines wait for it already", waiting)
	}
	me := &waiter{want: w, got: make(chan grant, 1)}
	if first {
		l.queue.waiting = slices.Insert(l.queue.waiting, 0, me)
	} else {
		l.queue.waiting = append(l.queue.waiting, me)
	}
	l.serve()
	l.mu.Unlock()

	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case g := <-me.got:
		return g, g.err
	case <-ctx.Done():
	case <-timer.C:
	}
	return l.leave(ctx, me, wait)
}

// leave takes a request out of the queue whose time is over. If it was served in the
// same moment, it has what it got.
func (l *Ledger) leave(ctx context.Context, me *waiter, wait time.Duration) (grant, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.queue.waiting, me)
	if i < 0 {
		g := <-me.got
		return g, g.err
	}
	l.queue.waiting = slices.Delete(l.queue.waiting, i, i+1)
	l.serve()
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return grant{}, fmt.Errorf("wait for room: %w", err)
	}
	refusal := refuse(ReasonInsufficientCapacity, nil, "others wait for room before it")
	if res, want, have, over := me.want.entry.Budget.exceeds(l.available()); over {
		refusal = shortage(ReasonInsufficientCapacity, res, want, have)
	}
	refusal.Message += fmt.Sprintf(", after a wait of at most %s", wait)
	refusal.Err = ctx.Err()
	return grant{}, refusal
}

// try gives a request what it wants if that is there. With mu held.
func (l *Ledger) try(w want) (grant, bool) {
	if res, want, have, over := w.entry.Budget.exceeds(l.capacity); over {
		return grant{err: shortage(ReasonOversized, res, want, have)}, true
	}
	if e := l.find(w); e != nil {
		// No room for it is no room for a machine that costs as much from the ground up.
		if e.room.promote(w.entry.PodUID, w.entry.Budget) != nil {
			return grant{}, false
		}
		l.shelves.remove(e, l.now())
		return grant{entry: e, room: e.room}, true
	}
	room, err := l.reserveLocked(w.entry)
	if err != nil && ReasonOf(err) == ReasonInsufficientCapacity {
		return grant{}, false
	}
	return grant{room: room, err: err}, true
}

func (l *Ledger) find(w want) *warmEntry {
	if w.template == "" {
		return nil
	}
	return l.shelves.find(w)
}

// serve gives those who wait what there is, in order, and evicts what the first one
// needs. It is called after every change that may help. With mu held.
func (l *Ledger) serve() {
	for i := 0; i < len(l.queue.waiting); {
		me := l.queue.waiting[i]
		if i > 0 && me.want.entry.Budget.Slots > 0 {
			i++ // behind one that waits for a slot
			continue
		}
		g, ok := l.try(me.want)
		if !ok {
			l.makeRoom(me.want)
			if !l.lacksSlotsOnly(me.want) {
				return
			}
			i++
			continue
		}
		l.queue.waiting = slices.Delete(l.queue.waiting, i, i+1)
		me.got <- g
	}
}

// yields tells whether what costs this comes after those that wait: whoever takes no slot
// goes past those that lack nothing else. With mu held.
func (l *Ledger) yields(b Budget) bool {
	return slices.ContainsFunc(l.queue.waiting, func(o *waiter) bool { return b.Slots > 0 || !l.lacksSlotsOnly(o.want) })
}

// lacksSlotsOnly tells whether a request would have its machine if the node had a slot
// more: one of two macOS guests may run for days. With mu held.
func (l *Ledger) lacksSlotsOnly(w want) bool {
	if w.entry.Budget.Slots == 0 || l.find(w) != nil {
		return false
	}
	available := l.available()
	if w.entry.Budget.Slots <= available.Slots {
		return false
	}
	available.Slots = w.entry.Budget.Slots
	_, _, _, over := w.entry.Budget.exceeds(available)
	return !over
}

// makeRoom evicts what a request needs, unless enough is on its way out or even all
// would not do. With mu held.
func (l *Ledger) makeRoom(w want) {
	need := w.entry.Budget
	own := l.find(w)
	if own != nil {
		need = need.minus(own.cost)
	}
	// In sum, since a node that was made smaller has less than nothing: the room on its way
	// out pays for that first.
	need = l.active.plus(l.warm).minus(l.leaving).plus(need)
	room := l.offered()
	if _, _, _, over := need.exceeds(room); !over {
		return
	}
	var entries []*warmEntry
	var candidates []candidate
	for _, p := range l.shelves.pools {
		if !p.reclaimable() {
			continue
		}
		for i, list := range [][]*warmEntry{p.ready, p.inFlight} {
			for _, e := range list {
				if e == own {
					continue
				}
				c := candidate{priority: p.priority(), inFlight: i == 1, budget: e.cost}
				if !c.inFlight {
					c.created = e.created // until then its refill writes it
				}
				entries, candidates = append(entries, e), append(candidates, c)
			}
		}
	}
	chosen, ok := cheapest(need, room, candidates)
	if !ok {
		return
	}
	for _, i := range chosen {
		l.evictLocked(entries[i], EvictDemand)
	}
}
