// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// macOSTemplate is a template of macOS guests.
func macOSTemplate(name, revision string) Template {
	t := template(name, revision)
	t.GuestOS = vm.GuestMacOS
	return t
}

// newMac is a node that runs two macOS guests at once.
func newMac(t *testing.T, change func(*Options)) *pooled {
	t.Helper()
	p := newPooled(t, func(o *Options) {
		o.Capacity.Slots = 2
		if change != nil {
			change(o)
		}
	})
	p.host.guests = 2
	p.host.setDelay(func(op, _ string) time.Duration {
		return map[string]time.Duration{"build": time.Minute, "restore": time.Second}[op]
	})
	return p
}

func (p *pooled) slots(active, warm, available int64) {
	p.t.Helper()
	a := p.supply.Ledger()
	if a.Active.Slots != active || a.Warm.Slots != warm || a.Available.Slots != available {
		p.t.Errorf("slots are %d active, %d warm, %d available, want %d, %d, %d", a.Active.Slots, a.Warm.Slots, a.Available.Slots, active, warm, available)
	}
}

// TestSlotsThroughAPool: build, warm entries, checkout and release each have their slot.
func TestSlotsThroughAPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, nil)
		tmpl := macOSTemplate("mac", "r1")
		p.run(target("mac", tmpl, 2, 0))
		pass(30 * time.Second)
		p.slots(0, 1, 1) // the build
		pass(2 * time.Minute)
		p.slots(0, 2, 0)
		if s := p.pool("mac"); s.Ready != 2 {
			t.Fatalf("not filled: %+v", s)
		}
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod-1", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		if l.Path() != PathWarm {
			t.Errorf("it came by %s", l.Path())
		}
		pass(time.Minute)
		p.slots(1, 1, 0)
		if s := p.pool("mac"); s.Ready != 1 || s.Skip != SkipInsufficientCapacity || !strings.Contains(s.Message, "macOS guest slots") {
			t.Errorf("while a pod has the other: %+v", s)
		}
		if err := l.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		p.slots(0, 2, 0)
		if p.host.limited > 0 {
			t.Errorf("the host refused %d times", p.host.limited)
		}
		p.stop()
	})
}

// TestPodsEvictForASlot: a pod of another template takes the slot of an entry that gives
// way, and is refused by name where none does.
func TestPodsEvictForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, func(o *Options) { o.QueueWait = 10 * time.Second })
		kept := target("kept", macOSTemplate("kept", "r1"), 1, 0)
		kept.Reclaim = ReclaimNever
		p.run(kept, target("gives", macOSTemplate("gives", "r1"), 1, 0))
		pass(5 * time.Minute)
		p.slots(0, 2, 0)
		other := macOSTemplate("other", "r1")
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod-1", other))
		if err != nil {
			t.Fatal(err)
		}
		p.slots(1, 1, 0)
		if p.pool("kept").Ready != 1 || p.pool("gives").Ready != 0 {
			t.Errorf("kept %+v, gives %+v", p.pool("kept"), p.pool("gives"))
		}
		_, err = p.supply.Acquire(t.Context(), templateRequest("pod-2", other))
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Reason != ReasonInsufficientCapacity || refusal.Resource != "slots" || refusal.Final() {
			t.Errorf("error is %v, want a refusal for slots", err)
		}
		if err := l.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		p.stop()
	})
}

// TestNoSlots: a node without macOS guests refuses for good.
func TestNoSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		_, err := p.supply.Acquire(t.Context(), templateRequest("pod-1", macOSTemplate("mac", "r1")))
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Reason != ReasonOversized || refusal.Resource != "slots" {
			t.Errorf("error is %v, want Oversized for slots", err)
		}
		p.stop()
	})
}

// TestNewRevisionOnAFullNode: the old revision's entries have both slots, and the new one's
// snapshot is built all the same.
func TestNewRevisionOnAFullNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, nil)
		tgt := target("mac", macOSTemplate("mac", "r1"), 2, 0)
		tgt.MaxSurge, tgt.MaxUnavailable = 0, 1
		p.run(tgt)
		pass(5 * time.Minute)
		p.slots(0, 2, 0)
		tgt.Template.Revision = "r2"
		p.supply.SetTargets([]Target{tgt})
		pass(30 * time.Second)
		if s := p.pool("mac"); s.Ready != 1 || s.Outdated != 1 {
			t.Errorf("while the new snapshot is built: %+v", s)
		}
		pass(5 * time.Minute)
		if s := p.pool("mac"); s.Ready != 2 || s.Outdated != 0 {
			t.Errorf("after a while: %+v", s)
		}
		if p.host.limited > 0 {
			t.Errorf("the host refused %d times", p.host.limited)
		}
		p.stop()
	})
}

