// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var planTime = time.Unix(1_000_000, 0)

// stock builds a pool for a plan: fresh, outdated, aged and in-flight entries.
type stock struct {
	target                     Target
	fresh, outdated, aged      int
	inFlight, outdatedInFlight int
	gate                       gate
	gone                       bool
}

func (s stock) pool(name string) planPool {
	s.target.Pool = name
	p := planPool{name: name, gate: s.gate}
	if !s.gone {
		p.target = &s.target
	}
	cost := s.target.warmCost()
	add := func(list *[]planEntry, n int, current bool, age time.Duration, kind string) {
		for i := range n {
			e := &warmEntry{pool: name, room: &reservation{entry: Entry{Machine: fmt.Sprintf("%s/%s%d", name, kind, i)}}}
			*list = append(*list, planEntry{entry: e, current: current, created: planTime.Add(-age), cost: cost})
		}
	}
	add(&p.ready, s.aged, true, time.Hour, "aged")
	add(&p.ready, s.outdated, false, time.Minute, "old")
	add(&p.ready, s.fresh, true, time.Second, "new")
	add(&p.inFlight, s.inFlight, true, 0, "coming")
	add(&p.inFlight, s.outdatedInFlight, false, 0, "late")
	return p
}

func want1(desired, priority int, memory int64) Target {
	return Target{
		Template: template("a", "r1"), Desired: desired, Priority: priority, Reclaim: ReclaimOnDemand,
		Warm: Budget{MemoryBytes: memory * gi}, MaxAge: 30 * time.Minute, MaxSurge: 1,
	}
}

