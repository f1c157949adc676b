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
		time.Sleep(5 * time.Minute)
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
		time.Sleep(time.Minute)
		s := p.pool("a")
		if s.Ready != 0 || s.Active != 10 || s.Skip != SkipInsufficientCapacity || s.Message == "" || s.UnmetSince.IsZero() {
			t.Errorf("while all room is taken: %+v", s)
		}
		for _, l := range leases {
			if err := l.Release(t.Context(), 0); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute)
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

func TestCheckoutIsFirstInFirstOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Refills = 1 })
		p.host.setDelay(func(op, _ string) time.Duration { return map[string]time.Duration{"restore": time.Second}[op] })
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 3, 0))
		time.Sleep(time.Minute)
		var order []string
		for _, e := range p.supply.ledger.shelves.pools["ns/a"].ready {
			order = append(order, e.id())
		}
		p.supply.SetTargets([]Target{target("a", tmpl, 0, 0)}) // no more
		var got []string
		for i := range 3 {
			l, err := p.supply.Acquire(t.Context(), templateRequest(fmt.Sprint("pod-", i), tmpl))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, l.MachineID())
		}
		if !slices.Equal(got, order) {
			t.Errorf("checked out %v, restored %v", got, order)
		}
		p.stop()
	})
}

// TestCheckoutPreference: which pool gives an entry when several have one.
func TestCheckoutPreference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		never := target("never", tmpl, 1, 0)
		never.Reclaim = ReclaimNever
		p.run(never, target("high", tmpl, 1, 100), target("low", tmpl, 1, 1))
		time.Sleep(time.Minute)
		p.host.setFault(func(op, _ string) error {
			if op == "restore" {
				return errBoom
			}
			return nil
		})
		for i, want := range []string{"low", "high", "never"} {
			l, err := p.supply.Acquire(t.Context(), templateRequest(fmt.Sprint("pod-", i), tmpl))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.pool(want); got.Active != 1 {
				t.Errorf("checkout %d was not from %s", i, want)
			}
			if l.Age() <= 0 || l.Timings().Agent < 0 {
				t.Errorf("age %s, timings %+v", l.Age(), l.Timings())
			}
		}
		p.stop()
	})
}

func TestRequestNamesItsPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("one", tmpl, 1, 0), target("two", tmpl, 1, 9))
		time.Sleep(time.Minute)
		req := templateRequest("pod", tmpl)
		req.Pool = "ns/two"
		if _, err := p.supply.Acquire(t.Context(), req); err != nil || p.pool("two").Active != 1 {
			t.Errorf("%v, %+v", err, p.pool("two"))
		}
		p.stop()
	})
}

// TestDeadEntries: what does not answer is discarded, the next is tried, and a machine
// is restored when none answers.
func TestDeadEntries(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(p *pooled, m *memoryMachine)
		dead  int // of 4
		path  Path
	}{
		{"one ended", func(_ *pooled, m *memoryMachine) { m.exit() }, 1, PathWarm},
		{"two hang", func(_ *pooled, m *memoryMachine) { m.hang() }, 2, PathWarm},
		{"all ended", func(_ *pooled, m *memoryMachine) { m.exit() }, 4, PathRestore},
		{"all hang", func(_ *pooled, m *memoryMachine) { m.hang() }, 4, PathRestore},
		{"cannot be refreshed", func(p *pooled, m *memoryMachine) {
			p.host.setFault(func(op, id string) error {
				if op == "refresh" {
					return errBoom
				}
				return nil
			})
		}, 4, PathRestore},
		{"cannot be recorded", func(p *pooled, m *memoryMachine) {
			done := 0
			p.host.setFault(func(op, id string) error {
				if op == "record" && done < 3 {
					done++
					return errBoom
				}
				return nil
			})
		}, 4, PathRestore},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPooled(t, nil)
				tmpl := template("a", "r1")
				p.run(target("a", tmpl, 4, 0))
				time.Sleep(time.Minute)
				ready := slices.Clone(p.supply.ledger.shelves.pools["ns/a"].ready)
				for _, e := range ready[:c.dead] {
					c.spoil(p, p.host.machine(e.id()))
				}
				l, err := p.supply.Acquire(t.Context(), templateRequest("pod", tmpl))
				if err != nil {
					t.Fatal(err)
				}
				if l.Path() != c.path || len(l.Notices()) != min(c.dead, deadEntries) {
					t.Errorf("path %s, notices %v", l.Path(), l.Notices())
				}
				p.host.setFault(nil)
				time.Sleep(time.Hour)
				if err := p.consistent(true); err != nil {
					t.Error(err)
				}
				if s := p.pool("a"); s.Ready+s.Restoring != 4 {
					t.Errorf("not refilled: %+v", s)
				}
				if n := p.watch.evicted[EvictDead]; n != min(c.dead, deadEntries) {
					t.Errorf("%d dead entries told", n)
				}
				p.stop()
			})
		})
	}
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
		time.Sleep(time.Minute)
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
		time.Sleep(time.Minute)
		if err := l.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
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
		time.Sleep(time.Minute)
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
		time.Sleep(time.Minute)
		if s := p.pool("low"); s.Ready != 4 || s.Skip != SkipInsufficientCapacity {
			t.Fatalf("%+v", s)
		}
		p.supply.SetTargets([]Target{low, high})
		time.Sleep(time.Minute)
		for range 5 {
			if h, l := p.pool("high"), p.pool("low"); h.Ready != 2 || l.Ready != 0 {
				t.Fatalf("high %+v, low %+v", h, l)
			}
			lease, err := p.supply.Acquire(t.Context(), templateRequest("pod", big))
			if err != nil || lease.Path() != PathWarm {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if err := lease.Release(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
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
				time.Sleep(10 * time.Minute)
				tgt.Template.Revision = "r2"
				p.supply.SetTargets([]Target{tgt})
				time.Sleep(30 * time.Second)
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
					time.Sleep(100 * time.Millisecond)
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

func TestOutdatedEntryNeedsAllImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.run(target("a", template("a", "r1"), 2, 0))
		time.Sleep(time.Minute)
		next := template("a", "r2")
		next.Images = append(next.Images, "extra:1")
		req := templateRequest("pod", next)
		l, err := p.supply.Acquire(t.Context(), req)
		if err != nil || l.Path() != PathBuild {
			t.Errorf("needs an image that the outdated entries do not have: %v, %v", l.Path(), err)
		}
		req.MachineID, req.Refs = "pod-2", []string{"a:1"}
		if l, err = p.supply.Acquire(t.Context(), req); err != nil || l.Path() != PathWarm {
			t.Errorf("needs only what they have: %v", err)
		}
		p.stop()
	})
}

func TestPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		time.Sleep(time.Minute)
		for _, c := range []struct{ ask, got Path }{{PathRestore, PathRestore}, {PathCold, PathCold}, {"", PathWarm}} {
			req := templateRequest("pod-"+string(c.got), tmpl)
			req.Path = c.ask
			l, err := p.supply.Acquire(t.Context(), req)
			if err != nil || l.Path() != c.got {
				t.Fatalf("%q: %v", c.ask, err)
			}
			if i := l.Images(); len(i) != 1 || i[0].Ref != "a:1" || p.host.machine(l.MachineID()).cfg.Images[0] != i[0].DiskPath {
				t.Errorf("%q: images %v", c.ask, i)
			}
		}
		if p.watch.samples[MetricWarmPoolCheckout] != 1 {
			t.Errorf("samples %v", p.watch.samples)
		}
		p.stop()
	})
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
		time.Sleep(5 * time.Second)
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
		time.Sleep(time.Hour)
		if n := p.host.count("build") - tries; n < 5 || n > 15 {
			t.Errorf("tried %d times in an hour", n)
		}
		p.host.setFault(nil)
		time.Sleep(20 * time.Minute)
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
		time.Sleep(10 * time.Second)
		if s := p.pool("good"); s.Ready != 5 {
			t.Errorf("the good one: %+v", s)
		}
		if s := p.pool("bad"); s.Skip != SkipBackoff || s.Message == "" {
			t.Errorf("the bad one: %+v", s)
		}
		time.Sleep(20 * time.Minute)
		tries := p.host.count("rehearse")
		time.Sleep(time.Hour)
		if n := p.host.count("rehearse") - tries; n < 4 || n > 12 {
			t.Errorf("the breaker let %d through in an hour", n)
		}
		broken.Store("fixed", true)
		time.Sleep(20 * time.Minute)
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
				time.Sleep(time.Minute)
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
		time.Sleep(time.Minute)
		before := p.host.ids()
		least := 2
		for range 200 {
			time.Sleep(time.Minute)
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
		time.Sleep(time.Minute)
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		p.supply.SetTargets([]Target{target("a", tmpl, 1, 0)})
		time.Sleep(time.Minute)
		if s := p.pool("a"); s.Ready != 1 || s.Active != 1 {
			t.Errorf("%+v", s)
		}
		p.supply.SetTargets(nil)
		time.Sleep(time.Minute)
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
		time.Sleep(time.Minute)
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.supply.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.supply.SetTargets([]Target{target("a", tmpl, 4, 0)}) // ignored
		time.Sleep(time.Minute)
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

func TestOnDemandDoesNotQueueBehindRefills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Restores, o.Refills = 1, 4 })
		p.host.setDelay(func(op, id string) time.Duration {
			if op != "restore" {
				return 0
			}
			if isWarmID(id) {
				return time.Hour
			}
			return time.Second
		})
		p.run(target("a", template("a", "r1"), 8, 0))
		time.Sleep(time.Minute)
		if s := p.pool("a"); s.Restoring != 4 {
			t.Fatalf("%+v", s)
		}
		start := time.Now()
		if l, err := p.supply.Acquire(t.Context(), templateRequest("pod", template("a", "r1"))); err != nil || l.Path() != PathRestore {
			t.Fatal(err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s", took)
		}
		p.stop()
	})
}
