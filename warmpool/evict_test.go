// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestCheapest(t *testing.T) {
	age := func(minutes int) time.Time { return time.Unix(0, 0).Add(-time.Duration(minutes) * time.Minute) }
	memory := func(priority int, gib int64) candidate {
		return candidate{priority: priority, budget: Budget{MemoryBytes: gib * gi}, created: age(0)}
	}
	need := func(gib int64) Budget { return Budget{MemoryBytes: gib * gi} }
	for _, c := range []struct {
		name       string
		need, room Budget
		candidates []candidate
		want       []int
		no         bool
	}{
		{name: "it fits", need: need(2), room: need(2), candidates: []candidate{memory(0, 1)}},
		{name: "nothing to evict", need: need(2), room: need(1), no: true},
		{name: "not even all", need: need(9), room: need(1), candidates: []candidate{memory(0, 4), memory(9, 3)}, no: true},
		{name: "exactly all", need: need(8), room: need(1), candidates: []candidate{memory(0, 4), memory(9, 3)}, want: []int{0, 1}},
		{name: "lowest priority first", need: need(2), candidates: []candidate{memory(5, 2), memory(1, 2), memory(3, 2)}, want: []int{1}},
		{name: "many of low priority before one of high", need: need(3), candidates: []candidate{memory(5, 4), memory(1, 1), memory(1, 1), memory(1, 1)}, want: []int{1, 2, 3}},
		{name: "a higher one only for the rest", need: need(4), candidates: []candidate{memory(5, 3), memory(5, 1), memory(1, 1), memory(1, 2)}, want: []int{1, 2, 3}},
		{name: "lower ones are spared when a higher one has to go anyway", need: need(4), candidates: []candidate{memory(5, 4), memory(1, 1)}, want: []int{0}},
		{name: "fewest", need: need(4), candidates: []candidate{memory(0, 1), memory(0, 4), memory(0, 1), memory(0, 2)}, want: []int{1}},
		{name: "and of those the smallest", need: need(3), candidates: []candidate{memory(0, 8), memory(0, 4), memory(0, 3), memory(0, 1)}, want: []int{2}},
		{name: "two where two are needed, not the largest two", need: need(5), candidates: []candidate{memory(0, 4), memory(0, 4), memory(0, 1), memory(0, 2)}, want: []int{0, 2}},
		{name: "only what is lacking", need: Budget{MemoryBytes: gi, DiskBytes: gi}, room: Budget{MemoryBytes: gi}, candidates: []candidate{
			memory(0, 8), {priority: 7, budget: Budget{DiskBytes: gi}},
		}, want: []int{1}},
		{name: "CPU is not lacking what warm entries have none of", need: Budget{MilliCPU: 1000}, candidates: []candidate{memory(0, 8)}, no: true},
		{name: "two dimensions, two entries", need: Budget{MemoryBytes: gi, DiskBytes: gi}, candidates: []candidate{
			{budget: Budget{MemoryBytes: gi}}, {budget: Budget{DiskBytes: gi}}, {priority: 1, budget: Budget{MemoryBytes: gi, DiskBytes: gi}},
		}, want: []int{0, 1}},
		{name: "one that gives both", need: Budget{MemoryBytes: gi, DiskBytes: gi}, candidates: []candidate{
			{budget: Budget{MemoryBytes: gi}}, {budget: Budget{DiskBytes: gi}}, {budget: Budget{MemoryBytes: gi, DiskBytes: gi}},
		}, want: []int{2}},
		{name: "slots", need: Budget{Slots: 1}, candidates: []candidate{memory(0, 9), {budget: Budget{Slots: 1}}}, want: []int{1}},
		{name: "not warm yet before warm", need: need(1), candidates: []candidate{memory(0, 1), {inFlight: true, budget: need(1), created: age(0)}}, want: []int{1}},
		{name: "the oldest", need: need(1), candidates: []candidate{memory(0, 1), {budget: need(1), created: age(9)}, {budget: need(1), created: age(3)}}, want: []int{1}},
	} {
		got, ok := cheapest(c.need, c.room, c.candidates)
		if ok == c.no || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.name, got, ok, c.want)
		}
	}
}

// TestCheapestIsSufficientAndMinimal: whatever there is, what is chosen suffices, none
// of it is superfluous, and nothing is chosen only if all would not do.
func TestCheapestIsSufficientAndMinimal(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20_000 {
		candidates := make([]candidate, rng.IntN(9))
		var all Budget
		for i := range candidates {
			candidates[i] = candidate{priority: rng.IntN(3), inFlight: rng.IntN(2) == 0, budget: Budget{MemoryBytes: rng.Int64N(5), DiskBytes: rng.Int64N(5), MilliCPU: rng.Int64N(3)}}
			all = all.plus(candidates[i].budget)
		}
		need := Budget{MemoryBytes: rng.Int64N(20), DiskBytes: rng.Int64N(20), MilliCPU: rng.Int64N(6)}
		room := Budget{MemoryBytes: rng.Int64N(6), DiskBytes: rng.Int64N(6), MilliCPU: rng.Int64N(6)}
		chosen, ok := cheapest(need, room, candidates)
		if ok != (need.minus(room.plus(all)) == Budget{}) {
			t.Fatalf("seed %d: ok %v for %+v of %+v and %+v", seed, ok, need, room, candidates)
		}
		fits := func(without int) bool {
			sum := room
			for _, i := range chosen {
				if i != without {
					sum = sum.plus(candidates[i].budget)
				}
			}
			return need.minus(sum) == (Budget{})
		}
		if ok && !fits(-1) {
			t.Fatalf("seed %d: %v of %+v does not make room for %+v in %+v", seed, chosen, candidates, need, room)
		}
		if !ok && chosen != nil {
			t.Fatalf("seed %d: chose %v in vain", seed, chosen)
		}
		for n, i := range chosen {
			if n > 0 && chosen[n-1] >= i {
				t.Fatalf("seed %d: %v is not in order", seed, chosen)
			}
			top := slices.MaxFunc(chosen, func(a, b int) int { return candidates[a].priority - candidates[b].priority })
			if candidates[i].priority == candidates[top].priority && fits(i) {
				t.Fatalf("seed %d: %d of %v is superfluous: %+v for %+v in %+v", seed, i, chosen, candidates, need, room)
			}
		}
	}
}
