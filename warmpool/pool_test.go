// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

func TestPoolIsEmptiedAtOnceAndRefilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Room for ten machines of pods or pools, so that the refill has to wait.
		p := newPooled(t, func(o *Options) { o.Capacity.MemoryBytes = 10 * 256 * mi })
		p.host.setDelay(func(op, _ string) time.Duration {
			return map[string]time.Duration{"build": time.Minute, "restore": time.Second}[op]
		})
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 10, 0))
		pass(5 * time.Minute)
		if s := p.pool("a"); s.Ready != 10 || !s.UnmetSince.IsZero() {
			t.Fatalf("not filled: %+v", s)
		}
		start := time.Now()
		leases := make([]*Lease, 10)
		var wg sync.WaitGroup
		for i := range leases {
			wg.Go(func() {
				l, err := p.supply.Acquire(t.Context(), templateRequest(fmt.Sprintf("pod-%d", i), tmpl))
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				leases[i] = l
			})
		}
		wg.Wait()
		if took := time.Since(start); took != 0 {
			t.Errorf("ten warm checkouts took %s: somebody waited for a refill", took)
		}
		machines := map[string]bool{}
		for _, l := range leases {
			if l == nil {
				t.FailNow()
			}
			if l.Path() != PathWarm {
				t.Errorf("%s came by %s", l.RequestID(), l.Path())
			}
			machines[l.MachineID()] = true
		}
		if len(machines) != 10 {
			t.Errorf("%d machines for ten pods", len(machines))
		}
		pass(time.Minute)
		s := p.pool("a")
		if s.Ready != 0 || s.Active != 10 || s.Skip != SkipInsufficientCapacity || s.Message == "" || s.UnmetSince.IsZero() {
			t.Errorf("while all room is taken: %+v", s)
		}
		for _, l := range leases {
			if err := l.Release(t.Context(), 0); err != nil {
				t.Error(err)
			}
		}
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 10 || s.Active != 0 || s.Skip != "" {
			t.Errorf("not refilled: %+v", s)
		}
		for id, n := range p.host.made {
			if n != 1 {
				t.Errorf("machine %s was made %d times", id, n)
			}
		}
		if n := len(p.host.made); n != 20 {
			t.Errorf("%d machines were made, want 20", n)
		}
		if err := p.consistent(true); err != nil {
			t.Error(err)
		}
		p.stop()
	})
}

// TestPodEvictsAndPoolRefills: a pod that needs the room gets it, the pool refills when
// it is gone.
func TestPodEvictsAndPoolRefills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Capacity.MemoryBytes = 1024 * mi })
		p.host.setDelay(func(op, _ string) time.Duration {
			return map[string]time.Duration{"delete": time.Second, "restore": time.Second}[op]
		})
		p.run(target("a", template("a", "r1"), 4, 0))
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 4 {
			t.Fatalf("%+v", s)
		}
		before := time.Now()
		req := Request{MachineID: "pod", Shape: vm.Shape{VCPUs: 1, MemoryBytes: 512 * mi}}
		l, err := p.supply.Acquire(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(before); took != 2*time.Second {
			t.Errorf("took %s: the evicted are deleted, then it is restored", took)
		}
		if s := p.pool("a"); s.Ready != 2 || p.watch.evicted[EvictDemand] != 2 {
			t.Errorf("evicted %v, left %+v", p.watch.evicted, s)
		}
		pass(time.Minute)
		if err := l.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 4 {
			t.Errorf("not refilled: %+v", s)
		}
		// What even all entries would not make room for evicts none.
		never := target("a", template("a", "r1"), 4, 0)
		never.Reclaim = ReclaimNever
		p.supply.SetTargets([]Target{never})
		if _, err := p.supply.Acquire(t.Context(), req); ReasonOf(err) != ReasonInsufficientCapacity {
			t.Errorf("entries that never give way: %v", err)
		}
		if s := p.pool("a"); s.Ready != 4 {
			t.Errorf("%+v", s)
		}
		p.stop()
	})
}

// TestPodEvictsWhatIsBeingRestored: a refill under way gives way as well.
func TestPodEvictsWhatIsBeingRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Capacity.MemoryBytes = 256 * mi })
		p.host.setDelay(func(op, id string) time.Duration {
			if op == "restore" && isWarmID(id) {
				return time.Hour
			}
			return 0
		})
		p.run(target("a", template("a", "r1"), 1, 0))
		pass(time.Minute)
		if s := p.pool("a"); s.Restoring != 1 {
			t.Fatalf("%+v", s)
		}
		if _, err := p.supply.Acquire(t.Context(), request("pod")); err != nil {
			t.Fatal(err)
		}
		if err := p.consistent(true); err != nil {
			t.Error(err)
		}
		p.stop()
	})
}

