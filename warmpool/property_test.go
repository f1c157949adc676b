// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// TestSupplyProperties: whatever happens in whatever order, the ledger is what the
// driver has, nothing is negative, and in the end everything can be given back.
func TestSupplyProperties(t *testing.T) {
	seed := rand.Uint64() // printed; to run it again, put it here
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t)
	n.stop()
	n.patience = 300 * time.Millisecond // silent guests are part of it
	n.start()
	held := map[string]*Lease{}
	paths := map[string]int{}
	chaos := &chaos{rng: rand.New(rand.NewPCG(seed, 1))}
	for step := range 150 {
		if rng.IntN(3) == 0 {
			n.driver.SetFault(chaos.fault)
		} else {
			n.driver.SetFault(nil)
		}
		n.driver.SetBend(func(a *snapshottest.Agent) {
			switch chaos.pick(25) {
			case 0:
				a.Forged = true
			case 1:
				a.Refused = true
			case 2:
				a.Silent = true
			}
		})
		op := "acquire"
		switch k := rng.IntN(20); {
		case k < 8:
			// Several at once, so that they meet in the ledger and in the store.
			var wg sync.WaitGroup
			var mu sync.Mutex
			for range 1 + rng.IntN(3) {
				req := request(fmt.Sprintf("m%d", rng.IntN(8)))
				if rng.IntN(4) == 0 {
					req.Shape.MemoryBytes *= 2
				}
				wg.Go(func() {
					l, err := n.supply.Acquire(t.Context(), req)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						held[req.MachineID] = l
						paths[string(l.Path())]++
					} else {
						paths[string(ReasonOf(err))]++
					}
				})
			}
			wg.Wait()
		case k < 14:
			op = "release"
			for id, l := range held { // any
				if l.Release(t.Context(), time.Duration(rng.IntN(2))*time.Second) == nil {
					delete(held, id)
				}
				break
			}
		case k < 16:
			op = "kill"
			for id := range held {
				n.driver.Machine(id).Exit()
				break
			}
		case k < 17:
			op = "hang up"
			for id := range held {
				n.driver.Machine(id).Agent().HangUp()
				break
			}
		case k < 18:
			op = "reap"
			_, _ = reap(t.Context(), n.supply, Survey{Prefixes: []string{"m"}})
		case k < 19:
			op = "prepare"
			_ = n.supply.Prepare(t.Context(), []vm.Shape{request("").Shape})
		default:
			op = "restart"
			n.driver.SetFault(nil)
			n.stop()
			n.start()
			known := held
			held = map[string]*Lease{}
			for id, l := range known {
				if a, err := n.supply.Adopt(t.Context(), l.req); err == nil {
					held[id] = a
				}
			}
			_, _ = reap(t.Context(), n.supply, Survey{Prefixes: []string{"m"}})
		}
		if err := n.settles(); err != nil {
			t.Fatalf("seed %d, step %d, %s: %v", seed, step, op, err)
		}
	}
	n.driver.SetFault(nil)
	for _, l := range held {
		if err := l.Release(t.Context(), 0); err != nil {
			t.Errorf("release: %v", err)
		}
	}
	// Leftovers are deleted in the background; what could not be adopted is left to
	// Discard.
	for deadline := time.Now().Add(10 * time.Second); len(n.supply.Ledger().Machines) != 0; time.Sleep(time.Millisecond) {
		for _, e := range n.supply.Ledger().Machines {
			_ = n.supply.Discard(t.Context(), e.Machine)
		}
		if time.Now().After(deadline) {
			t.Fatalf("seed %d: left in the end: %+v", seed, n.supply.Ledger())
		}
	}
	if _, err := reap(t.Context(), n.supply, Survey{Prefixes: []string{"m"}}); err != nil {
		t.Errorf("seed %d: reap: %v", seed, err)
	}
	if a := n.supply.Ledger(); a.Available != a.Capacity {
		t.Errorf("seed %d: account %+v", seed, a)
	}
	n.check()
	t.Logf("outcomes: %v", paths)
	for _, p := range []string{string(PathRestore), string(PathBuild)} {
		if paths[p] == 0 {
			t.Errorf("no machine came by %s: the test does not test", p)
		}
	}
}

// settles waits for deletions in the background, which may be between the driver and
// the ledger.
func (n *node) settles() error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := n.differs()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// chaos fails operations at random.
type chaos struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func (c *chaos) pick(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

func (c *chaos) fault(op, _ string) error {
	if op == "list" || op == "load" {
		return nil
	}
	switch c.pick(12) {
	case 0:
		return errBoom
	case 1:
		return fmt.Errorf("chaos: %w", vm.ErrUnavailable)
	case 2:
		if op == "restore" {
			return vm.ErrSnapshotInvalid
		}
	case 3:
		return context.DeadlineExceeded
	}
	return nil
}
