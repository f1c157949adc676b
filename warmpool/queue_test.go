// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// admit asks a ledger for memory.
func admit(ctx context.Context, l *Ledger, id string, gib int64, wait time.Duration) (*reservation, error) {
	g, err := l.admit(ctx, want{entry: Entry{Machine: id, Budget: Budget{MemoryBytes: gib * gi}}}, wait, false)
	return g.room, err
}

// TestQueueIsServedInOrder: a small request does not overtake a large one that came
// first, and a release that makes room for several serves several.
func TestQueueIsServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger(Budget{MemoryBytes: 4 * gi})
		full, err := admit(t.Context(), l, "full", 3, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var served []string
		var wg sync.WaitGroup
		rooms := map[string]*reservation{}
		for i, gib := range []int64{2, 1, 1, 4, 1} {
			id := fmt.Sprint("w", i)
			wg.Go(func() {
				room, err := admit(t.Context(), l, id, gib, time.Hour)
				if err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				served = append(served, id)
				rooms[id] = room
			})
			synctest.Wait()
		}
		if len(served) != 0 {
			t.Errorf("%v overtook", served)
		}
		if _, err := l.reserve(Entry{Machine: "x", Budget: Budget{MemoryBytes: gi}}); err != nil {
			t.Fatal(err) // what nobody queues for is not bound
		}
		l.machines["x"].release()
		full.release()
		synctest.Wait()
		slices.Sort(served) // they were served under one lock, and told one another's goroutines later
		if got := strings.Join(served, " "); got != "w0 w1 w2" {
			t.Fatalf("served %s", got)
		}
		for _, id := range []string{"w0", "w1"} {
			rooms[id].release()
			synctest.Wait()
		}
		if len(served) != 3 {
			t.Errorf("%v overtook", served)
		}
		rooms["w2"].release()
		synctest.Wait()
		if served[3] != "w3" || len(served) != 4 {
			t.Errorf("served %v", served)
		}
		rooms["w3"].release()
		wg.Wait()
		rooms["w4"].release()
	})
}

func TestQueueRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLedger(Budget{MemoryBytes: 4 * gi})
		l.queue.most = 2
		full, err := admit(t.Context(), l, "full", 4, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admit(t.Context(), l, "huge", 5, time.Hour); ReasonOf(err) != ReasonOversized {
			t.Errorf("more than the node has: %v", err)
		}
		start := time.Now()
		_, err = admit(t.Context(), l, "late", 1, time.Minute)
		var r *Refusal
		if !errors.As(err, &r) || r.Reason != ReasonInsufficientCapacity || r.Resource != "memory" || r.Requested != gi || r.Available != 0 || time.Since(start) != time.Minute {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		// A deadline of the caller, and a caller who gives up.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := admit(ctx, l, "deadline", 1, time.Minute); ReasonOf(err) != ReasonInsufficientCapacity || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deadline: %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := admit(ctx, l, "given up", 4, time.Minute); !errors.Is(err, context.Canceled) {
				t.Errorf("given up: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if room, err := admit(t.Context(), l, "second", 1, time.Minute); err != nil {
				t.Error(err)
			} else {
				room.release()
			}
		})
		synctest.Wait()
		if _, err := admit(t.Context(), l, "third", 1, time.Minute); ReasonOf(err) != ReasonQueueFull {
			t.Errorf("full queue: %v", err)
		}
		cancel() // the first leaves; the second fits as soon as there is room
		synctest.Wait()
		full.release()
		wg.Wait()
		// A node that gets smaller tells those who wait for what will never come.
		full, err = admit(t.Context(), l, "full", 4, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if _, err := admit(t.Context(), l, "waits", 3, time.Hour); ReasonOf(err) != ReasonOversized {
				t.Errorf("in a node that got smaller: %v", err)
			}
		})
		synctest.Wait()
		if err := l.SetCapacity(Budget{MemoryBytes: 2 * gi}); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if a := l.Account(); a.Available != (Budget{}) || len(l.queue.waiting) != 0 {
			t.Errorf("%+v", a)
		}
		full.release()
	})
}

