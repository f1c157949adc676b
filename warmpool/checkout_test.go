// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestCheckoutIsFirstInFirstOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Refills = 1 })
		p.host.setDelay(func(op, _ string) time.Duration { return map[string]time.Duration{"restore": time.Second}[op] })
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 3, 0))
		pass(time.Minute)
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
		pass(time.Minute)
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
		pass(time.Minute)
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
				pass(time.Minute)
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
				pass(time.Hour)
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

func TestOutdatedEntryNeedsAllImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.run(target("a", template("a", "r1"), 2, 0))
		pass(time.Minute)
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
		pass(time.Minute)
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
		pass(time.Minute)
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

// TestNoMachineIsGivenTwice: a machine that a pod has had is deleted, whatever became of the pod; what
// the pool gives to the next one was restored anew from its template's snapshot.
func TestNoMachineIsGivenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		given := map[string]bool{}
		for i := range 5 {
			pass(time.Minute)
			l, err := p.supply.Acquire(t.Context(), templateRequest(fmt.Sprint("pod-", i), tmpl))
			if err != nil {
				t.Fatal(err)
			}
			if l.Path() != PathWarm || given[l.MachineID()] {
				t.Errorf("pod %d has %s by path %s, given before: %t", i, l.MachineID(), l.Path(), given[l.MachineID()])
			}
			given[l.MachineID()] = true
			if err := l.Release(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			for _, e := range p.supply.ledger.shelves.pools["ns/a"].ready {
				if given[e.id()] {
					t.Errorf("%s is warm again", e.id())
				}
			}
		}
		p.stop()
	})
}
