// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

var errCrashed = errors.New("the process is dead")

// crasher ends a process at its n-th operation: that one and all later ones do nothing.
type crasher struct {
	mu   sync.Mutex
	at   int // 0: never
	n    int
	op   string // the operation that it died in
	dead bool
	seen map[string]int
	disk *durabletest.FS // nil: records are in memory
	// fault of the disk that comes when a life begins to count.
	fault durabletest.Fault
	// until is the operation that ends a process before the one that is looked at: nothing is
	// counted before.
	until string
	// trouble is something else that goes wrong; nil is nothing.
	trouble func(op, id string) error
	// past: all this is history.
	past bool
}

func (c *crasher) do(op, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.disk != nil && c.disk.Dead() {
		return errCrashed
	}
	if c.until != "" {
		if c.dead = op == c.until; c.dead {
			return errCrashed
		}
		return nil
	}
	c.n++
	c.seen[op]++
	if c.n == c.at {
		c.dead, c.op = true, op
		return errCrashed
	}
	if c.trouble != nil {
		return c.trouble(op, id)
	}
	return nil
}

// once lets the next operation of a kind fail.
func (c *crasher) once(op string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trouble = func(o, _ string) error {
		if o != op {
			return nil
		}
		c.trouble = nil
		return err
	}
}

func (c *crasher) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.past && (c.dead || c.disk != nil && c.disk.Dead())
}

// begin lets the process that is looked at begin.
func (c *crasher) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead, c.until = false, ""
	if c.disk != nil {
		c.disk.Arm(c.fault)
	}
}

// end lets nothing go wrong any more.
func (c *crasher) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = true
}

// kill ends it between two operations.
func (c *crasher) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
}

// caller is what a provider remembers over its death: before it asks for a machine, that it
// does; once it has one, that it has.
type caller struct {
	*pooled
	crash *crasher
	// wants are the requests on disk.
	wants map[string]*wanted
	// cut is the request that was being released.
	cut string
	// dir has the records; empty when they are in memory.
	dir string
}

type wanted struct {
	req      Request
	acquired bool
	machine  string
	lease    *Lease
}

func (c *caller) acquire(req Request) {
	if c.crash.over() {
		return
	}
	w := &wanted{req: req}
	c.wants[req.MachineID] = w
	l, err := c.supply.Acquire(context.Background(), req)
	if c.crash.over() {
		return // it did not live to write that down
	}
	if err != nil {
		c.t.Fatalf("acquire %s: %v", req.MachineID, err)
	}
	w.acquired, w.lease, w.machine = true, l, l.MachineID()
}

func (c *caller) release(id string) {
	if c.crash.over() {
		return
	}
	c.cut = id
	err := c.wants[id].lease.Release(context.Background(), time.Second)
	if c.crash.over() {
		return
	}
	if err != nil {
		c.t.Fatalf("release %s: %v", id, err)
	}
	c.cut = ""
	delete(c.wants, id)
}

// recover is the process after all that, in which nothing goes wrong.
func (c *caller) recover() {
	c.stop() // the dead one's goroutines; it can do nothing
	c.host.setFault(nil)
	c.host.setDelay(nil)
	if c.dir != "" {
		c.crash.disk.Restart(c.t)
		c.opts.records = newDirectory(c.dir, durable.Host)
	}
	c.crash.end()
	c.start()
	requests := c.takeUp()
	pass(time.Minute)
	if got := c.look(survey(requests...)); len(got) != 0 {
		c.t.Errorf("found later: %v", got)
	}
	if err := c.consistent(true); err != nil {
		c.t.Error(err)
	}
}