// TestEvictedRoomIsNotUsedBeforeItsMachineIsGone: no overcommit, also when the deletion
// fails for a while; then others are evicted.
func TestEvictedRoomIsNotUsedBeforeItsMachineIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Capacity.MemoryBytes = 512 * mi })
		p.run(target("a", template("a", "r1"), 2, 0))
		time.Sleep(time.Minute)
		stuck := ""
		p.host.setFault(func(op, id string) error {
			if op == "delete" && (stuck == "" || stuck == id) {
				stuck = id
				return errBoom
			}
			return nil
		})
		l, err := p.supply.Acquire(t.Context(), request("pod"))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.host.ids(); len(got) != 2 || !slices.Contains(got, stuck) || !slices.Contains(got, l.MachineID()) {
			t.Errorf("machines %v, stuck is %s", got, stuck)
		}
		if err := p.consistent(true); err != nil {
			t.Error(err)
		}
		if a := p.supply.Ledger(); a.Available.MemoryBytes != 0 {
			t.Errorf("%+v", a)
		}
		p.host.setFault(nil)
		p.stop()
	})
}

// TestPromotionTakesTheDifference, and what fails after it gives it back.
func TestPromotionTakesTheDifference(t *testing.T) {
	l := NewLedger(Budget{MilliCPU: 1000, MemoryBytes: gi})
	tgt := target("a", template("a", "r1"), 1, 0)
	l.shelves.setTargets([]Target{tgt}, time.Now())
	e, err := l.reserveWarm("warm-1", tgt, func() {})
	if err != nil || !l.shelve(e) {
		t.Fatal(err)
	}
	warm := Budget{MemoryBytes: 256 * mi}
	if a := l.Account(); a.Warm != warm || a.Active != (Budget{}) || a.Available != (Budget{MilliCPU: 1000, MemoryBytes: gi - 256*mi}) {
		t.Fatalf("%+v", a)
	}
	w := want{entry: Entry{Machine: "pod", PodUID: "uid", Budget: Budget{MilliCPU: 700, MemoryBytes: 256 * mi}}, template: "ns/a", revision: "r1"}
	g, err := l.admit(t.Context(), w, time.Second, false)
	if err != nil || g.entry != e {
		t.Fatalf("%+v, %v", g, err)
	}
	if a := l.Account(); a.Warm != (Budget{}) || a.Active != w.entry.Budget || a.Available.MilliCPU != 300 || a.Machines[0].State != StateActive || a.Machines[0].PodUID != "uid" {
		t.Errorf("promoted: %+v", a)
	}
	g.room.demote()
	g.room.demote()
	if a := l.Account(); a.Warm != warm || a.Active != (Budget{}) || a.Available.MilliCPU != 1000 || a.Machines[0].State != StateStopping {
		t.Errorf("demoted: %+v", a)
	}
	if !g.room.release() || g.room.release() {
		t.Error("not released exactly once")
	}
	if a := l.Account(); a.Available != a.Capacity || l.leaving != (Budget{}) {
		t.Errorf("%+v, leaving %+v", a, l.leaving)
	}
	// Without room for the difference the entry stays where it is.
	e, err = l.reserveWarm("warm-2", tgt, func() {})
	if err != nil || !l.shelve(e) {
		t.Fatal(err)
	}
	if _, err := l.reserve(Entry{Machine: "other", Budget: Budget{MilliCPU: 500}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.admit(t.Context(), w, time.Millisecond, false); ReasonOf(err) != ReasonInsufficientCapacity || !strings.Contains(err.Error(), "cpu") {
		t.Errorf("%v", err)
	}
	if a := l.Account(); a.Warm != warm || len(l.shelves.pools["ns/a"].ready) != 1 {
		t.Errorf("%+v", a)
	}
}