func TestPlan(t *testing.T) {
	never := func(t Target) Target { t.Reclaim = ReclaimNever; return t }
	roll := func(t Target, surge, unavailable int) Target {
		t.MaxSurge, t.MaxUnavailable = surge, unavailable
		return t
	}
	for _, c := range []struct {
		name      string
		stocks    []stock
		available int64 // GiB
		room      int64 // GiB more that is on its way out
		pressure  Skip
		slots     int // 0 is 100, negative none
		waiting   bool

		restore []int
		evict   []string // "pool/kind0 Reason"
		skips   []SkipReason
	}{
		{name: "nothing"},
		{name: "deficit", stocks: []stock{{target: want1(3, 0, 1), fresh: 1}}, available: 9, restore: []int{2}, skips: []SkipReason{""}},
		{name: "in flight counts", stocks: []stock{{target: want1(3, 0, 1), fresh: 1, inFlight: 2}}, available: 9, restore: []int{0}, skips: []SkipReason{""}},
		{name: "already warm", stocks: []stock{{target: want1(3, 0, 1), fresh: 3}}, available: 9, restore: []int{0}, skips: []SkipReason{SkipAlreadyWarm}},
		{name: "none desired", stocks: []stock{{target: want1(0, 0, 1)}}, available: 9, restore: []int{0}, skips: []SkipReason{SkipAlreadyWarm}},
		{name: "absurd", stocks: []stock{{target: want1(-3, 0, 1), fresh: 1}, {target: want1(1<<40, 0, 1)}}, available: 3, restore: []int{0, 3}, evict: []string{"p0/new0 Surplus"}, skips: []SkipReason{SkipAlreadyWarm, SkipInsufficientCapacity}},
		{name: "insufficient, a smaller one fits", stocks: []stock{{target: want1(1, 0, 8)}, {target: want1(2, 0, 1)}}, available: 2, restore: []int{0, 2}, skips: []SkipReason{SkipInsufficientCapacity, ""}},
		{name: "a running budget", stocks: []stock{{target: want1(2, 0, 2)}, {target: want1(2, 0, 2)}}, available: 5, restore: []int{1, 1}, skips: []SkipReason{SkipInsufficientCapacity, SkipInsufficientCapacity}},
		{name: "by priority", stocks: []stock{{target: want1(4, 0, 1)}, {target: want1(4, 9, 1)}}, available: 5, restore: []int{1, 4}, skips: []SkipReason{SkipInsufficientCapacity, ""}},
		{name: "by turns at equal priority", stocks: []stock{{target: want1(9, 0, 1)}, {target: want1(9, 0, 1)}, {target: want1(1, 0, 1)}}, available: 5, restore: []int{2, 2, 1}, skips: []SkipReason{SkipInsufficientCapacity, SkipInsufficientCapacity, ""}},
		{name: "slots bound it", stocks: []stock{{target: want1(9, 0, 1)}, {target: want1(9, 0, 1)}}, available: 99, slots: 3, restore: []int{2, 1}, skips: []SkipReason{"", ""}},
		{name: "no slots", stocks: []stock{{target: want1(9, 0, 1)}}, available: 99, slots: -1, restore: []int{0}, skips: []SkipReason{""}},
		{name: "disk pressure", stocks: []stock{{target: want1(1, 0, 1)}, {target: want1(1, 0, 1), fresh: 1}}, available: 9, pressure: Skip{Reason: SkipDiskPressure, Message: "full"}, restore: []int{0, 0}, skips: []SkipReason{SkipDiskPressure, SkipAlreadyWarm}},
		{name: "gates", stocks: []stock{
			{target: want1(1, 0, 1), gate: gate{reason: SkipSnapshotNotReady}}, {target: want1(1, 0, 1), gate: gate{reason: SkipBackoff}}, {target: want1(3, 0, 1), gate: gate{trial: true}},
			{target: want1(3, 0, 1), gate: gate{trial: true}, inFlight: 1},
		}, available: 9, restore: []int{0, 0, 1, 0}, skips: []SkipReason{SkipSnapshotNotReady, SkipBackoff, "", ""}},
		{name: "pods wait", stocks: []stock{{target: want1(1, 0, 1)}}, available: 9, waiting: true, restore: []int{0}, skips: []SkipReason{SkipInsufficientCapacity}},
		{name: "surplus: what is on its way first, then the oldest", stocks: []stock{{target: want1(1, 0, 1), fresh: 3, inFlight: 1}}, available: 9,
			restore: []int{0}, evict: []string{"p0/coming0 Surplus", "p0/new0 Surplus", "p0/new1 Surplus"}, skips: []SkipReason{SkipAlreadyWarm}},
		{name: "no target any more", stocks: []stock{{gone: true, fresh: 1, inFlight: 1}}, restore: []int{0}, evict: []string{"p0/coming0 Surplus", "p0/new0 Surplus"}, skips: []SkipReason{""}},

		{name: "higher priority displaces lower", stocks: []stock{{target: want1(4, 0, 1), fresh: 4}, {target: want1(1, 9, 2)}},
			restore: []int{0, 0}, evict: []string{"p0/new0 Priority", "p0/new1 Priority"}, skips: []SkipReason{SkipAlreadyWarm, SkipInsufficientCapacity}},
		{name: "not at equal priority", stocks: []stock{{target: want1(4, 9, 1), fresh: 4}, {target: want1(1, 9, 2)}}, restore: []int{0, 0}, skips: []SkipReason{SkipAlreadyWarm, SkipInsufficientCapacity}},
		{name: "not what never gives way", stocks: []stock{{target: never(want1(4, 0, 1)), fresh: 4}, {target: want1(1, 9, 2)}}, restore: []int{0, 0}, skips: []SkipReason{SkipAlreadyWarm, SkipInsufficientCapacity}},
		{name: "not in vain", stocks: []stock{{target: want1(4, 0, 1), fresh: 4}, {target: want1(1, 9, 5)}}, restore: []int{0, 0}, skips: []SkipReason{SkipAlreadyWarm, SkipInsufficientCapacity}},
		{name: "room on its way out is waited for", stocks: []stock{{target: want1(4, 0, 1), fresh: 2}, {target: want1(1, 9, 2)}}, room: 2, restore: []int{0, 0}, skips: []SkipReason{SkipInsufficientCapacity, SkipInsufficientCapacity}},
		{name: "and not given to others", stocks: []stock{{target: want1(4, 0, 1)}, {target: want1(1, 9, 2)}}, available: 1, room: 1, restore: []int{0, 0}, skips: []SkipReason{SkipInsufficientCapacity, SkipInsufficientCapacity}},
		{name: "what never gives way takes nothing from a higher one that waits", stocks: []stock{{target: never(want1(4, 0, 1))}, {target: want1(4, 0, 1)}, {target: want1(1, 9, 5)}}, available: 3,
			restore: []int{0, 3, 0}, skips: []SkipReason{SkipInsufficientCapacity, SkipInsufficientCapacity, SkipInsufficientCapacity}},

		{name: "outdated, surge", stocks: []stock{{target: roll(want1(4, 0, 1), 1, 0), outdated: 4}}, available: 9, restore: []int{1}, skips: []SkipReason{""}},
		{name: "outdated, surge came", stocks: []stock{{target: roll(want1(4, 0, 1), 1, 0), outdated: 4, fresh: 1}}, available: 9, restore: []int{1}, evict: []string{"p0/old0 Outdated"}, skips: []SkipReason{""}},
		{name: "outdated, unavailable", stocks: []stock{{target: roll(want1(4, 0, 1), 0, 1), outdated: 4}}, available: 9, restore: []int{1}, evict: []string{"p0/old0 Outdated"}, skips: []SkipReason{""}},
		{name: "outdated, neither is a surge of one", stocks: []stock{{target: roll(want1(4, 0, 1), 0, 0), outdated: 4}}, available: 9, restore: []int{1}, skips: []SkipReason{""}},
		{name: "outdated, all replaced", stocks: []stock{{target: want1(2, 0, 1), outdated: 3, fresh: 2}}, available: 9, restore: []int{0}, evict: []string{"p0/old0 Outdated", "p0/old1 Outdated", "p0/old2 Outdated"}, skips: []SkipReason{SkipAlreadyWarm}},
		{name: "outdated, nothing can replace them", stocks: []stock{{target: roll(want1(4, 0, 1), 1, 2), outdated: 4, gate: gate{reason: SkipSnapshotNotReady}}}, available: 9, restore: []int{0}, skips: []SkipReason{SkipSnapshotNotReady}},
		{name: "outdated on its way", stocks: []stock{{target: want1(2, 0, 1), outdatedInFlight: 1, fresh: 1}}, available: 9, restore: []int{1}, evict: []string{"p0/late0 Outdated"}, skips: []SkipReason{""}},
		{name: "aged", stocks: []stock{{target: roll(want1(2, 0, 1), 0, 1), aged: 2}}, available: 9, restore: []int{1}, evict: []string{"p0/aged0 Aged"}, skips: []SkipReason{""}},
		{name: "outdated above fewer desired", stocks: []stock{{target: roll(want1(1, 0, 1), 1, 0), outdated: 4}}, available: 9, restore: []int{1}, evict: []string{"p0/old0 Outdated", "p0/old1 Outdated", "p0/old2 Outdated"}, skips: []SkipReason{""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := planInput{now: planTime, available: Budget{MemoryBytes: c.available * gi}, pressure: c.pressure, slots: c.slots, waiting: c.waiting}
			in.room = Budget{MemoryBytes: (c.available + c.room) * gi}
			switch {
			case c.slots == 0:
				in.slots = 100
			case c.slots < 0:
				in.slots = 0
			}
			for i, s := range c.stocks {
				in.pools = append(in.pools, s.pool(fmt.Sprint("p", i)))
			}
			p := makePlan(in)
			var evicted []string
			for _, e := range p.evict {
				evicted = append(evicted, fmt.Sprintf("%s %s", e.entry.id(), e.reason))
			}
			slices.Sort(evicted)
			var skips []SkipReason
			for _, s := range p.skips {
				skips = append(skips, s.Reason)
				if s.Resource != "" && (s.Requested <= s.Available || !strings.Contains(s.Message, "memory")) {
					t.Errorf("skip %+v", s)
				}
			}
			if !slices.Equal(p.restore, c.restore) || !slices.Equal(evicted, c.evict) || !slices.Equal(skips, c.skips) {
				t.Errorf("restore %v, evict %q, skip %q", p.restore, evicted, skips)
			}
		})
	}
}