// TestPriority: a pool of priority 100 is never starved by one of priority 0.
func TestPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Capacity.MemoryBytes = 1024 * mi })
		p.host.setDelay(func(op, _ string) time.Duration { return map[string]time.Duration{"restore": time.Second}[op] })
		low := target("low", template("low", "r1"), 100, 0)
		big := template("high", "r1")
		big.Shape.MemoryBytes = 512 * mi
		high := target("high", big, 2, 100)
		p.run(low)
		pass(time.Minute)
		if s := p.pool("low"); s.Ready != 4 || s.Skip != SkipInsufficientCapacity {
			t.Fatalf("%+v", s)
		}
		p.supply.SetTargets([]Target{low, high})
		pass(time.Minute)
		for range 5 {
			if h, l := p.pool("high"), p.pool("low"); h.Ready != 2 || l.Ready != 0 {
				t.Fatalf("high %+v, low %+v", h, l)
			}
			lease, err := p.supply.Acquire(t.Context(), templateRequest("pod", big))
			if err != nil || lease.Path() != PathWarm {
				t.Fatal(err)
			}
			pass(time.Minute)
			if err := lease.Release(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			pass(time.Minute)
		}
		if n := p.watch.evicted[EvictPriority]; n != 4 {
			t.Errorf("%d entries gave way, want 4", n)
		}
		p.stop()
	})
}

// TestNewRevision: outdated entries are replaced a few at a time, never below the
// floor; until then they are checked out when they have what the pod needs.
func TestNewRevision(t *testing.T) {
	for _, c := range []struct{ surge, unavailable, most, least int }{
		{1, 0, 5, 4}, {0, 1, 4, 3}, {2, 2, 6, 2}, {0, 0, 5, 4},
	} {
		t.Run(fmt.Sprintf("surge %d unavailable %d", c.surge, c.unavailable), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPooled(t, nil)
				p.host.setDelay(func(op, _ string) time.Duration {
					return map[string]time.Duration{"restore": time.Second, "build": time.Minute}[op]
				})
				tgt := target("a", template("a", "r1"), 4, 0)
				tgt.MaxSurge, tgt.MaxUnavailable = c.surge, c.unavailable
				p.run(tgt)
				pass(10 * time.Minute)
				tgt.Template.Revision = "r2"
				p.supply.SetTargets([]Target{tgt})
				pass(30 * time.Second)
				if s := p.pool("a"); s.Ready != 4 || s.Outdated != 4 || s.Skip != SkipSnapshotNotReady {
					t.Errorf("while the snapshot is built: %+v", s)
				}
				l, err := p.supply.Acquire(t.Context(), templateRequest("old", tgt.Template))
				if err != nil || l.Path() != PathWarm {
					t.Fatalf("an outdated entry: %v", err)
				}
				if _, _, rev := l.Template(); rev != "r1" {
					t.Errorf("revision %s", rev)
				}
				most, least := 0, 4
				for range 600 {
					pass(100 * time.Millisecond)
					s := p.pool("a")
					most, least = max(most, s.Ready+s.Restoring), min(least, s.Ready)
				}
				if s := p.pool("a"); s.Ready != 4 || s.Outdated != 0 {
					t.Errorf("not replaced: %+v", s)
				}
				// One had been checked out: the pool began with three.
				if most > c.most || least < min(3, c.least) {
					t.Errorf("had up to %d and down to %d entries", most, least)
				}
				p.stop()
			})
		})
	}
}

// TestTemplateThatCannotBeBuilt tells its step and output, and is tried again; others
// are not kept.
func TestTemplateThatCannotBeBuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.host.setFault(func(op, id string) error {
			if op == "build" && id[:5] == "ns/ba" {
				return fmt.Errorf("build: %w", &recipe.StepError{Step: recipe.StepSetup, Message: "make ended with 2", Output: "no rule"})
			}
			return nil
		})
		bad, good := template("bad", "r1"), template("good", "r1")
		p.run(target("bad", bad, 2, 100), target("good", good, 2, 0))
		pass(5 * time.Second)
		if s := p.pool("good"); s.Ready != 2 {
			t.Errorf("the good one: %+v", s)
		}
		if s := p.pool("bad"); s.Skip != SkipSnapshotNotReady || s.UnmetSince.IsZero() {
			t.Errorf("the bad one: %+v", s)
		}
		st := p.supply.Status().Templates
		if len(st) != 2 || st[0].Phase != TemplateFailed || st[0].Step != "Setup" || st[0].Output != "no rule" || st[0].RetryAt.IsZero() || st[1].Phase != TemplateReady {
			t.Errorf("templates %+v", st)
		}
		if _, err := p.supply.Acquire(t.Context(), templateRequest("pod", bad)); ReasonOf(err) != ReasonSnapshotFailed {
			t.Errorf("acquire: %v", err)
		} else if step := (*recipe.StepError)(nil); !errors.As(err, &step) {
			t.Errorf("the step is lost: %v", err)
		}
		tries := p.host.count("build")
		pass(time.Hour)
		if n := p.host.count("build") - tries; n < 5 || n > 15 {
			t.Errorf("tried %d times in an hour", n)
		}
		p.host.setFault(nil)
		pass(20 * time.Minute)
		if s := p.pool("bad"); s.Ready != 2 {
			t.Errorf("when it can be built: %+v", s)
		}
		p.stop()
	})
}

