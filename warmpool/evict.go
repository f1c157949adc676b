// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"slices"
	"time"
)

// EvictReason is why a warm entry ended without a pod. Stable: a label of metrics.
type EvictReason string

// The reasons.
const (
	// EvictDemand: a pod needed its room.
	EvictDemand EvictReason = "Demand"
	// EvictPriority: a pool of higher priority needed its room.
	EvictPriority EvictReason = "Priority"
	// EvictSurplus: more entries than desired, or a pool that is no more.
	EvictSurplus EvictReason = "Surplus"
	// EvictOutdated: its template has changed.
	EvictOutdated EvictReason = "Outdated"
	// EvictAged: it reached its pool's maximum age.
	EvictAged EvictReason = "Aged"
	// EvictPressure: the host ran short of memory or disk.
	EvictPressure EvictReason = "Pressure"
	// EvictDead: it did not answer at checkout or adoption.
	EvictDead EvictReason = "Dead"
	// EvictAbandoned: its request was given up at checkout.
	EvictAbandoned EvictReason = "Abandoned"
	// EvictDrained: Drain was called.
	EvictDrained EvictReason = "Drained"
)

// candidate is a reclaimable entry that may be evicted.
type candidate struct {
	priority int
	// inFlight: it is still being restored, so nothing that is warm is lost.
	inFlight bool
	created  time.Time
	budget   Budget
}

// cheapest chooses which candidates to evict so that need fits into room, as indexes
// in ascending order. Pure.
//
// An entry of a higher priority is taken only when all of the lower ones would not do;
// at each priority as few as possible, and of those the smallest that do; at equal
// use those that are not warm yet, then the oldest. Entries without any of what is
// lacking are not touched. When even all would not do, nothing is chosen and ok is
// false.
func cheapest(need, room Budget, candidates []candidate) (chosen []int, ok bool) {
	lack := need.minus(room)
	if lack == (Budget{}) {
		return nil, true
	}
	levels := map[int][]int{}
	sums := map[int]Budget{}
	for i, c := range candidates {
		if c.budget.helps(lack) {
			levels[c.priority] = append(levels[c.priority], i)
			sums[c.priority] = sums[c.priority].plus(c.budget)
		}
	}
	order := make([]int, 0, len(levels))
	for p := range levels {
		order = append(order, p)
	}
	slices.Sort(order)
	// below[i] is what all levels under order[i] give together.
	below := make([]Budget, len(order)+1)
	for i, p := range order {
		below[i+1] = below[i].plus(sums[p])
	}
	if lack.minus(below[len(order)]) != (Budget{}) {
		return nil, false
	}
	// From the top: what the levels below cannot give has to come from here.
	for i := len(order) - 1; i >= 0; i-- {
		part := fewest(lack.minus(below[i]), candidates, levels[order[i]])
		for _, c := range part {
			lack = lack.minus(candidates[c].budget)
		}
		chosen = append(chosen, part...)
	}
	slices.Sort(chosen)
	return chosen, true
}

// fewest chooses a small set of members that covers lack; all together they do. Pure.
// In one dimension no set has fewer; in several it is the greedy one, in which none
// is superfluous.
func fewest(lack Budget, candidates []candidate, members []int) []int {
	if lack == (Budget{}) {
		return nil
	}
	total := lack
	// coverage is how much of what lacked at first an entry gives, summed over resources.
	coverage := func(b, lack Budget) (sum float64) {
		for _, d := range dimensions {
			if t := *d.of(&total); t > 0 {
				sum += float64(min(*d.of(&b), *d.of(&lack))) / float64(t)
			}
		}
		return sum
	}
	left := slices.Clone(members)
	slices.SortStableFunc(left, func(x, y int) int {
		a, b := candidates[x], candidates[y]
		if a.inFlight != b.inFlight {
			if a.inFlight {
				return -1
			}
			return 1
		}
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(x, y))
	})
	var chosen []int
	for rest := lack; rest != (Budget{}) && len(left) > 0; {
		best, most := 0, -1.0
		for i, m := range left {
			if c := coverage(candidates[m].budget, rest); c > most {
				best, most = i, c
			}
		}
		rest = rest.minus(candidates[left[best]].budget)
		chosen = append(chosen, left[best])
		left = slices.Delete(left, best, best+1)
	}
	covers := func(set []int) bool {
		rest := lack
		for _, m := range set {
			rest = rest.minus(candidates[m].budget)
		}
		return rest == (Budget{})
	}
	// What others have made superfluous, and what a smaller one does as well; the last
	// chosen, and so the youngest, stay first.
	for i := len(chosen) - 1; i >= 0; i-- {
		if without := slices.Delete(slices.Clone(chosen), i, i+1); covers(without) {
			left = append(left, chosen[i])
			chosen = without
		}
	}
	for i := len(chosen) - 1; i >= 0; i-- {
		for j, m := range left {
			if !smaller(candidates[m].budget, candidates[chosen[i]].budget) {
				continue
			}
			old := chosen[i]
			chosen[i] = m
			if covers(chosen) {
				left[j] = old
				continue
			}
			chosen[i] = old
		}
	}
	return chosen
}

// smaller tells whether a has less of something than b and more of nothing.
func smaller(a, b Budget) bool {
	less := false
	for _, d := range dimensions {
		x, y := *d.of(&a), *d.of(&b)
		if x > y {
			return false
		}
		less = less || x < y
	}
	return less
}

// helps tells whether b has any of what lacks.
func (b Budget) helps(lack Budget) bool {
	for _, d := range dimensions {
		if *d.of(&lack) > 0 && *d.of(&b) > 0 {
			return true
		}
	}
	return false
}
