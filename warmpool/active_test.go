// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Nothing that pools need, or that happens to them, ends a machine that a pod has, however it
// came by it: neither pools of higher priority that are kept from pods, nor other revisions, nor
// age, nor pressure, nor a smaller capacity, nor their end, nor a restart.
func TestPoolsNeverEndPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) {
			o.Capacity = Budget{MilliCPU: 64_000, MemoryBytes: 8 * smallShape.MemoryBytes}
		})
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 3, 0))
		pass(time.Minute)
		requests := []Request{templateRequest("pod-warm-1", tmpl), templateRequest("pod-warm-2", tmpl), templateRequest("pod-restored", tmpl), templateRequest("pod-cold", tmpl), request("pod-base")}
		requests[2].Path, requests[3].Path = PathRestore, PathCold
		leases := map[string]*Lease{}
		for _, r := range requests {
			l, err := p.supply.Acquire(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			leases[l.MachineID()] = l
		}
		pass(time.Minute)
		active := p.supply.Ledger().Active
		var mu sync.Mutex
		ended := map[string]string{}
		entries := 0
		p.host.setFault(func(op, id string) error {
			mu.Lock()
			defer mu.Unlock()
			switch op {
			case "delete", "stop", "pause", "unrecord", "forget":
				if leases[id] != nil {
					ended[id] = op
				} else if op == "delete" {
					entries++
				}
			}
			return nil
		})
		still := func(when string) {
			t.Helper()
			pass(10 * time.Minute)
			mu.Lock()
			defer mu.Unlock()
			if len(ended) > 0 {
				t.Errorf("%s: touched: %v", when, ended)
				clear(ended)
			}
			for id, l := range leases {
				m := p.host.machine(id)
				if m == nil {
					t.Fatalf("%s: %s of %s is gone", when, id, l.RequestID())
				}
				if state, err := m.State(t.Context()); err != nil || state != vm.StateRunning || l.conn.Err() != nil {
					t.Errorf("%s: %s is %s, %v, %v", when, l.RequestID(), state, err, l.conn.Err())
				}
			}
			if a := p.supply.Ledger().Active; a != active {
				t.Errorf("%s: pods have %+v, had %+v", when, a, active)
			}
		}
		vip := target("vip", template("b", "r1"), 8, 1000)
		vip.Reclaim = ReclaimNever
		p.supply.SetTargets([]Target{vip, target("a", tmpl, 3, 0)})
		still("another pool wants all of the node")
		if s := p.pool("vip"); s.Ready != 3 || s.Skip != SkipInsufficientCapacity {
			t.Errorf("the other pool has %+v", s)
		}
		aged := target("a", template("a", "r2"), 3, 2000)
		aged.MaxAge = time.Minute
		p.supply.SetTargets([]Target{vip, aged})
		still("there is another revision, and entries age")
		p.supply.Press(Skip{Reason: SkipMemoryPressure})
		for more := true; more; {
			var err error
			if more, err = p.supply.Shed(t.Context(), true); err != nil {
				t.Fatal(err)
			}
		}
		still("the host is short, and all entries are gone")
		p.supply.Press(Skip{})
		still("and has enough again")
		if err := p.supply.SetCapacity(Budget{MilliCPU: 1, MemoryBytes: 1}); err != nil {
			t.Fatal(err)
		}
		still("the node is smaller than its pods")
		if err := p.supply.SetCapacity(p.opts.Capacity); err != nil {
			t.Fatal(err)
		}
		p.supply.SetTargets(nil)
		still("there are no pools")
		p.supply.SetTargets([]Target{vip})
		pass(time.Minute)
		p.stop()
		p.start()
		p.wantLook(survey(requests...), func() map[string]Verdict {
			want := map[string]Verdict{}
			for id := range leases {
				want[id] = VerdictRecover
			}
			return want
		}())
		p.supply.SetTargets([]Target{vip})
		if err := p.supply.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, r := range requests {
			l, err := p.supply.Adopt(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			leases[l.MachineID()] = l
		}
		still("after a restart")
		if err := p.supply.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		still("the pools are drained")
		if entries < 8 {
			t.Errorf("%d entries have ended: this proves little", entries)
		}
		p.stop()
	})
}
