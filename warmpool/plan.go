// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Skip is why a pool is not filled further.
type Skip struct {
	Reason  SkipReason
	Message string
	// Resource, Requested and Available are set for InsufficientCapacity, in the units of
	// a Refusal.
	Resource             string
	Requested, Available int64
}

// planInput is everything that a plan depends on.
type planInput struct {
	now   time.Time
	pools []planPool
	// available is what is left, room with what evicted entries still hold.
	available, room Budget
	// pressure is set when the host has too little left to refill.
	pressure Skip
	// slots is how many more entries may be restored at once.
	slots int
	// waiting: requests wait for room, which comes first. slotsWaiting: they wait for a slot
	// only, and what takes none need not wait.
	waiting, slotsWaiting bool
}

// planPool is one pool as it is.
type planPool struct {
	name            string
	target          *Target // nil: all of it is to go
	ready, inFlight []planEntry
	gate            gate
	retry           backoff
}

// planEntry is one entry.
type planEntry struct {
	entry *warmEntry
	// current: it is of the target's template and revision.
	current bool
	created time.Time
	cost    Budget
}

// gate is what stands between a pool and its next entry.
type gate struct {
	// reason is SnapshotNotReady or Backoff, or empty for an open gate.
	reason  SkipReason
	message string
	// trial: one entry may be tried at a time, to see whether the template works again.
	trial bool
}

// plan is what is to be done.
type plan struct {
	// restore is how many entries each pool gets, by index.
	restore []int
	// evict are the entries that go.
	evict []eviction
	// skips are why pools are not filled further, by index; without a reason, a pool is
	// full, being filled, or waits for a slot.
	skips []Skip
}

type eviction struct {
	entry  *warmEntry
	reason EvictReason
}

// makePlan decides what is restored and what goes. Pure, and linear but for sorting.
//
// Pools are filled by priority; within one, round by round, one entry for each. A pool
// of higher priority that finds no room has the cheapest sufficient set of entries of
// lower ones evicted, and keeps the claim to their room until they are deleted.
// Outdated and aged entries are replaced: at most MaxSurge entries more than desired
// exist, and at most MaxUnavailable fewer are ready; they go first once they are too
// many, and they stay when nothing can replace them.
func makePlan(in planInput) plan {
	p := planner{in: in, now: in.available, room: in.room, slots: in.slots}
	p.out.restore = make([]int, len(in.pools))
	p.out.skips = make([]Skip, len(in.pools))
	p.wanted = make([]int, len(in.pools))
	p.behind = make([]bool, len(in.pools))
	p.evicted = make(map[*warmEntry]bool)
	byPriority := make([]int, 0, len(in.pools))
	for i := range in.pools {
		p.trim(i)
		if in.pools[i].target != nil {
			byPriority = append(byPriority, i)
		}
	}
	slices.SortStableFunc(byPriority, func(a, b int) int {
		x, y := &in.pools[a], &in.pools[b]
		return cmp.Or(cmp.Compare(y.target.Priority, x.target.Priority), cmp.Compare(x.name, y.name))
	})
	p.byPriority = byPriority
	for len(byPriority) > 0 {
		n := 1
		for n < len(byPriority) && in.pools[byPriority[n]].target.Priority == in.pools[byPriority[0]].target.Priority {
			n++
		}
		p.fill(byPriority[:n])
		byPriority = byPriority[n:]
	}
	return p.out
}

// planner is a plan in the making.
type planner struct {
	in  planInput
	out plan
	// now is what can be taken at once, room with what is on its way out.
	now, room Budget
	slots     int
	wanted    []int  // entries that may be restored, by pool
	behind    []bool // entries are missing, or to be replaced
	evicted   map[*warmEntry]bool
	// byPriority are the pools that are targets, the highest priority first.
	byPriority []int
	// starved: a pool of this or a higher priority found no room even by evicting all
	// that it may: nothing that it could not evict again takes what there is.
	starved bool
	// victims are the reclaimable entries, sorted by priority, made when first needed.
	victims []victim
	listed  bool
	// hopeless are costs for which even all victims did not do. Later pools have no
	// higher priority, so they need not ask again for as much.
	hopeless []Budget
}