// takeUp is what a provider does at its start: it ends what was cut off, and goes on with the
// rest. When the process dies meanwhile it has done a part of that.
func (c *caller) takeUp() (requests []Request) {
	ctx := context.Background()
	lease := map[string]bool{}
	ids := slices.Sorted(maps.Keys(c.wants))
	for _, id := range ids {
		w := c.wants[id]
		requests = append(requests, w.req)
		if w.acquired && id != c.cut {
			lease[w.machine] = true
		}
	}
	findings, err := c.supply.Reconcile(ctx, survey(requests...))
	if c.crash.over() {
		return nil
	}
	if err != nil {
		c.t.Fatal(err)
	}
	// Before anything is ended or adopted, what there is takes its room: all of it, and as much
	// as the machine has.
	if err := c.consistent(false); err != nil {
		c.t.Error(err)
	}
	for _, e := range c.supply.Ledger().Machines {
		if m := c.host.machine(e.Machine); m != nil && e.Budget.MemoryBytes < m.cfg.Shape.MemoryBytes {
			c.t.Errorf("%s has %d bytes and is charged with %d", e.Machine, m.cfg.Shape.MemoryBytes, e.Budget.MemoryBytes)
		}
	}
	if err := c.supply.Start(ctx); err != nil && !c.crash.over() {
		c.t.Error(err)
	}
	for _, f := range findings {
		switch f.Verdict {
		case VerdictCleanup:
			if lease[f.Machine] {
				c.t.Errorf("a pod's machine %s is to be cleaned up: %s", f.Machine, f.Reason)
			}
			if err := c.supply.Discard(ctx, f.Machine); err != nil && ReasonOf(err) != ReasonExists && !c.crash.over() {
				c.t.Errorf("discard: %v", err)
			}
		case VerdictQuarantine, VerdictRetry:
			c.t.Errorf("a crash is no reason for doubt: %+v", f)
		default:
		}
	}
	for _, id := range ids {
		w := c.wants[id]
		if !w.acquired || id == c.cut {
			// A provider ends what it does not know to be its own, or was ending.
			err := c.supply.Discard(ctx, id)
			if c.crash.over() {
				return nil
			}
			if err != nil {
				c.t.Errorf("discard %s: %v", id, err)
			}
			delete(c.wants, id)
			continue
		}
		l, err := c.supply.Adopt(ctx, w.req)
		if c.crash.over() {
			return nil
		}
		if err != nil {
			c.t.Errorf("a pod has lost its machine: %v", err)
			delete(c.wants, id)
			continue
		}
		if l.MachineID() != w.machine {
			c.t.Errorf("pod %s has %s, had %s", id, l.MachineID(), w.machine)
		}
		w.lease = l
	}
	c.cut = ""
	return requests
}

// end gives everything back, and looks that nothing is left.
func (c *caller) end() {
	ctx := context.Background()
	for _, id := range slices.Sorted(maps.Keys(c.wants)) {
		if err := c.wants[id].lease.Release(ctx, 0); err != nil {
			c.t.Errorf("release %s: %v", id, err)
		}
	}
	if err := c.supply.Drain(ctx); err != nil {
		c.t.Error(err)
	}
	pass(time.Hour)
	if err := c.consistent(true); err != nil {
		c.t.Error(err)
	}
	if a := c.supply.Ledger(); len(a.Machines) != 0 || a.Available != a.Capacity || len(c.supply.ledger.claims) != 0 {
		c.t.Errorf("left: %+v, claims %v", a, c.supply.ledger.claims)
	}
	if n := len(c.host.ids()) + len(c.host.images) + len(c.host.origins) + len(c.records.all) + len(c.records.bad); n != 0 {
		c.t.Errorf("left: machines %v, images %v, origins %v, records %v", c.host.ids(), c.host.images, c.host.origins, c.records.all)
	}
	if c.dir != "" {
		if left, err := os.ReadDir(c.dir); err != nil || len(left) != 0 {
			c.t.Errorf("left: %v, %v", left, err)
		}
	}
	for id, n := range c.host.made {
		if n != 1 && isWarmID(id) {
			c.t.Errorf("%s was made %d times", id, n)
		}
	}
	c.stop()
}

func newCaller(t *testing.T, at int) *caller {
	c := &caller{crash: &crasher{at: at, seen: map[string]int{}}, wants: map[string]*wanted{}}
	c.pooled = newPooled(t, func(o *Options) {
		o.Capacity = Budget{MilliCPU: 64_000, MemoryBytes: 6 * smallShape.MemoryBytes}
		o.QueueWait = 10 * time.Second
	})
	c.host.setFault(c.crash.do)
	return c
}

