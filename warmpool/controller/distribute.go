// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"math"
	"slices"
)

// Distribute says how many replicas of each pool each reachable node should keep, and
// why some have no node. It starts from what nodes hold and changes as little as it can:
// see the package comment for what moves a replica. The result depends on its arguments
// only, not on their order. Nodes that are unreachable do not appear in it. Pure.
func Distribute(pools []*Pool, nodes []*Node) (Assignment, map[Key]Shortfall) {
	d := newDistribution(pools, nodes)
	for len(d.pools) > 0 {
		// Pools of one priority first keep what they have, all of them, then grow, so that
		// none takes the room of an equal one.
		priority := d.pools[0].Priority
		end := slices.IndexFunc(d.pools, func(p *Pool) bool { return p.Priority != priority })
		if end < 0 {
			end = len(d.pools)
		}
		class := d.pools[:end]
		d.pools = d.pools[end:]
		for _, s := range d.nodes {
			s.above = s.committed
		}
		for _, p := range class {
			d.retain(p)
		}
		for _, p := range class {
			d.shed(p)
			d.consolidate(p)
		}
		d.grow(class)
		for _, p := range class {
			d.putBack(p)
			d.explain(p)
		}
	}
	return d.result, d.shortfalls
}

// seat is a node while replicas are placed.
type seat struct {
	*Node
	// committed is the memory of replicas that are placed, above that of pools of higher priority.
	committed, above int64
	// pending is the memory of held replicas of pools that have not had their turn.
	pending int64
	// held is the memory of all held replicas.
	held int64
	// slots of placed replicas of macOS guests, heldSlots of all held ones, and pendingSlots
	// as pending.
	slots, heldSlots, pendingSlots int
}

// slotsFor is how many more replicas of a pool the node has slots for.
func (s *seat) slotsFor(p *Pool) int {
	if !p.MacOS {
		return math.MaxInt
	}
	return max(0, s.Slots-s.UsedSlots-s.slots)
}

// slotsKept is that for replicas that are there already, as keeps is for memory: what the
// node withholds for a while does not move them.
func (s *seat) slotsKept(p *Pool) int {
	if !p.MacOS {
		return math.MaxInt
	}
	free := s.Slots + s.Withheld - s.UsedSlots
	if !s.Crowded {
		free = max(free, min(s.heldSlots, s.Slots+s.Withheld))
	}
	return max(0, free-s.slots)
}

// keeps is the room for replicas that are there already: all of them, until pods have
// held it for the crowded period.
func (s *seat) keeps() int64 {
	if s.Crowded {
		return s.free()
	}
	return max(s.free(), s.held)
}

// room is what is left when every held replica that may stay does.
func (s *seat) room() int64 { return s.free() - s.committed - s.pending }

type distribution struct {
	pools      []*Pool // that have not had their turn
	nodes      []*seat
	eligible   map[Key][]*seat
	result     Assignment
	shortfalls map[Key]Shortfall
}

func newDistribution(pools []*Pool, nodes []*Node) *distribution {
	d := &distribution{eligible: map[Key][]*seat{}, result: Assignment{}, shortfalls: map[Key]Shortfall{}}
	d.pools = slices.SortedFunc(slices.Values(pools), func(a, b *Pool) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), compareKeys(a.Key, b.Key))
	})
	for _, n := range slices.SortedFunc(slices.Values(nodes), func(a, b *Node) int { return cmp.Compare(a.Name, b.Name) }) {
		if n.State != NodeUnreachable {
			d.nodes = append(d.nodes, &seat{Node: n})
		}
	}
	for _, p := range d.pools {
		for _, s := range d.nodes {
			if p.Memory > 0 && Eligible(p, s.Node) {
				d.eligible[p.Key] = append(d.eligible[p.Key], s)
			}
			s.held += int64(s.Held[p.Key]) * p.Memory
			if p.MacOS {
				s.heldSlots += s.Held[p.Key]
			}
		}
	}
	for _, s := range d.nodes {
		s.pending, s.pendingSlots = s.held, s.heldSlots
	}
	return d
}

// slotsBack is how many replicas may be left where pods crowded them out.
func (s *seat) slotsBack(p *Pool) int {
	if !p.MacOS {
		return math.MaxInt
	}
	return max(0, min(s.heldSlots, s.Slots+s.Withheld)-s.slots)
}

// place changes the number of a pool's replicas on a node.
func (d *distribution) place(p *Pool, s *seat, count int) {
	more := count - d.result.On(p.Key, s.Name)
	s.committed += int64(more) * p.Memory
	if p.MacOS {
		s.slots += more
	}
	d.result.set(p.Key, s.Name, count)
}

// retain keeps what may stay.
func (d *distribution) retain(p *Pool) {
	for _, s := range d.nodes {
		s.pending -= int64(s.Held[p.Key]) * p.Memory
		if p.MacOS {
			s.pendingSlots -= s.Held[p.Key]
		}
	}
	for _, s := range d.eligible[p.Key] {
		if s.State == NodeCordoned {
			continue
		}
		count := min(s.Held[p.Key], p.maximum(), int(max(0, s.keeps()-s.committed)/p.Memory), s.slotsKept(p))
		d.place(p, s, count)
	}
}

