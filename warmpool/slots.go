// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// slots is what a machine of the template takes of the node's macOS guests: one, also
// while it is paused.
func (t Template) slots() int64 {
	if t.GuestOS == vm.GuestMacOS {
		return 1
	}
	return 0
}

// charge makes a budget one of the template's machines, whoever made it up.
func (t Template) charge(b Budget) Budget {
	b.Slots = t.slots()
	return b
}

// slotLimit is what the host has shown of how many macOS guests it runs. A Mac may count
// one that has ended for seconds, or until it is restarted (UTM issue 5563, macosvm issue
// 16), so that a slot which is free in the ledger is refused. Then no more than what runs
// is offered, for a growing while, after which a try is made. Pure data but for the timer.
type slotLimit struct {
	// most are offered while withheld is set.
	most     int64
	withheld bool
	// backoff counts refusals until the host runs more than most again.
	backoff backoff
	timer   *time.Timer
}

// slotPauses bound how long slots that the host refused are not offered: a place may be
// given back seconds after a stop, or by a restart of the host only.
var slotPauses = pauses{first: 5 * time.Second, most: 5 * time.Minute}

// Withheld tells of slots that the host refused to fill, and that are not offered until it
// is tried again.
type Withheld struct {
	Slots   int64
	Until   time.Time
	Message string
}

// offered is the capacity without withheld slots. With mu held.
func (l *Ledger) offered() Budget {
	b := l.capacity
	if l.limit.withheld {
		b.Slots = min(b.Slots, l.limit.most)
	}
	return b
}

// withheld tells the difference. With mu held.
func (l *Ledger) withheld() Withheld {
	n := l.capacity.Slots - l.offered().Slots
	if n <= 0 {
		return Withheld{}
	}
	return Withheld{
		Slots: n, Until: l.limit.backoff.until,
		Message: fmt.Sprintf("the host refused a macOS guest although it runs %d of %d, so a guest that has ended may still be counted; the next try is at %s, and a restart of the host clears it: %s",
			l.limit.most, l.capacity.Slots, l.limit.backoff.until.UTC().Format(time.RFC3339), l.limit.backoff.message),
	}
}

// refused says that the host did not make this machine, having as many macOS guests as it
// may. The owner releases the room next.
func (r *reservation) refused(err error) {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.gone || r.entry.Budget.Slots == 0 {
		return
	}
	r.overLimit = true
	now := l.now()
	if now.Sub(l.limit.backoff.until) > slotPauses.most {
		l.limit.backoff = backoff{} // long ago, and nobody has tried since
	}
	if !l.limit.backoff.waits(now) { // several are refused at once
		l.limit.backoff = l.limit.backoff.failed(now, slotPauses, err.Error())
	}
	l.limit.withheld, l.limit.most = true, l.slotsFilled()
	if l.limit.timer != nil {
		l.limit.timer.Stop()
	}
	l.limit.timer = time.AfterFunc(l.limit.backoff.until.Sub(now), l.offerAgain)
	l.changed()
}

// slotsFilled are the slots that the host has not refused. With mu held.
func (l *Ledger) slotsFilled() int64 {
	n := int64(0)
	for _, r := range l.machines {
		if !r.overLimit {
			n += r.entry.Budget.Slots
		}
	}
	return n
}

// offerAgain lets the host be tried.
func (l *Ledger) offerAgain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.limit.withheld || l.limit.backoff.waits(l.now()) {
		return
	}
	l.limit.withheld = false
	l.serve()
	l.changed()
}

// filled says that a machine exists: more than the host had refused is the end of that.
// With mu held.
func (l *Ledger) filled(r *reservation) {
	if r.entry.Budget.Slots > 0 && !l.limit.withheld && l.limit.backoff.failures > 0 && l.slotsFilled() > l.limit.most {
		l.limit.backoff = backoff{}
	}
}

// overLimit tells whether a machine could not be made because the host has as many macOS
// guests as it may, and nothing is left of it. Pure.
func overLimit(err error) bool {
	if leftover := (*snapshot.LeftoverError)(nil); errors.As(err, &leftover) {
		return false
	}
	return errors.Is(err, vm.ErrLimitExceeded)
}

// buildPrefix begins the ids under which builds of snapshots are in the ledger: the
// machine's own id is the snapshot store's affair.
const buildPrefix = "slot-"

// reserveBuild takes the slot in which the snapshot of a template is built in the
// background; nil without an error is for templates that need none. It yields to requests
// that wait. Without a free slot it evicts an entry of the template's earlier revisions, else of
// a pool of lower priority, one at a time, and is to be asked again: else a new revision
// could never be built while the old one fills the node. The error is a *Refusal as of
// reserve.
func (l *Ledger) reserveBuild(t Template) (*reservation, error) {
	if t.slots() == 0 {
		return nil, nil //nolint:nilnil // nothing to reserve
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.yields(Budget{Slots: t.slots()}) {
		return nil, refuse(ReasonInsufficientCapacity, nil, "pods wait for room")
	}
	id := buildPrefix + newWarmID()[len(warmPrefix):]
	room, err := l.reserveLocked(Entry{Machine: id, Budget: Budget{Slots: t.slots()}, Warm: true, Template: t.ID()})
	if ReasonOf(err) == ReasonInsufficientCapacity && l.leaving.Slots == 0 && !l.limit.withheld {
		l.displaceForBuild(t)
	}
	return room, err
}

// displaceForBuild evicts the entry that a build may have the slot of, if there is one.
// With mu held.
func (l *Ledger) displaceForBuild(t Template) {
	priority, wanted := 0, false
	for _, p := range l.shelves.pools {
		if p.target != nil && nameOf(p.target.Template) == nameOf(t) && (!wanted || p.target.Priority > priority) {
			priority, wanted = p.target.Priority, true
		}
	}
	type victim struct {
		entry    *warmEntry
		outdated bool
		priority int
		created  time.Time
	}
	var victims []victim
	for _, p := range l.shelves.pools {
		for i, list := range [][]*warmEntry{p.inFlight, p.ready} {
			for _, e := range list {
				v := victim{entry: e, outdated: e.template.ID() == t.ID() && e.template.Revision != t.Revision, priority: p.priority()}
				if i == 1 {
					v.created = e.created // until then its refill writes it
				}
				if e.cost.Slots > 0 && (v.outdated || wanted && p.reclaimable() && v.priority < priority) {
					victims = append(victims, v)
				}
			}
		}
	}
	if len(victims) == 0 {
		return
	}
	v := slices.MinFunc(victims, func(a, b victim) int {
		if a.outdated != b.outdated {
			if a.outdated {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.priority, b.priority), a.created.Compare(b.created), cmp.Compare(a.entry.id(), b.entry.id()))
	})
	reason := EvictPriority
	if v.outdated {
		reason = EvictOutdated
	}
	l.evictLocked(v.entry, reason)
}