// TestFailingTargetLeavesOthersAlone: restores of one template always fail.
func TestFailingTargetLeavesOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Refills = 2 })
		bad, good := template("bad", "r1"), template("good", "r1")
		var broken sync.Map
		p.host.setFault(func(op, id string) error {
			if op == "rehearse" && p.host.machine(id).cfg.Images[0] == "/images/sha256:bad:1" {
				if _, ok := broken.Load("fixed"); !ok {
					return errBoom
				}
			}
			return nil
		})
		p.run(target("bad", bad, 2, 100), target("bad2", bad, 2, 100), target("good", good, 5, 0))
		pass(10 * time.Second)
		if s := p.pool("good"); s.Ready != 5 {
			t.Errorf("the good one: %+v", s)
		}
		if s := p.pool("bad"); s.Skip != SkipBackoff || s.Message == "" {
			t.Errorf("the bad one: %+v", s)
		}
		pass(20 * time.Minute)
		tries := p.host.count("rehearse")
		pass(time.Hour)
		if n := p.host.count("rehearse") - tries; n < 4 || n > 12 {
			t.Errorf("the breaker let %d through in an hour", n)
		}
		broken.Store("fixed", true)
		pass(20 * time.Minute)
		if a, b := p.pool("bad"), p.pool("bad2"); a.Ready != 2 || b.Ready != 2 || a.Skip != "" {
			t.Errorf("after it works again: %+v, %+v", a, b)
		}
		p.stop()
	})
}

func TestDiskFloor(t *testing.T) {
	const floor = 20 << 30
	if DefaultRefillFloorBytes != floor {
		t.Errorf("the floor is %d", DefaultRefillFloorBytes)
	}
	for _, c := range []struct {
		name string
		free int64
		err  error
		full bool
	}{
		{"just below", floor - floor/200, nil, false},
		{"one byte below", floor - 1, nil, false},
		{"exactly", floor, nil, true},
		{"above", floor + 1, nil, true},
		{"not known", 0, errBoom, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPooled(t, func(o *Options) { o.FreeBytes = func() (int64, error) { return c.free, c.err } })
				p.run(target("a", template("a", "r1"), 1, 0))
				pass(time.Minute)
				s := p.pool("a")
				if (s.Ready == 1) != c.full || !c.full && (s.Skip != SkipDiskPressure || p.host.count("restore") != 0 || s.Message == "") {
					t.Errorf("%+v", s)
				}
				if _, err := p.supply.Acquire(t.Context(), request("pod")); err != nil {
					t.Errorf("a pod has the store's own floor: %v", err)
				}
				p.stop()
			})
		})
	}
}

// TestMaxAge: entries that are too old are replaced, and the pool keeps its floor.
func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Tick = 24 * time.Hour })
		tgt := target("a", template("a", "r1"), 2, 0)
		tgt.MaxAge = time.Hour
		p.run(tgt)
		pass(time.Minute)
		before := p.host.ids()
		least := 2
		for range 200 {
			pass(time.Minute)
			least = min(least, p.pool("a").Ready)
		}
		if s := p.pool("a"); s.Ready != 2 || least < 2 || p.watch.evicted[EvictAged] != 6 {
			t.Errorf("%+v, least %d, evicted %v", s, least, p.watch.evicted)
		}
		for _, id := range before {
			if p.host.machine(id) != nil {
				t.Errorf("%s is still there", id)
			}
		}
		p.stop()
	})
}

// TestTargetsGo: fewer entries, then none; what pods have stays.
func TestTargetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 4, 0))
		pass(time.Minute)
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		p.supply.SetTargets([]Target{target("a", tmpl, 1, 0)})
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 1 || s.Active != 1 {
			t.Errorf("%+v", s)
		}
		p.supply.SetTargets(nil)
		pass(time.Minute)
		if got := p.host.ids(); !slices.Equal(got, []string{l.MachineID()}) {
			t.Errorf("left %v", got)
		}
		if err := l.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if err := p.consistent(true); err != nil {
			t.Error(err)
		}
		if len(p.host.images) != 0 || len(p.supply.ledger.shelves.pools) != 0 || len(p.supply.templates.states) != 0 {
			t.Errorf("left: images %v, pools %v, templates %v", p.host.images, p.supply.ledger.shelves.pools, p.supply.templates.states)
		}
		for key, n := range p.host.pins {
			if n != 0 {
				t.Errorf("snapshot %s is pinned %d times", key, n)
			}
		}
		p.stop()
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 4, 0))
		pass(time.Minute)
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.supply.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.supply.SetTargets([]Target{target("a", tmpl, 4, 0)}) // for later
		pass(time.Minute)
		if got := p.host.ids(); !slices.Equal(got, []string{l.MachineID()}) {
			t.Errorf("left %v", got)
		}
		p.stop()
		// Before Start, what an earlier process left.
		p.start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := p.supply.Drain(ctx); err != nil {
			t.Error(err)
		}
		p.stop()
	})
}
