// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// What the hot path and a plan may cost. The benchmarks fail above it: they are run by
// hand and by the performance check, never as unit tests.
const (
	mostAcquireWarm = 10 * time.Microsecond
	mostPlan        = 10 * time.Millisecond
)

// idle is a machine, a connection and a store that do nothing.
type idle struct {
	vm.Machine
	*memoryConn
	id string
}

func (m *idle) ID() string                              { return m.id }
func (m *idle) Resume(context.Context) error            { return nil }
func (m *idle) Delete(context.Context) error            { return nil }
func (m *idle) Ping(context.Context) error              { return nil }
func (m *idle) Err() error                              { return nil }
func (m *idle) Close() error                            { return nil }
func (m *idle) State(context.Context) (vm.State, error) { return vm.StateRunning, nil }

type idleStore struct{ Store }

func (idleStore) Refresh(context.Context, vm.Machine, Conn, string) error { return nil }
func (idleStore) Forget(string) error                                     { return nil }

// BenchmarkAcquireWarm is the supply's own work for one warm checkout, of a pool of
// 100 entries among 50 pools. It fails when the median costs more than 10 microseconds.
func BenchmarkAcquireWarm(b *testing.B) {
	h := newMemoryHost()
	s, err := New(Options{
		Driver: memoryDriver{h}, Store: idleStore{h}, Kit: testKit(), Capacity: Budget{MilliCPU: 1 << 40, MemoryBytes: 1 << 47},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Shutdown(context.Background())
	var targets []Target
	for i := range 50 {
		targets = append(targets, target(fmt.Sprint("p", i), template(fmt.Sprint("t", i%10), "r1"), 100, i%3))
	}
	s.SetTargets(targets)
	stock := func(t Target, id string) {
		e, err := s.ledger.reserveWarm(id, t, func() {})
		if err != nil {
			b.Fatal(err)
		}
		m := &idle{id: id}
		e.machine, e.conn, e.created = m, m, time.Now()
		if !s.ledger.shelve(e) {
			b.Fatal("not shelved")
		}
	}
	n := 0
	for _, t := range targets {
		for range 100 {
			n++
			stock(t, fmt.Sprint("warm-", n))
		}
	}
	ctx := context.Background()
	reqs := make([]Request, 0, 64)
	for i := range cap(reqs) {
		reqs = append(reqs, templateRequest(fmt.Sprint("pod-", i), targets[0].Template))
	}
	b.ReportAllocs()
	b.ResetTimer()
	// Each is timed by itself: stopping the benchmark's own timer reads the memory's
	// statistics, which stops the world and leaves the next one with cold caches.
	took := make([]time.Duration, 0, b.N)
	for i := range b.N {
		begin := time.Now()
		l, err := s.Acquire(ctx, reqs[i%len(reqs)])
		took = append(took, time.Since(begin))
		if err != nil || l.path != PathWarm {
			b.Fatal(err)
		}
		t := *s.ledger.shelves.pools[l.room.entry.Pool].target
		if err := l.Release(ctx, 0); err != nil {
			b.Fatal(err)
		}
		n++
		stock(t, fmt.Sprint("warm-", n))
	}
	b.StopTimer()
	slices.Sort(took)
	median, p99 := took[len(took)/2], took[len(took)*99/100]
	b.ReportMetric(float64(median.Nanoseconds()), "ns/median")
	b.ReportMetric(float64(p99.Nanoseconds()), "ns/p99")
	if b.N > 1000 && median > mostAcquireWarm {
		b.Fatalf("a warm checkout costs %s of our own work in the median, at most %s", median, mostAcquireWarm)
	}
}

// BenchmarkPlan plans 1,000 targets over 10,000 entries: full, short of room, and with
// everything outdated. It fails when one takes more than 10 milliseconds.
func BenchmarkPlan(b *testing.B) {
	for _, c := range []struct {
		name      string
		available int64
		outdated  bool
		slots     int
	}{
		{"full", 1 << 40, false, 8}, {"no room", 0, false, 8}, {"outdated", 1 << 40, true, 64},
	} {
		b.Run(c.name, func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			in := planInput{now: planTime, available: Budget{MemoryBytes: c.available}, room: Budget{MemoryBytes: c.available}, slots: c.slots}
			for i := range 1000 {
				s := stock{target: want1(10+rng.IntN(3), rng.IntN(100), 1+rng.Int64N(8)), fresh: 9, inFlight: 1}
				if c.outdated {
					s.fresh, s.outdated = 0, 9
				}
				in.pools = append(in.pools, s.pool(fmt.Sprintf("p%04d", i)))
			}
			b.ReportAllocs()
			b.ResetTimer()
			fastest := time.Hour // the mean is that of the machine's other work
			for range b.N {
				start := time.Now()
				makePlan(in)
				fastest = min(fastest, time.Since(start))
			}
			b.ReportMetric(float64(fastest.Microseconds()), "us/fastest")
			if b.N > 10 && fastest > mostPlan {
				b.Fatalf("a plan takes %s, at most %s", fastest, mostPlan)
			}
		})
	}
}

// BenchmarkCheapest chooses among 10,000 entries.
func BenchmarkCheapest(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	candidates := make([]candidate, 10_000)
	for i := range candidates {
		candidates[i] = candidate{priority: rng.IntN(10), budget: Budget{MemoryBytes: (1 + rng.Int64N(8)) * gi}}
	}
	for b.Loop() {
		cheapest(Budget{MemoryBytes: 64 * gi}, Budget{}, candidates)
	}
}