// mostHopeless bounds how many different costs are tried in vain in one plan: each
// looks at every entry.
const mostHopeless = 8

type victim struct {
	entry *warmEntry
	candidate
}

func (p *planner) evict(e planEntry, reason EvictReason) {
	p.evicted[e.entry] = true
	p.out.evict = append(p.out.evict, eviction{e.entry, reason})
}

// trim lets go what is too much in a pool, and counts what is missing.
func (p *planner) trim(i int) {
	pool := &p.in.pools[i]
	if pool.target == nil {
		for _, e := range slices.Concat(pool.inFlight, pool.ready) {
			p.evict(e, EvictSurplus)
		}
		return
	}
	t := pool.target
	var fresh, coming int
	var stale []planEntry
	for _, e := range pool.inFlight {
		if e.current {
			coming++
			continue
		}
		p.evict(e, EvictOutdated)
	}
	isStale := func(e planEntry) bool {
		return !e.current || t.MaxAge > 0 && !e.created.IsZero() && p.in.now.Sub(e.created) >= t.MaxAge
	}
	for _, e := range pool.ready {
		if isStale(e) {
			stale = append(stale, e)
			continue
		}
		fresh++
	}
	surge, unavailable := max(t.MaxSurge, 0), max(t.MaxUnavailable, 0)
	if surge == 0 && unavailable == 0 {
		surge = 1 // nothing would ever be replaced
	}
	// Stale entries that are too many, or may go because what replaces them can come.
	gone := max(0, fresh+coming+len(stale)-t.Desired-surge)
	if pool.gate.reason == "" && p.in.pressure.Reason == "" {
		gone = max(gone, fresh+len(stale)-max(0, t.Desired-unavailable))
	}
	if fresh >= t.Desired {
		gone = len(stale)
	}
	gone = min(gone, len(stale))
	for _, e := range stale[:gone] {
		reason := EvictAged
		if !e.current {
			reason = EvictOutdated
		}
		p.evict(e, reason)
	}
	// What is on its way goes before what is there.
	surplus := fresh + coming - t.Desired
	for _, list := range [][]planEntry{pool.inFlight, pool.ready} {
		for _, e := range list {
			if surplus > 0 && !isStale(e) {
				p.evict(e, EvictSurplus)
				surplus--
			}
		}
	}
	p.wanted[i] = max(0, min(t.Desired-fresh-coming, t.Desired+surge-fresh-coming-(len(stale)-gone)))
	p.behind[i] = t.Desired > fresh+coming
	if fresh >= t.Desired {
		p.out.skips[i].Reason = SkipAlreadyWarm
	}
}

// fill gives the pools of one priority what they miss, one entry each by turns.
func (p *planner) fill(pools []int) {
	open := pools[:0:0]
	for _, i := range pools {
		if !p.behind[i] {
			continue
		}
		switch pool := &p.in.pools[i]; {
		case p.in.pressure.Reason != "":
			p.skip(i, p.in.pressure)
		case pool.gate.reason != "":
			p.skip(i, Skip{Reason: pool.gate.reason, Message: pool.gate.message})
		case p.in.waiting, p.in.slotsWaiting && pool.target.Template.slots() > 0:
			p.skip(i, Skip{Reason: SkipInsufficientCapacity, Message: "pods wait for room"})
		case p.wanted[i] == 0, pool.gate.trial && len(pool.inFlight) > 0:
		default:
			open = append(open, i)
		}
	}
	starved := p.starved
	for len(open) > 0 {
		next := open[:0]
		for _, i := range open {
			if p.one(i, starved) && p.wanted[i] > 0 {
				next = append(next, i)
			}
		}
		open = next
	}
}

func (p *planner) skip(i int, s Skip) { p.out.skips[i] = s }

