// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Records that contradict each other, or of which one cannot be read, keep the node from
// nothing: the machines that may be the wrong ones are in quarantine, the others are taken over.
func TestOddRecords(t *testing.T) {
	for range 8 { // they come in any order
		synctest.Test(t, func(t *testing.T) {
			p := newPooled(t, nil)
			tmpl := template("a", "r1")
			rec := func(machine, request string, bound int64) record {
				return record{
					Machine: machine, Request: request, Bound: time.Unix(bound, 0), PodUID: "uid-" + request, Pool: "ns/a", Namespace: "ns", Name: "a", Revision: "r1",
					Shape: smallShape, Warm: BudgetOf(smallShape), Active: BudgetOf(smallShape), Created: time.Now(),
				}
			}
			p.stop()
			for _, r := range []record{
				rec("warm-entry", "", 1),
				rec("warm-takes-entry", "warm-entry", 1), // no pod has such a request
				rec("warm-good", "pod-good", 1),
				rec("warm-first", "pod-own", 1), // did not answer, and its record could not be removed
				rec("pod-own", "pod-own", 2),
				rec("warm-either", "pod-broken", 1), // or the machine of that id is the pod's
				rec("warm-of-other", "pod-own-2", 1),
				rec("pod-own-2", "pod-third", 1),
			} {
				state := vm.StateRunning
				if r.Request == "" {
					state = vm.StatePaused
				}
				p.leave(r.Machine, state, true)
				if err := p.records.write(r); err != nil {
					t.Fatal(err)
				}
			}
			p.leave("pod-broken", vm.StateRunning, true)
			p.records.spoil("pod-broken", record{})
			p.start() // fails the test when it fails
			if a := p.supply.Ledger(); len(a.Machines) != 9 || a.Active.MemoryBytes+a.Warm.MemoryBytes < 8*smallShape.MemoryBytes {
				t.Errorf("%d machines are charged, with %+v", len(a.Machines), a)
			}
			requests := []Request{templateRequest("pod-good", tmpl), templateRequest("pod-own", tmpl), templateRequest("pod-broken", tmpl), templateRequest("pod-own-2", tmpl), templateRequest("pod-third", tmpl)}
			p.wantLook(survey(requests...), map[string]Verdict{
				"warm-good": VerdictRecover, "pod-own": VerdictRecover, "pod-own-2": VerdictRecover, "warm-first": VerdictCleanup,
				"warm-takes-entry": VerdictQuarantine, "warm-either": VerdictQuarantine, "pod-broken": VerdictQuarantine, "warm-of-other": VerdictQuarantine,
			})
			if a := p.supply.Ledger(); a.Active.MemoryBytes != 8*smallShape.MemoryBytes || a.Warm.MemoryBytes != smallShape.MemoryBytes {
				t.Errorf("charged: %+v", a)
			}
			for _, request := range []string{"pod-broken", "pod-own-2", "warm-entry", "warm-takes-entry"} {
				if l, err := p.supply.Adopt(t.Context(), templateRequest(request, tmpl)); err == nil {
					t.Errorf("%s was given machine %s", request, l.MachineID())
				}
			}
			for request, machine := range map[string]string{"pod-good": "warm-good", "pod-own": "pod-own", "pod-third": "pod-own-2"} {
				if l, err := p.supply.Adopt(t.Context(), templateRequest(request, tmpl)); err != nil || l.MachineID() != machine {
					t.Errorf("adopt %s: %v", request, err)
				}
			}
			if err := p.supply.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s := p.pool("a"); s.Ready != 1 {
				t.Errorf("the entry was not taken over: %+v", s)
			}
			for _, id := range []string{"warm-takes-entry", "warm-either", "pod-broken", "warm-of-other", "warm-first"} {
				if err := p.supply.Discard(t.Context(), id); err != nil {
					t.Errorf("discard %s: %v", id, err)
				}
			}
			if a := p.supply.Ledger(); a.Active.MemoryBytes != 3*smallShape.MemoryBytes || len(p.supply.Quarantined()) != 0 {
				t.Errorf("afterwards: %+v, in quarantine %+v", a, p.supply.Quarantined())
			}
			p.stop()
		})
	}
}

// aged fills the pool a one by one, so that its entries differ in age, and returns them, the
// oldest first.
func (p *pooled) aged(tmpl Template, n int) []*warmEntry {
	p.t.Helper()
	p.run()
	for i := range n {
		p.supply.SetTargets([]Target{target("a", tmpl, i+1, 0)})
		pass(time.Minute)
	}
	ready := slices.Clone(p.supply.ledger.shelves.pools["ns/a"].ready)
	if len(ready) != n {
		p.t.Fatalf("%d entries, want %d", len(ready), n)
	}
	return ready
}

