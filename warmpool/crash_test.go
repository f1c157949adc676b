// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
}

func (c *crasher) fault(op, _ string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.disk != nil && c.disk.Dead() {
		return errCrashed
	}
	c.n++
	c.seen[op]++
	if c.n == c.at {
		c.dead, c.op = true, op
		return errCrashed
	}
	return nil
}

func (c *crasher) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead || c.disk != nil && c.disk.Dead()
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

// live is a life of a node with everything in it: a template's snapshot is built, a pool
// filled, machines are checked out, restored, booted, one evicts entries, all are released.
func (c *caller) live() {
	tmpl := template("a", "r1")
	c.supply.SetTargets([]Target{target("a", tmpl, 2, 0)})
	if err := c.supply.Start(context.Background()); err != nil && !c.crash.over() {
		c.t.Fatal(err)
	}
	pass(time.Minute)
	restored, cold, base, big := templateRequest("pod-restored", tmpl), templateRequest("pod-cold", tmpl), request("pod-base"), request("pod-big")
	restored.Path, cold.Path = PathRestore, PathCold
	c.acquire(templateRequest("pod-warm", tmpl))
	c.acquire(restored)
	c.acquire(cold)
	c.acquire(base)
	pass(time.Minute)
	big.Shape.MemoryBytes = c.opts.Capacity.MemoryBytes - c.supply.Ledger().Active.MemoryBytes
	c.acquire(big) // evicts what is warm
	pass(time.Minute)
	for _, id := range []string{"pod-big", "pod-warm", "pod-restored", "pod-cold", "pod-base"} {
		c.release(id)
	}
	pass(time.Minute)
}

// recover is the next process: it ends what was cut off, and goes on with the rest.
func (c *caller) recover() {
	ctx := context.Background()
	c.stop() // the dead one's goroutines; it can do nothing
	c.host.setFault(nil)
	if c.dir != "" {
		c.crash.disk.Restart(c.t)
		c.opts.records = newDirectory(c.dir, durable.Host)
	}
	lease := map[string]bool{}
	for _, w := range c.wants {
		if w.acquired && w.req.MachineID != c.cut {
			lease[w.machine] = true
		}
	}
	c.start()
	var requests []Request
	for _, w := range c.wants {
		requests = append(requests, w.req)
	}
	findings, err := c.supply.Reconcile(ctx, survey(requests...))
	if err != nil {
		c.t.Fatal(err)
	}
	// Before anything is ended or adopted, what there is takes its room.
	if err := c.consistent(false); err != nil {
		c.t.Error(err)
	}
	if err := c.supply.Start(ctx); err != nil {
		c.t.Error(err)
	}
	for _, f := range findings {
		switch f.Verdict {
		case VerdictCleanup:
			if lease[f.Machine] {
				c.t.Errorf("a pod's machine %s is to be cleaned up: %s", f.Machine, f.Reason)
			}
			if err := c.supply.Discard(ctx, f.Machine); err != nil && ReasonOf(err) != ReasonExists {
				c.t.Errorf("discard: %v", err)
			}
		case VerdictQuarantine, VerdictRetry:
			c.t.Errorf("a crash is no reason for doubt: %+v", f)
		default:
		}
	}
	for id, w := range c.wants {
		if !w.acquired || id == c.cut {
			// A provider ends what it does not know to be its own, or was ending.
			if err := c.supply.Discard(ctx, id); err != nil {
				c.t.Errorf("discard %s: %v", id, err)
			}
			delete(c.wants, id)
			continue
		}
		l, err := c.supply.Adopt(ctx, w.req)
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
	pass(time.Minute)
	if got := c.look(survey(requests...)); len(got) != 0 {
		c.t.Errorf("found later: %v", got)
	}
	if err := c.consistent(true); err != nil {
		c.t.Error(err)
	}
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
	c.host.setFault(c.crash.fault)
	return c
}

// newFiledCaller is one whose records are files, on a disk with a fault.
func newFiledCaller(t *testing.T, dir string, fault durabletest.Fault) *caller {
	c := newCaller(t, 0)
	c.stop()
	c.dir, c.crash.disk = dir, durabletest.New(t, durable.Host, dir, fault)
	c.opts.records = newDirectory(dir, c.crash.disk)
	c.start()
	return c
}

// TestCrashAtEveryWrite: as TestCrashAtEveryOperation, at each operation on the files of the
// records.
func TestCrashAtEveryWrite(t *testing.T) {
	operations := 0
	root := t.TempDir()
	for at := 0; at <= operations+1; at++ {
		dir := filepath.Join(root, strconv.Itoa(at))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			fault := durabletest.Fault{}
			if at > 0 {
				fault = durabletest.Fault{Mode: durabletest.Crash, At: at}
			}
			c := newFiledCaller(t, dir, fault)
			c.live()
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
		if t.Failed() {
			return
		}
	}
	if operations < 20 {
		t.Errorf("%d operations prove little", operations)
	}
	t.Logf("%d operations", operations)
}

// TestCrashAtEveryOperation: wherever the process dies, in any call to the driver, the store,
// or of a record, the next one leaks no machine and no room, keeps what pods have, and doubts
// nothing.
func TestCrashAtEveryOperation(t *testing.T) {
	operations := 0
	synctest.Test(t, func(t *testing.T) {
		c := newCaller(t, 0)
		c.live()
		operations = c.crash.n
		for _, op := range []string{"build", "pull", "restore", "prove", "rehearse", "pause", "record", "resume", "refresh", "boot", "unrecord", "delete", "forget"} {
			if c.crash.seen[op] == 0 {
				t.Errorf("a life without %s proves nothing about it: %v", op, c.crash.seen)
			}
		}
		c.end()
	})
	died := map[string]int{}
	for at := 1; at <= operations+1; at++ {
		synctest.Test(t, func(t *testing.T) {
			c := newCaller(t, at)
			defer func() {
				died[c.crash.op]++
				if t.Failed() {
					t.Logf("crashed at operation %d of %d, %q", at, operations, c.crash.op)
				}
			}()
			c.live()
			c.crash.kill()
			c.recover()
			// And it goes on as if nothing had been.
			c.goesOn(t)
			c.end()
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d operations, died in %v", operations, died)
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