// shed takes away what is more than the pool's replicas: replicas that are not ready
// first, then from where most are, then from the fullest node. A ready one goes only while enough others are ready,
// which is how a node that comes back gets its part without a dip.
func (d *distribution) shed(p *Pool) {
	ready := 0
	for _, s := range d.eligible[p.Key] {
		ready += d.readyOn(p, s)
	}
	for surplus := d.result.Sum(p.Key) - p.Replicas; surplus > 0; surplus-- {
		var best *seat
		bestReady := false
		for _, s := range d.eligible[p.Key] {
			count := d.result.On(p.Key, s.Name)
			isReady := d.readyOn(p, s) == count
			if count == 0 || isReady && ready <= p.Replicas || !isReady && s.Returning {
				continue
			}
			if best == nil || cmp.Or(compareBools(isReady, bestReady), cmp.Compare(d.result.On(p.Key, best.Name), count), cmp.Compare(s.room(), best.room())) < 0 {
				best, bestReady = s, isReady
			}
		}
		if best == nil {
			return // the surge: nodes that came back are not ready yet
		}
		if bestReady {
			ready--
		}
		d.place(p, best, d.result.On(p.Key, best.Name)-1)
	}
}

// readyOn is how many of the replicas that the pool has on a node now are ready.
func (d *distribution) readyOn(p *Pool, s *seat) int {
	if s.State != NodeReady {
		return 0
	}
	return min(s.Ready[p.Key], d.result.On(p.Key, s.Name))
}

// consolidate completes nodes that have fewer than the pool's minimum, or empties them,
// smallest first, so that their replicas complete others.
func (d *distribution) consolidate(p *Pool) {
	for minimum := p.minimum(); minimum > 1; {
		missing := max(0, p.Replicas-d.result.Sum(p.Key))
		var smallest *seat
		needed, possible := 0, true
		for _, s := range d.eligible[p.Key] {
			count := d.result.On(p.Key, s.Name)
			if count == 0 || count >= minimum {
				continue
			}
			needed += minimum - count
			fits := s.State == NodeReady && s.committed+int64(minimum-count)*p.Memory <= s.free() && minimum-count <= s.slotsFor(p)
			possible = possible && fits
			if smallest == nil || count < d.result.On(p.Key, smallest.Name) {
				smallest = s
			}
			if !fits {
				smallest = s
				break
			}
		}
		if smallest == nil {
			return
		}
		if possible && needed <= missing {
			for _, s := range d.eligible[p.Key] {
				if count := d.result.On(p.Key, s.Name); count > 0 && count < minimum {
					d.place(p, s, minimum)
				}
			}
			return
		}
		d.place(p, smallest, 0)
	}
}

// grow places what is missing, in turns: a replica of each pool, until none finds a place.
func (d *distribution) grow(class []*Pool) {
	for waiting := slices.Clone(class); len(waiting) > 0; {
		waiting = slices.DeleteFunc(waiting, func(p *Pool) bool { return !d.growOne(p) })
	}
}

// growOne places a replica where the pool has fewest, on a node that is not yet open as
// many as the minimum. It is false when nothing is missing or no node has room.
func (d *distribution) growOne(p *Pool) bool {
	missing := p.Replicas - d.result.Sum(p.Key)
	if missing <= 0 {
		return false
	}
	minimum := p.minimum()
	var best *seat
	var bestStep int
	var bestRank rank
	for _, s := range d.eligible[p.Key] {
		count := d.result.On(p.Key, s.Name)
		step := 1
		if count == 0 {
			step = minimum
		}
		need := int64(step) * p.Memory
		if s.State != NodeReady || step > missing || count+step > p.maximum() || s.committed+need > s.free() || step > s.slotsFor(p) {
			continue
		}
		r := rank{
			displaces: s.room() < need || p.MacOS && s.slotsFor(p)-s.pendingSlots < step,
			count:     count,
			room:      s.room(),
		}
		if best == nil || r.before(bestRank) {
			best, bestStep, bestRank = s, step, r
		}
	}
	if best == nil {
		return false
	}
	d.place(p, best, d.result.On(p.Key, best.Name)+bestStep)
	return true
}

// rank orders nodes for the next replica of a pool.
type rank struct {
	displaces bool // a pool of lower priority would have to give way
	count     int
	room      int64
}

func (r rank) before(o rank) bool {
	return cmp.Or(compareBools(r.displaces, o.displaces), cmp.Compare(r.count, o.count), cmp.Compare(o.room, r.room)) < 0
}

func compareBools(a, b bool) int {
	switch {
	case !a && b:
		return -1
	case a && !b:
		return 1
	}
	return 0
}

// putBack leaves replicas that pods crowded out, and that found no other node, where they
// were: the node fills them again as soon as pods go. Where pools of higher priority
// share the node, their room comes first.
func (d *distribution) putBack(p *Pool) {
	missing := p.Replicas - d.result.Sum(p.Key)
	for _, s := range d.eligible[p.Key] {
		if missing <= 0 {
			return
		}
		if !s.Crowded || s.above > 0 || s.State == NodeCordoned {
			continue
		}
		count := d.result.On(p.Key, s.Name)
		room := int(max(0, s.held-s.committed) / p.Memory)
		more := min(missing, room, min(s.Held[p.Key], p.maximum())-count, s.slotsBack(p))
		if more <= 0 || count+more < p.minimum() {
			continue
		}
		d.place(p, s, count+more)
		missing -= more
	}
}

func (d *distribution) explain(p *Pool) {
	f := Shortfall{Unplaced: max(0, p.Replicas-d.result.Sum(p.Key)), Eligible: len(d.eligible[p.Key])}
	for _, s := range d.eligible[p.Key] {
		if s.State != NodeReady {
			continue
		}
		f.Usable++
		left := s.free() - s.committed
		f.MostFree = max(f.MostFree, left)
		switch {
		case d.result.On(p.Key, s.Name) >= p.maximum():
			f.AtMax++
		case left < p.Memory:
			f.Full++
		case s.slotsFor(p) == 0:
			f.Full++
			f.NoSlot++
		}
	}
	d.shortfalls[p.Key] = f
}
