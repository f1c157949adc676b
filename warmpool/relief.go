// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Press keeps pools from being filled, for the reason of a skip, until it is called
// without one. What is being restored goes on; Shed ends it first.
func (s *Supply) Press(skip Skip) {
	s.mu.Lock()
	s.press = skip
	s.mu.Unlock()
	signal(s.kicks)
}

func (s *Supply) pressed() Skip {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.press
}

// Shed evicts the entry that is the least loss, because the host is short of what it
// takes, and waits until its machine is gone. False: there is none. reserved: also those
// of pools that do not give way to pods, after the others. To be called when Press holds,
// else another one comes. The error is ctx's.
func (s *Supply) Shed(ctx context.Context, reserved bool) (bool, error) {
	room := s.ledger.shed(reserved)
	if room == nil {
		return false, nil
	}
	const look = 20 * time.Millisecond
	for s.ledger.holds(room) {
		select {
		case <-ctx.Done():
			return true, fmt.Errorf("wait for a warm machine to be gone: %w", ctx.Err())
		case <-s.ctx.Done():
			return true, nil
		case <-time.After(look):
		}
	}
	return true, nil
}

// shed evicts the entry that is the least loss: of a pool that gives way, of the lowest
// priority, not ready yet, the oldest.
func (l *Ledger) shed(reserved bool) *reservation {
	l.mu.Lock()
	defer l.mu.Unlock()
	type loss struct {
		entry *warmEntry
		kept  bool
		candidate
	}
	var all []loss
	for _, p := range l.shelves.pools {
		if !p.reclaimable() && !reserved {
			continue
		}
		for i, list := range [][]*warmEntry{p.ready, p.inFlight} {
			for _, e := range list {
				c := candidate{priority: p.priority(), inFlight: i == 1}
				if !c.inFlight {
					c.created = e.created // until then its refill writes it
				}
				all = append(all, loss{e, !p.reclaimable(), c})
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	last := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return 1
		}
		return -1
	}
	least := slices.MinFunc(all, func(a, b loss) int {
		return cmp.Or(last(a.kept, b.kept), cmp.Compare(a.priority, b.priority), last(!a.inFlight, !b.inFlight),
			a.created.Compare(b.created), cmp.Compare(a.entry.id(), b.entry.id()))
	})
	l.evictLocked(least.entry, EvictPressure)
	return least.entry.room
}

// holds tells whether a reservation has its room still.
func (l *Ledger) holds(r *reservation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.machines[r.entry.Machine] == r
}