// newFiledCaller is one whose records are files, on a disk with a fault.
func newFiledCaller(t *testing.T, dir string, fault durabletest.Fault) *caller {
	c := newCaller(t, 0)
	c.stop()
	c.dir, c.crash.disk, c.crash.fault = dir, durabletest.New(t, durable.Host, dir, durabletest.Fault{}), fault
	c.opts.records = newDirectory(dir, c.crash.disk)
	c.crash.begin()
	c.start()
	return c
}

// TestCrashAtEveryWrite: as TestCrashAtEveryOperation, at each operation on the files of the
// records, also when the host dies with the process and what was not synced is lost.
func TestCrashAtEveryWrite(t *testing.T) {
	for _, life := range lives {
		t.Run(life.name, func(t *testing.T) {
			operations := 0
			root := t.TempDir()
			once := func(at int, mode durabletest.Mode) {
				dir := filepath.Join(root, fmt.Sprint(at, " ", mode))
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				synctest.Test(t, func(t *testing.T) {
					fault := durabletest.Fault{Mode: mode, At: at}
					if at == 0 {
						fault = durabletest.Fault{}
					}
					c := newFiledCaller(t, dir, fault)
					life.live(c)
					if at == 0 {
						operations = len(c.crash.disk.Ops())
						c.end()
						return
					}
					defer func() {
						if t.Failed() {
							t.Logf("crashed at operation %d of %d, %s", at, operations, c.crash.disk.At())
						}
					}()
					c.crash.kill()
					c.recover()
					c.goesOn(t)
					c.end()
				})
			}
			once(0, "")
			// What loses data and names loses all that losing one of them does, and no test
			// should take long: see TestRecordsAtEveryFault for each alone.
			for _, mode := range []durabletest.Mode{durabletest.Crash, durabletest.CrashLosingAll} {
				for at := 1; at <= operations+1 && !t.Failed(); at++ {
					once(at, mode)
				}
			}
			if operations < 10 {
				t.Errorf("%d operations prove little", operations)
			}
			t.Logf("%d operations", operations)
		})
	}
}

// TestCrashAtEveryOperation: wherever the process dies, in any call to the driver, the store,
// or of a record, the next one leaks no machine and no room, keeps what pods have, and doubts
// nothing. So it does when the process dies that comes after one that died.
func TestCrashAtEveryOperation(t *testing.T) {
	for _, life := range lives {
		t.Run(life.name, func(t *testing.T) {
			operations := 0
			synctest.Test(t, func(t *testing.T) {
				c := newCaller(t, 0)
				life.live(c)
				operations = c.crash.n
				for _, op := range life.ops {
					if c.crash.seen[op] == 0 {
						t.Errorf("a life without %s proves nothing about it: %v", op, c.crash.seen)
					}
				}
				if life.name == "evictions" {
					for _, r := range []EvictReason{EvictDead, EvictAbandoned, EvictOutdated, EvictAged, EvictPriority, EvictSurplus, EvictPressure} {
						if c.watch.evicted[r] == 0 {
							t.Errorf("a life without evictions for %s proves nothing about them: %v", r, c.watch.evicted)
						}
					}
					if c.watch.failed == 0 {
						t.Error("no refill has failed")
					}
				}
				c.end()
			})
			died := map[string]int{}
			for at := 1; at <= operations+1 && !t.Failed(); at++ {
				synctest.Test(t, func(t *testing.T) {
					c := newCaller(t, at)
					defer func() {
						died[c.crash.op]++
						if t.Failed() {
							t.Logf("crashed at operation %d of %d, %q", at, operations, c.crash.op)
						}
					}()
					life.live(c)
					c.crash.kill()
					c.recover()
					// And it goes on as if nothing had been.
					c.goesOn(t)
					c.end()
				})
			}
			t.Logf("%d operations, died in %v", operations, died)
		})
	}
}

// goesOn looks that the node works.
func (c *caller) goesOn(t *testing.T) {
	t.Helper()
	l, err := c.supply.Acquire(context.Background(), request("pod-after"))
	if err != nil {
		t.Errorf("the node gives no machine any more: %v", err)
		return
	}
	c.wants["pod-after"] = &wanted{req: request("pod-after"), acquired: true, machine: l.MachineID(), lease: l}
}

var _ vm.Describer = (*memoryMachine)(nil)