// one plans one entry of a pool; false when it is not to be asked again.
func (p *planner) one(i int, starved bool) bool {
	t := p.in.pools[i].target
	cost := t.warmCost()
	if starved && t.Reclaim == ReclaimNever {
		p.skip(i, Skip{Reason: SkipInsufficientCapacity, Message: "pools of higher priority wait for room"})
		return false
	}
	res, want, have, over := cost.exceeds(p.now)
	if !over {
		if p.slots == 0 {
			return false
		}
		p.slots--
		p.take(cost)
		p.out.restore[i]++
		p.wanted[i]--
		return !p.in.pools[i].gate.trial
	}
	short := Skip{Reason: SkipInsufficientCapacity, Resource: res, Requested: want, Available: have}
	short.Message = shortage(ReasonInsufficientCapacity, res, want, have).Message
	if _, _, _, over := cost.exceeds(p.room); !over {
		p.take(cost) // it comes free: nobody of lower priority gets it
		short.Message += "; room is being made"
		p.skip(i, short)
		p.wanted[i]--
		return true
	}
	if p.slots > 0 && p.displace(i, cost) {
		p.slots--
		p.take(cost)
		short.Message += "; entries of lower priority give way"
		p.skip(i, short)
		p.wanted[i]--
		return true
	}
	p.starved = true
	p.skip(i, short)
	return false
}

func (p *planner) take(cost Budget) {
	p.now, p.room = p.now.minus(cost), p.room.minus(cost)
}

// displace evicts entries of lower priority for an entry of a pool.
func (p *planner) displace(i int, cost Budget) bool {
	t := p.in.pools[i].target
	if len(p.hopeless) >= mostHopeless || slices.ContainsFunc(p.hopeless, func(h Budget) bool { return h.minus(cost) == (Budget{}) }) {
		return false
	}
	if !p.listed {
		p.listed = true
		n := 0
		for i := range p.in.pools {
			n += len(p.in.pools[i].ready) + len(p.in.pools[i].inFlight)
		}
		p.victims = make([]victim, 0, n)
		for _, j := range slices.Backward(p.byPriority) {
			pool := &p.in.pools[j]
			if pool.target.Reclaim == ReclaimNever {
				continue
			}
			for k, list := range [][]planEntry{pool.ready, pool.inFlight} {
				for _, e := range list {
					p.victims = append(p.victims, victim{e.entry, candidate{priority: pool.target.Priority, inFlight: k == 1, created: e.created, budget: e.cost}})
				}
			}
		}
	}
	// Only the priorities that it takes: there may be thousands of entries above.
	lack := cost.minus(p.room)
	var candidates []candidate
	var entries []*warmEntry
	for i := range p.victims {
		v := &p.victims[i]
		if v.priority >= t.Priority || lack == (Budget{}) && v.priority > p.victims[i-1].priority {
			break
		}
		if v.budget.helps(cost) && !p.evicted[v.entry] {
			candidates, entries = append(candidates, v.candidate), append(entries, v.entry)
			lack = lack.minus(v.budget)
		}
	}
	chosen, ok := cheapest(cost, p.room, candidates)
	if !ok {
		p.hopeless = append(p.hopeless, cost)
		return false
	}
	for _, c := range chosen {
		p.evict(planEntry{entry: entries[c]}, EvictPriority)
		p.room = p.room.plus(candidates[c].budget)
	}
	return true
}

// warmCost is what an entry costs in its pool.
func (t *Target) warmCost() Budget {
	if t.Warm == (Budget{}) {
		return t.Template.charge(Budget{MemoryBytes: t.Template.Shape.MemoryBytes})
	}
	return t.Template.charge(t.Warm)
}

// pressureMessage tells why the disk is too full to refill, empty when it is not:
// exactly the floor is enough. Pure.
func pressureMessage(free, floor int64, err error) string {
	switch {
	case floor <= 0:
		return ""
	case err != nil:
		return fmt.Sprintf("free disk space is not known: %v", err)
	case free < floor:
		return fmt.Sprintf("%d Mi free on the node's disk, pools are filled above %d Mi: free some space, or lower the floor", free>>20, floor>>20)
	}
	return ""
}