// TestLeakedSlots: a slot that the host does not give back is not offered, is tried again
// with growing pauses, and comes back.
func TestLeakedSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, nil)
		p.host.leak(1)
		tmpl := macOSTemplate("mac", "r1")
		p.run(target("mac", tmpl, 2, 0))
		pass(time.Hour)
		p.slots(0, 1, 0)
		a := p.supply.Ledger()
		if a.Capacity.Slots != 1 || a.Withheld.Slots != 1 || !strings.Contains(a.Withheld.Message, "restart of the host") || !a.Withheld.Until.After(time.Now()) {
			t.Errorf("account %+v", a)
		}
		if s := p.pool("mac"); s.Ready != 1 || s.Skip != SkipInsufficientCapacity {
			t.Errorf("pool %+v", s)
		}
		if n := p.host.limited; n < 5 || n > 25 {
			t.Errorf("the host was tried %d times in an hour", n)
		}
		// A checkout does not try the host.
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod-1", tmpl))
		if err != nil || l.Path() != PathWarm {
			t.Fatalf("checkout beside a leaked slot: %v", err)
		}
		p.host.leak(0)
		pass(10 * time.Minute)
		p.slots(1, 1, 0)
		if a := p.supply.Ledger(); a.Withheld != (Withheld{}) || a.Capacity.Slots != 2 {
			t.Errorf("after it came back: %+v", a)
		}
		if n := p.supply.ledger.limit.backoff.failures; n != 0 {
			t.Errorf("%d refusals are still held against the host", n)
		}
		p.stop()
	})
}

// TestPodWaitsForALeakedSlot: a pod that the host refuses keeps its turn while it may wait,
// and is refused for lack of slots after that.
func TestPodWaitsForALeakedSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, func(o *Options) { o.QueueWait = 10 * time.Minute })
		p.run()
		tmpl := macOSTemplate("mac", "r1")
		p.host.leak(2)
		_, err := p.supply.Acquire(t.Context(), templateRequest("pod-1", tmpl))
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Reason != ReasonInsufficientCapacity || refusal.Resource != "slots" || refusal.Final() {
			t.Errorf("error is %v, want a refusal for slots", err)
		}
		if n := p.host.limited; n > 10 {
			t.Errorf("the host was tried %d times", n)
		}
		p.slots(0, 0, 0)
		pass(10 * time.Minute)
		p.slots(0, 0, 2) // nobody tries, so both are offered
		done := make(chan error, 1)
		go func() {
			l, err := p.supply.Acquire(context.Background(), templateRequest("pod-2", tmpl))
			if err == nil {
				err = l.Release(context.Background(), 0)
			}
			done <- err
		}()
		pass(time.Second)
		p.host.leak(0)
		if err := <-done; err != nil {
			t.Errorf("after it came back: %v", err)
		}
		p.stop()
	})
}

// TestLinuxGoesPastASlot: who waits for a slot only does not keep others waiting, nor pools
// from being filled.
func TestLinuxGoesPastASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, func(o *Options) { o.QueueWait = time.Hour })
		mac := macOSTemplate("mac", "r1")
		p.run(target("linux", template("linux", "r1"), 3, 0))
		var held []*Lease
		for _, id := range []string{"pod-1", "pod-2"} {
			l, err := p.supply.Acquire(t.Context(), templateRequest(id, mac))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, l)
		}
		done := make(chan error, 1)
		go func() {
			l, err := p.supply.Acquire(context.Background(), templateRequest("pod-3", mac))
			if err == nil {
				err = l.Release(context.Background(), 0)
			}
			done <- err
		}()
		pass(5 * time.Minute)
		if s := p.pool("linux"); s.Ready != 3 {
			t.Errorf("pool %+v", s)
		}
		start := time.Now()
		l, err := p.supply.Acquire(t.Context(), request("pod-4"))
		if err != nil || time.Since(start) > 2*time.Minute {
			t.Errorf("a pod without a slot: %v after %s", err, time.Since(start))
		} else {
			held = append(held, l)
		}
		for _, l := range held {
			if err := l.Release(t.Context(), 0); err != nil {
				t.Error(err)
			}
		}
		if err := <-done; err != nil {
			t.Errorf("the one that waited: %v", err)
		}
		p.stop()
	})
}

// TestMacOSPullTakesNoSlot: the installation is pulled before anything is evicted for its
// build, and a pull that fails is told as one.
func TestMacOSPullTakesNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, nil)
		p.host.setDelay(func(op, _ string) time.Duration {
			return map[string]time.Duration{"pull": time.Hour, "build": time.Minute, "restore": time.Second}[op]
		})
		fails := true
		p.host.setFault(func(op, _ string) error {
			if op == "pull" && fails {
				fails = false
				return errBoom
			}
			return nil
		})
		p.run(target("mac", macOSTemplate("mac", "r1"), 1, 0))
		pass(30 * time.Minute)
		p.slots(0, 0, 2)
		if st := p.supply.Status().Templates; len(st) != 1 || st[0].Phase != TemplateBuilding {
			t.Errorf("while it is pulled: %+v", st)
		}
		pass(30*time.Minute + time.Second)
		if st := p.supply.Status().Templates; len(st) != 1 || st[0].Phase != TemplateFailed || st[0].Step != "Pull" || st[0].RetryAt.IsZero() {
			t.Errorf("after it failed: %+v", st)
		}
		pass(2 * time.Hour)
		p.slots(0, 1, 1)
		p.stop()
	})
}

// TestOtherGuestIsNoEntry: an entry of an earlier revision is not given when the template
// has become one of macOS guests.
func TestOtherGuestIsNoEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMac(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(5 * time.Minute)
		tmpl.Revision, tmpl.GuestOS = "r2", vm.GuestMacOS
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod-1", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		if l.Path() == PathWarm {
			t.Error("a pod of a macOS template got a Linux machine")
		}
		if err := l.Release(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		p.stop()
	})
}