// TestPlanPartitions: each target is filled, skipped for a reason, or waits for its turn.
func TestPlanPartitions(t *testing.T) {
	in := planInput{now: planTime, available: Budget{MemoryBytes: 4 * gi}, room: Budget{MemoryBytes: 4 * gi}, slots: 100}
	for i := range 30 {
		in.pools = append(in.pools, stock{target: want1(i%3, i%5, int64(1+i%2)), fresh: i % 2, gate: []gate{{}, {}, {}, {reason: SkipBackoff}}[i%4]}.pool(fmt.Sprintf("p%02d", i)))
	}
	p := makePlan(in)
	for i, pool := range in.pools {
		missing := pool.target.Desired - len(pool.ready)
		switch skip := p.skips[i].Reason; {
		case missing <= 0 && skip != SkipAlreadyWarm, missing > 0 && p.restore[i] < missing && skip == "", p.restore[i] > max(0, missing):
			t.Errorf("pool %s misses %d, gets %d, skip %q", pool.name, missing, p.restore[i], skip)
		}
	}
}

func TestPressureMessage(t *testing.T) {
	for _, c := range []struct {
		free, floor int64
		err         error
		pressed     bool
	}{
		{10, 10, nil, false}, {9, 10, nil, true}, {11, 10, nil, false}, {0, 0, nil, false}, {0, -1, nil, false}, {99, 10, errors.New("boom"), true},
	} {
		if got := pressureMessage(c.free, c.floor, c.err); (got != "") != c.pressed {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestBackoffAndBreaker(t *testing.T) {
	p := pauses{time.Second, 10 * time.Second}
	for failures, want := range map[int]int{1: 1, 2: 2, 3: 4, 4: 8, 5: 10, 1000: 10} {
		if got := p.after(failures); got != time.Duration(want)*time.Second {
			t.Errorf("after %d failures: %s", failures, got)
		}
	}
	now := planTime
	var b breaker
	for i := range breakerThreshold - 1 {
		if b = b.failed(now, p, "boom"); b.open(now) || b.halfOpen(now) {
			t.Errorf("opened after %d failures", i+1)
		}
	}
	b = b.failed(now, p, "boom")
	if !b.open(now) || b.halfOpen(now) || b.backoff.message != "boom" {
		t.Errorf("not open after %d failures", breakerThreshold)
	}
	if late := b.failed(now, p, "late"); late != b {
		t.Error("a failure from before it opened counted")
	}
	now = now.Add(time.Second)
	if b.open(now) || !b.halfOpen(now) {
		t.Error("not half open after its pause")
	}
	b = b.failed(now, p, "again")
	if !b.open(now.Add(2*time.Second-1)) || b.open(now.Add(2*time.Second)) {
		t.Error("did not open for twice as long")
	}
	if b = (breaker{}); b.open(now) || b.halfOpen(now) {
		t.Error("a success does not close it")
	}
}