// An entry of an earlier process can be checked out as soon as it has answered, the oldest
// first, whatever the others do.
func TestTakeoverServesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Wakes = 3 })
		tmpl := template("a", "r1")
		entries := p.aged(tmpl, 5)
		p.stop()
		p.host.machine(entries[0].id()).hang()
		p.host.setDelay(func(op, id string) time.Duration {
			if op == "dial" && id == entries[1].id() {
				return 5 * time.Second // others answer before it
			}
			return 0
		})
		p.start()
		p.supply.SetTargets([]Target{target("a", tmpl, 5, 0)})
		var start sync.WaitGroup
		start.Go(func() {
			if err := p.supply.Start(context.Background()); err != nil {
				t.Error(err)
			}
		})
		pass(10 * time.Second) // one is waited for yet
		if s := p.pool("a"); s.Ready != 4 || s.Restoring != 1 {
			t.Errorf("the pool has %+v", s)
		}
		for i := range 2 {
			l, err := p.supply.Acquire(t.Context(), templateRequest(fmt.Sprint("pod-", i), tmpl))
			if err != nil || l.Path() != PathWarm || l.MachineID() != entries[i+1].id() {
				t.Errorf("request %d: %+v, %v", i, l, err)
			}
		}
		start.Wait()
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 5 || p.host.machine(entries[0].id()) != nil {
			t.Errorf("in the end the pool has %+v, machines %v", s, p.host.ids())
		}
		if n := p.watch.evicted[EvictDead]; n != 1 {
			t.Errorf("%d dead entries were told", n)
		}
		p.stop()
	})
}

// Pods' machines are adopted, and new pods get one, warm or not, while warm entries are asked
// that do not answer: nobody waits for one, and they cost no time.
func TestPodsDoNotWaitForWarmEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Wakes, o.Restores = 1, 1 })
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 20, 0))
		pass(time.Minute)
		var pods []Request
		for i := range 20 {
			pods = append(pods, templateRequest(fmt.Sprint("pod-", i), tmpl))
			if _, err := p.supply.Acquire(t.Context(), pods[i]); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Minute)
		entries := slices.Clone(p.supply.ledger.shelves.pools["ns/a"].ready)
		if len(entries) != 20 {
			t.Fatalf("%d entries", len(entries))
		}
		slices.SortFunc(entries, func(a, b *warmEntry) int { // as they will be asked
			return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id(), b.id()))
		})
		p.stop()
		for _, e := range entries[1:] {
			p.host.machine(e.id()).hang()
		}
		p.start()
		p.supply.SetTargets([]Target{target("a", tmpl, 20, 0)})
		began := time.Now()
		var start sync.WaitGroup
		start.Go(func() {
			if err := p.supply.Start(context.Background()); err != nil && ReasonOf(err) != ReasonShutdown && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait() // the first has answered, the second is being asked
		for _, r := range pods {
			if _, err := p.supply.Adopt(t.Context(), r); err != nil {
				t.Errorf("adopt %s: %v", r.MachineID, err)
			}
		}
		for i, path := range []Path{PathWarm, PathRestore} {
			if l, err := p.supply.Acquire(t.Context(), templateRequest(fmt.Sprint("pod-new-", i), tmpl)); err != nil || l.Path() != path {
				t.Errorf("new pod %d: %v", i, err)
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %s", took)
		}
		start.Wait()
		if took := time.Since(began); took == 0 {
			t.Error("no entry was waited for: this proves nothing")
		}
		p.stop()
	})
}

// Twenty entries that answer are taken over a few at a time, and all of them.
func TestTakeoverOfManyEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, wakes = 20, 4
		p := newPooled(t, func(o *Options) { o.Wakes = wakes })
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, n, 0))
		pass(time.Minute)
		p.stop()
		var mu sync.Mutex
		awake, most := 0, 0
		p.host.setFault(func(op, _ string) error {
			mu.Lock()
			defer mu.Unlock()
			switch op {
			case "resume":
				awake++
				most = max(most, awake)
			case "pause":
				awake--
			}
			return nil
		})
		p.host.setDelay(func(op, _ string) time.Duration {
			if op == "ping" {
				return 100 * time.Millisecond
			}
			return 0
		})
		p.start()
		p.supply.SetTargets([]Target{target("a", tmpl, n, 0)})
		pings, made := p.host.count("ping"), p.host.count("restore")
		began := time.Now()
		if err := p.supply.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != n/wakes*100*time.Millisecond || most != wakes {
			t.Errorf("it took %s, %d at once", took, most)
		}
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != n || p.host.count("ping")-pings != n || p.host.count("restore") != made {
			t.Errorf("%+v, %d pings, %d restores", s, p.host.count("ping")-pings, p.host.count("restore")-made)
		}
		p.stop()
	})
}
