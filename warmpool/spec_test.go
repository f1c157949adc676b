// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// The rows of the reference's warm_pool.rs and the tests that hold them here. Rows that
// are not in the list are of other packages (manifest, samples as JSON: vm/snapshot and
// provider/metrics).
//
//	restore request, session launcher      TestRefillAsksForWhatTheTargetSays, TestRefillFails
//	checkout request, session checkout,
//	checkout report                        TestCheckoutReport
//	maintenance error, checkout error      TestRefillFails, TestDeadEntries, TestPromotionTakesTheDifference
//	maintenance report                     TestRefillAsksForWhatTheTargetSays
//	checkout result is absent              TestEmptyPoolIsNoCheckout
//	maintain leaves no live session        TestRefillFails
//	checkout: totals unchanged, not lost   TestPromotionTakesTheDifference, TestDeadEntries
//	missing retained session               cannot be: one queue holds entry and machine
//	pool: ledger and sessions agree        TestPoolProperties
//	maintain and the 20 GiB floor          TestDiskFloor, TestPressureMessage
//	checkout is FIFO                       TestCheckoutIsFirstInFirstOut
//	replenish reports partition            TestPlanPartitions, TestFailingTargetLeavesOthersAlone
//	supervisor runs cycles at intervals    TestPoolIsEmptiedAtOnceAndRefilled: changes trigger it, TestTick
//	service: tick, checkout, tick refills  TestPoolIsEmptiedAtOnceAndRefilled
//	tick skips while active is full        TestPoolIsEmptiedAtOnceAndRefilled
//	handle: shutdown is bounded            TestShutdownWhileRefilling
//	active reservation released once       TestReservationOnlyMovesForward, TestPromotionTakesTheDifference
//	capacity ledger                        TestLedgerRefusals, TestLedgerProperties
//	warm ledger                            TestCheckoutIsFirstInFirstOut, TestTargetsGo; eviction is by
//	                                       priority and not by key: TestCheapest
//	replenishment target, plan, skip       TestPlan

func TestRefillAsksForWhatTheTargetSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tgt := target("a", template("a", "r1"), 1, 0)
		tgt.Template.Images = []string{"a:1", "b:2"}
		p.run(tgt)
		pass(time.Minute)
		e := p.supply.ledger.shelves.pools["ns/a"].ready[0]
		m := p.host.machine(e.id())
		if got := strings.Join(m.cfg.Images, " "); got != "/images/sha256:a:1 /images/sha256:b:2" || m.cfg.Shape != smallShape {
			t.Errorf("restored with %+v", m.cfg)
		}
		if !p.host.snapshots["ns/a@r1 sha256:a:1 sha256:b:2"] || p.host.count("build") != 1 {
			t.Errorf("from %v", p.host.snapshots)
		}
		if s, _ := m.State(t.Context()); s != vm.StatePaused {
			t.Errorf("it is %s", s)
		}
		a := p.supply.Ledger()
		if a.Machines[0].Budget != (Budget{MemoryBytes: smallShape.MemoryBytes}) || a.Machines[0].Machine != e.id() || a.Machines[0].Pool != "ns/a" || a.Warm != e.cost {
			t.Errorf("%+v", a)
		}
		for _, want := range []Metric{MetricWarmSnapshotRestore, MetricReadyProbe, MetricRefill} {
			if p.watch.samples[want] != 1 {
				t.Errorf("%d samples of %s", p.watch.samples[want], want)
			}
		}
		p.stop()
	})
}

// TestRefillFails at every phase: no machine and no room is left, and the pool is filled
// when it works again.
func TestRefillFails(t *testing.T) {
	for _, op := range []string{"pull", "build", "restore", "prove", "rehearse", "pause", "record", "prove|delete", "rehearse|delete", "rehearse|unrecord", "rehearse|forget"} {
		for _, hangs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s hangs %v", op, hangs), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPooled(t, func(o *Options) { o.Capacity.MemoryBytes = 256 * mi })
					ops := strings.Split(op, "|")
					p.host.setFault(func(op, _ string) error {
						if slices.Contains(ops, op) {
							return errBoom
						}
						return nil
					})
					if hangs {
						p.host.setDelay(func(op, _ string) time.Duration {
							if slices.Contains(ops, op) {
								return 20 * time.Second
							}
							return 0
						})
					}
					p.run(target("a", template("a", "r1"), 1, 0))
					pass(5 * time.Minute)
					s := p.pool("a")
					if s.Ready != 0 || s.Restoring == 0 && s.Skip == "" {
						t.Errorf("%+v", s)
					}
					if err := p.consistent(false); err != nil {
						t.Error(err)
					}
					p.host.setFault(nil)
					p.host.setDelay(nil)
					pass(time.Hour)
					if s := p.pool("a"); s.Ready != 1 || s.Skip != "" {
						t.Errorf("when it works again: %+v", s)
					}
					if err := p.consistent(true); err != nil || len(p.host.ids()) != 1 || len(p.host.images) != 2 || len(p.records.all) != 1 {
						t.Errorf("%v; left %v, images %v, records %v", err, p.host.ids(), p.host.images, p.records.all)
					}
					p.stop()
				})
			})
		}
	}
}

func TestCheckoutReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(time.Minute)
		e := p.supply.ledger.shelves.pools["ns/a"].ready[0]
		req := templateRequest("pod", tmpl)
		req.Budget = Budget{MilliCPU: 250, MemoryBytes: smallShape.MemoryBytes}
		l, err := p.supply.Acquire(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if l.MachineID() != e.id() || l.Age() <= 0 || l.room.entry.Budget != req.Budget || l.room.entry.PodUID != req.PodUID {
			t.Errorf("lease of %s, %+v", l.MachineID(), l.room.entry)
		}
		if p.watch.samples[MetricWarmPoolCheckout] != 1 || p.watch.paths[PathWarm] != 1 {
			t.Errorf("samples %v, paths %v", p.watch.samples, p.watch.paths)
		}
		if n := p.host.count("refresh"); n != 1 {
			t.Errorf("its clock was set %d times", n)
		}
		for range 2 {
			if err := l.Release(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
		}
		if p.watch.samples[MetricKillDelete] != 1 {
			t.Errorf("samples %v", p.watch.samples)
		}
		p.supply.SnapshotBuilt("ns/a", "ns/a@r1 sha256:a:1", time.Minute, time.Second)
		st := p.supply.Status().Templates[0]
		if st.Build != time.Minute || st.Save != time.Second || p.watch.samples[MetricColdTemplateBuild] != 1 || p.watch.samples[MetricSnapshotSave] != 1 {
			t.Errorf("%+v, samples %v", st, p.watch.samples)
		}
		p.stop()
	})
}

func TestEmptyPoolIsNoCheckout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod", template("a", "r1")))
		if err != nil || l.Path() != PathBuild || p.watch.samples[MetricWarmPoolCheckout] != 0 {
			t.Errorf("%v, samples %v", err, p.watch.samples)
		}
		p.stop()
	})
}

// TestTick: what changes without telling is noticed at the next tick.
func TestTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := int64(0)
		p := newPooled(t, func(o *Options) {
			o.FreeBytes = func() (int64, error) { return free, nil }
			o.Tick = time.Minute
		})
		p.run(target("a", template("a", "r1"), 1, 0))
		pass(time.Minute + time.Second)
		synctest.Wait()
		free = 99 << 30
		pass(30 * time.Second)
		if s := p.pool("a"); s.Skip != SkipDiskPressure {
			t.Errorf("%+v", s)
		}
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 1 {
			t.Errorf("%+v", s)
		}
		if n := p.watch.skipped[SkipDiskPressure]; n != 1 {
			t.Errorf("told %d times of one reason", n)
		}
		p.stop()
	})
}

// TestShutdownWhileRefilling: what is not finished is deleted, what is ready stays, and
// no goroutine does.
func TestShutdownWhileRefilling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Refills = 2 })
		p.host.setDelay(func(op, _ string) time.Duration {
			if op == "restore" && p.host.count("restore") > 2 {
				return time.Hour
			}
			return 0
		})
		p.run(target("a", template("a", "r1"), 4, 0))
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 2 || s.Restoring != 2 {
			t.Fatalf("%+v", s)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for range 2 {
			if err := p.supply.Shutdown(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("took %s", took)
		}
		if n := len(p.host.ids()); n != 2 || len(p.records.all) != 2 {
			t.Errorf("left %v", p.host.ids())
		}
		if err := p.supply.Start(t.Context()); ReasonOf(err) != ReasonShutdown {
			t.Errorf("start: %v", err)
		}
		if err := p.supply.Drain(t.Context()); ReasonOf(err) != ReasonShutdown {
			t.Errorf("drain: %v", err)
		}
	})
}

// TestChangesAreTold, once however many there are.
func TestChangesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.run(target("a", template("a", "r1"), 3, 0))
		pass(time.Minute)
		changes := p.supply.Changes()
		<-changes
		pass(10 * time.Minute)
		select {
		case <-changes:
			t.Error("told of a change, and there was none")
		default:
		}
		if _, err := p.supply.Acquire(t.Context(), request("pod")); err != nil {
			t.Fatal(err)
		}
		<-changes
		p.stop()
	})
}

// TestMovedTag: an existing snapshot keeps the images that it was made with.
func TestMovedTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		if _, err := p.supply.Acquire(t.Context(), templateRequest("one", tmpl)); err != nil {
			t.Fatal(err)
		}
		p.host.moved = "-moved"
		l, err := p.supply.Acquire(t.Context(), templateRequest("two", tmpl))
		if err != nil || l.Path() != PathRestore || l.Images()[0].Digest != "sha256:a:1" {
			t.Errorf("%v", err)
		}
		p.stop()
	})
}

func TestTemplateRequestsAreChecked(t *testing.T) {
	p := newPooled(t, func(o *Options) { o.Images = nil })
	tmpl := template("a", "r1")
	for name, change := range map[string]func(*Request){
		"shape":  func(r *Request) { r.Shape.VCPUs++ },
		"images": func(r *Request) { r.Images = []string{"/x"} },
		"path":   func(r *Request) { r.Path = PathAdopt },
		"none":   func(*Request) {}, // a node without images
	} {
		req := templateRequest("pod", tmpl)
		change(&req)
		_, err := p.supply.Acquire(t.Context(), req)
		if r := (*Refusal)(nil); !errors.As(err, &r) || r.Reason != ReasonInvalid || !r.Final() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a := p.supply.Ledger(); len(a.Machines) != 0 || len(p.supply.ledger.claims) != 0 {
		t.Errorf("%+v", a)
	}
}
