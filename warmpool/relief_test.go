// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"testing"
	"testing/synctest"
	"time"
)

// Under pressure pools are not filled, what they have goes one by one and the least loss
// first, and when it is over they are filled again.
func TestPressAndShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		kept := target("kept", template("c", "r1"), 1, -9)
		kept.Reclaim = ReclaimNever
		p.run(target("low", template("a", "r1"), 1, 0), target("high", template("b", "r1"), 1, 5), kept)
		pass(time.Minute)
		p.supply.Press(Skip{Reason: SkipMemoryPressure, Message: "short of memory"})
		for i, want := range []struct {
			reserved, gone  bool
			low, high, kept int
		}{
			{true, true, 0, 1, 1}, {false, true, 0, 0, 1}, {false, false, 0, 0, 1}, {true, true, 0, 0, 0}, {true, false, 0, 0, 0},
		} {
			gone, err := p.supply.Shed(t.Context(), want.reserved)
			machines := len(p.host.ids()) // it has waited
			pass(time.Minute)
			low, high, kept := p.pool("low"), p.pool("high"), p.pool("kept")
			if err != nil || gone != want.gone || low.Ready != want.low || high.Ready != want.high || kept.Ready != want.kept || machines != want.low+want.high+want.kept {
				t.Fatalf("%d: %v, %v, %d machines, %+v, %+v, %+v", i, gone, err, machines, low, high, kept)
			}
			if low.Skip != SkipMemoryPressure || low.Message != "short of memory" {
				t.Errorf("%d: skip %q: %q", i, low.Skip, low.Message)
			}
		}
		if n := p.watch.evicted[EvictPressure]; n != 3 {
			t.Errorf("%d evictions are told", n)
		}
		if _, err := p.supply.Acquire(t.Context(), request("pod")); err != nil {
			t.Errorf("a pod that is admitted gets its machine: %v", err)
		}
		p.supply.Press(Skip{})
		pass(time.Minute)
		for _, name := range []string{"low", "high", "kept"} {
			if s := p.pool(name); s.Ready != 1 || s.Skip != "" {
				t.Errorf("afterwards: %+v", s)
			}
		}
		p.stop()
	})
}

// What is being restored goes first, and is waited for.
func TestShedInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Refills = 1 })
		p.host.setDelay(func(op, _ string) time.Duration {
			if op == "restore" && p.host.count("restore") > 1 {
				return time.Hour
			}
			return 0
		})
		p.run(target("a", template("a", "r1"), 2, 0))
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 1 || s.Restoring != 1 {
			t.Fatalf("%+v", s)
		}
		p.supply.Press(Skip{Reason: SkipDiskPressure})
		if gone, err := p.supply.Shed(t.Context(), false); !gone || err != nil {
			t.Fatal(gone, err)
		}
		if s := p.pool("a"); s.Ready != 1 || s.Restoring != 0 || len(p.host.ids()) != 1 {
			t.Errorf("%+v, machines %v", s, p.host.ids())
		}
		p.stop()
	})
}
