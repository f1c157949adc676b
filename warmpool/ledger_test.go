// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestLedgerRefusals(t *testing.T) {
	capacity := Budget{MilliCPU: 2000, MemoryBytes: gi, DiskBytes: 10 * gi, Slots: 1}
	for _, c := range []struct {
		name   string
		taken  Budget
		want   Budget
		reason Reason
		names  string
	}{
		{"all of it", Budget{}, capacity, "", ""},
		{"the rest exactly", Budget{MilliCPU: 500, MemoryBytes: 1}, Budget{MilliCPU: 1500, MemoryBytes: gi - 1}, "", ""},
		{"cpu first", Budget{MilliCPU: 1000, MemoryBytes: gi}, Budget{MilliCPU: 1001, MemoryBytes: 1}, ReasonInsufficientCapacity, "cpu"},
		{"memory", Budget{MemoryBytes: 1}, Budget{MemoryBytes: gi}, ReasonInsufficientCapacity, "memory"},
		{"disk", Budget{DiskBytes: 1}, Budget{DiskBytes: 10 * gi}, ReasonInsufficientCapacity, "disk"},
		{"slots", Budget{Slots: 1}, Budget{Slots: 1}, ReasonInsufficientCapacity, "slots"},
		{"oversized", Budget{}, Budget{MemoryBytes: gi + 1}, ReasonOversized, "memory"},
		{"negative", Budget{}, Budget{DiskBytes: -1}, ReasonInvalid, "disk"},
		{"absurd", Budget{}, Budget{MemoryBytes: 1 << 62}, ReasonInvalid, "memory"},
	} {
		l := NewLedger(capacity)
		if _, err := l.reserve(Entry{Machine: "taken", Budget: c.taken}); err != nil {
			t.Fatal(err)
		}
		before := l.Account()
		_, err := l.reserve(Entry{Machine: "m", Budget: c.want})
		if ReasonOf(err) != c.reason || (err == nil) != (c.reason == "") {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err == nil {
			continue
		}
		if !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %q does not name %s", c.name, err, c.names)
		}
		if after := l.Account(); after.Active != before.Active || len(after.Machines) != 1 {
			t.Errorf("%s: a refusal changed the ledger", c.name)
		}
		var r *Refusal
		if errors.As(err, &r); r.Final() != (c.reason == ReasonOversized || c.reason == ReasonInvalid) {
			t.Errorf("%s: final %v", c.name, r.Final())
		}
	}
}

func TestReservationOnlyMovesForward(t *testing.T) {
	l := NewLedger(Budget{MilliCPU: 1000})
	r, err := l.reserve(Entry{Machine: "m", Budget: Budget{MilliCPU: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.reserve(Entry{Machine: "m", Budget: Budget{}}); ReasonOf(err) != ReasonExists {
		t.Errorf("same id: %v", err)
	}
	for _, s := range order {
		if err := r.advance(s); err != nil {
			t.Errorf("to %s: %v", s, err)
		}
	}
	if err := r.advance(StateActive); err == nil {
		t.Error("went from stopping to active")
	}
	if !r.release() || r.release() {
		t.Error("not released exactly once")
	}
	if err := r.advance(StateStopping); err == nil {
		t.Error("moved after it was gone")
	}
	if a := l.Account(); a.Available != a.Capacity || len(a.Machines) != 0 {
		t.Errorf("%+v", a)
	}
}

// TestLedgerProperties: whatever is asked in whatever order, the account is the sum
// of its machines, nothing is negative, and a reservation never goes above capacity.
func TestLedgerProperties(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	l := NewLedger(Budget{MilliCPU: 4000, MemoryBytes: 4 * gi, DiskBytes: 40 * gi, Slots: 2})
	held := map[string]*reservation{}
	for step := range 20_000 {
		id := fmt.Sprintf("m%d", rng.IntN(12))
		b := Budget{rng.Int64N(3000), rng.Int64N(3 * gi), rng.Int64N(30 * gi), rng.Int64N(2)}
		before := l.Account()
		switch op := rng.IntN(10); {
		case op < 4:
			r, err := l.reserve(Entry{Machine: id, Budget: b})
			if err == nil {
				if _, _, _, over := b.exceeds(before.Available); over {
					t.Fatalf("seed %d step %d: reserved %+v of %+v", seed, step, b, before.Available)
				}
				held[id] = r
			}
		case op == 4:
			if r, err := l.admitExisting(Entry{Machine: id, Budget: b}, StateProbing); err == nil {
				held[id] = r
			}
		case op == 5:
			if err := l.SetCapacity(Budget{rng.Int64N(5000), rng.Int64N(5 * gi), rng.Int64N(50 * gi), rng.Int64N(3)}); err != nil {
				t.Fatal(err)
			}
		case op == 6:
			if r := held[id]; r != nil {
				_ = r.advance(order[rng.IntN(len(order))])
			}
		default:
			if r := held[id]; r != nil {
				if !r.release() || r.release() {
					t.Fatalf("seed %d step %d: not released exactly once", seed, step)
				}
				delete(held, id)
			}
		}
		a := l.Account()
		var sum Budget
		for _, e := range a.Machines {
			sum = sum.plus(e.Budget)
			if held[e.Machine] == nil {
				t.Fatalf("seed %d step %d: %s is in the ledger and nobody has it", seed, step, e.Machine)
			}
		}
		if sum != a.Active || len(a.Machines) != len(held) || a.Available != a.Capacity.minus(sum) || a.Available.validate() != nil {
			t.Fatalf("seed %d step %d: %+v", seed, step, a)
		}
	}
}
