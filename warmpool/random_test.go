// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// operations of TestPoolProperties; FIRKIN_POOL_OPERATIONS and FIRKIN_POOL_SEED change
// them.
const defaultOperations = 100_000

// TestPoolProperties: 100,000 random operations on a supply with pools: acquire, release,
// kill, hang, faults and delays at every call, other targets, other capacity, slots for macOS
// guests that the host does not give back, restart. After
// each the ledger is what the driver has, nothing is negative, and nothing is above
// capacity but what was there when it was cut. In the end all is given back.
func TestPoolProperties(t *testing.T) {
	operations, seed := defaultOperations, rand.Uint64()
	if testing.Short() {
		operations = 5_000
	}
	if s, err := strconv.Atoi(os.Getenv("FIRKIN_POOL_OPERATIONS")); err == nil {
		operations = s
	}
	if s, err := strconv.ParseUint(os.Getenv("FIRKIN_POOL_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("seed %d (FIRKIN_POOL_SEED runs it again), %d operations", seed, operations)
	// In several bubbles: time and leftovers of one do not grow without bound.
	const each = 5_000
	total := newWatcher()
	for round := 0; round*each < operations; round++ {
		synctest.Test(t, func(t *testing.T) {
			newChaotic(t, seed+uint64(round), total).run(min(each, operations-round*each))
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("paths %v, evicted %v, skipped %v, %d refills, %d failed", total.paths, total.evicted, total.skipped, total.refills, total.failed)
	if testing.Short() {
		return
	}
	// A test that never got anywhere would pass.
	for _, path := range []Path{PathWarm, PathRestore, PathBuild, PathCold, PathAdopt} {
		if total.paths[path] == 0 {
			t.Errorf("no machine came by %s", path)
		}
	}
	for _, reason := range []EvictReason{EvictDemand, EvictPriority, EvictSurplus, EvictOutdated, EvictAged, EvictDead, EvictAbandoned} {
		if total.evicted[reason] == 0 {
			t.Errorf("no entry was evicted for %s", reason)
		}
	}
	for _, reason := range []SkipReason{SkipAlreadyWarm, SkipInsufficientCapacity, SkipDiskPressure, SkipSnapshotNotReady, SkipBackoff} {
		if total.skipped[reason] == 0 {
			t.Errorf("no pool was skipped for %s", reason)
		}
	}
}

// TestSlotProperties: as TestPoolProperties, on a host that gives back the place of a macOS
// guest at once. It never has to refuse one: builds of snapshots included, the ledger
// takes the slot before the guest is made and gives it back after it has ended.
func TestSlotProperties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		c := newChaotic(t, seed, newWatcher())
		c.exact = true
		c.run(5_000)
		if c.host.limited > 0 {
			t.Errorf("seed %d: the host refused %d macOS guests", seed, c.host.limited)
		}
	})
}

// chaotic is a node to which random things happen.
type chaotic struct {
	*pooled
	seed uint64
	rng  *rand.Rand
	step int
	op   string
	// exact: nothing happens that the ledger cannot know of.
	exact bool

	calls sync.WaitGroup // acquires and releases under way
	used  Budget         // at the last check

	mu     sync.Mutex
	chance *rand.Rand // of faults and delays
	wild   bool       // guarded by mu
	free   int64      // guarded by mu
	held   map[string]*Lease
	busy   map[string]context.CancelFunc
}

func newChaotic(t *testing.T, seed uint64, watch *watcher) *chaotic {
	c := &chaotic{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), chance: rand.New(rand.NewPCG(seed, 1)), free: 99 << 30,
		held: map[string]*Lease{}, busy: map[string]context.CancelFunc{},
	}
	c.pooled = newPooled(t, func(o *Options) {
		o.Capacity = Budget{MilliCPU: 8000, MemoryBytes: 12 * 256 * mi, Slots: 2}
		o.QueueLength, o.QueueWait, o.Restores = 4, 20*time.Second, 3
		o.Observer = watch
		o.FreeBytes = func() (int64, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.free, nil
		}
	})
	c.watch = watch
	c.host.fault, c.host.delay, c.host.guests = c.fault, c.delay, 2
	return c
}

func (c *chaotic) fault(op, _ string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.wild || op == "list" || op == "load" {
		return nil
	}
	switch c.chance.IntN(40) {
	case 0:
		return errBoom
	case 1:
		return fmt.Errorf("chaos: %w", vm.ErrUnavailable)
	case 2:
		if op == "restore" {
			return vm.ErrSnapshotInvalid
		}
	case 3:
		if op == "restore" || op == "build" {
			return vm.ErrNoSpace
		}
	}
	return nil
}

func (c *chaotic) delay(op, _ string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch op {
	case "restore", "boot", "build", "prove", "rehearse", "resume", "delete", "ping":
		if c.chance.IntN(3) == 0 {
			return time.Duration(c.chance.IntN(3000)) * time.Millisecond
		}
	}
	return 0
}

func (c *chaotic) run(operations int) {
	ctx := context.Background()
	c.supply.SetTargets(c.targets())
	if err := c.supply.Start(ctx); err != nil {
		c.t.Fatal(err)
	}
	for c.step = range operations {
		c.do(ctx)
		synctest.Wait()
		c.check(false)
		if c.t.Failed() {
			break
		}
	}
	c.setWild(false)
	c.host.leak(0)
	c.op = "end"
	c.calls.Wait()
	for id, l := range c.held {
		if err := l.Release(ctx, 0); err != nil {
			c.t.Errorf("release %s: %v", id, err)
		}
	}
	for _, e := range c.supply.Ledger().Machines {
		if e.State == StateProbing { // adopted in vain
			_ = c.supply.Discard(ctx, e.Machine)
		}
	}
	if err := c.supply.Drain(ctx); err != nil {
		c.t.Error(err)
	}
	time.Sleep(time.Hour)
	if _, err := c.reap(ctx); err != nil {
		c.t.Error(err)
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	c.check(true)
	if a := c.supply.Ledger(); a.Available != a.Capacity || a.Capacity.Slots != c.supply.ledger.capacity.Slots || a.Withheld != (Withheld{}) || len(a.Machines) != 0 || len(c.supply.ledger.claims) != 0 || c.supply.ledger.leaving != (Budget{}) {
		c.t.Errorf("seed %d: left in the end: %+v, claims %v, leaving %+v", c.seed, a, c.supply.ledger.claims, c.supply.ledger.leaving)
	}
	if n := len(c.host.images) + len(c.host.origins) + len(c.records.all) + len(c.supply.ledger.shelves.pools); n != 0 {
		c.t.Errorf("seed %d: left in the end: images %v, origins %v, records %v, pools %v", c.seed, c.host.images, c.host.origins, c.records.all, c.supply.ledger.shelves.pools)
	}
	for id, n := range c.host.made {
		if n != 1 && isWarmID(id) {
			c.t.Errorf("seed %d: machine %s was made %d times", c.seed, id, n)
		}
	}
	c.stop()
	for key, n := range c.host.pins {
		if n != 0 {
			c.t.Errorf("seed %d: snapshot %s is pinned %d times", c.seed, key, n)
		}
	}
}

func (c *chaotic) check(exact bool) {
	if err := c.consistent(exact); err != nil {
		c.t.Errorf("seed %d, step %d, %s: %v", c.seed, c.step, c.op, err)
	}
	// Above capacity is only what was there when it was cut, and what a restart finds.
	a := c.supply.Ledger()
	a.Capacity.Slots += a.Withheld.Slots // a refused machine has its slot until it is released
	used := a.Active.plus(a.Warm)
	for _, d := range dimensions {
		if now := *d.of(&used); now > *d.of(&a.Capacity) && now > *d.of(&c.used) && c.op != "restart" {
			c.t.Errorf("seed %d, step %d, %s: %d of %s are used, capacity is %d", c.seed, c.step, c.op, now, d.resource, *d.of(&a.Capacity))
		}
	}
	c.used = used
}

func (c *chaotic) setWild(wild bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wild = wild
}

func (c *chaotic) template(n int) Template {
	t := template(fmt.Sprint("t", n%3), fmt.Sprint("r", n%2))
	t.Shape.MemoryBytes *= int64(1 + n%2)
	if n%3 == 2 {
		t.GuestOS = vm.GuestMacOS
	}
	return t
}

func (c *chaotic) targets() []Target {
	var targets []Target
	for i := range 1 + c.rng.IntN(5) {
		t := target(fmt.Sprint("p", i), c.template(c.rng.IntN(6)), c.rng.IntN(4), c.rng.IntN(3)*50)
		t.MaxSurge, t.MaxUnavailable = c.rng.IntN(2), c.rng.IntN(3)
		if c.rng.IntN(4) == 0 {
			t.Reclaim = ReclaimNever
		}
		if c.rng.IntN(2) == 0 {
			t.MaxAge = time.Duration(1+c.rng.IntN(10)) * time.Minute
		}
		targets = append(targets, t)
	}
	return targets
}

// do does one operation.
func (c *chaotic) do(ctx context.Context) {
	if c.rng.IntN(50) == 0 {
		c.setWild(c.rng.IntN(2) == 0)
	}
	switch k := c.rng.IntN(1000); {
	case k < 350:
		c.op = "acquire"
		c.acquire(ctx)
	case k < 600:
		c.op = "release"
		c.release(ctx)
	case k < 800:
		c.op = "sleep"
		time.Sleep(time.Duration(c.rng.IntN(5000)) * time.Millisecond)
	case k < 850:
		c.op = "kill"
		c.spoil((*memoryMachine).exit)
	case k < 880:
		c.op = "hang"
		c.spoil((*memoryMachine).hang)
	case k < 920:
		c.op = "give up"
		c.mu.Lock()
		for _, cancel := range c.busy {
			cancel()
			break
		}
		c.mu.Unlock()
	case k < 950:
		c.op = "targets"
		c.supply.SetTargets(c.targets())
	case k < 965:
		c.op = "capacity"
		b := Budget{MilliCPU: 1000 * c.rng.Int64N(12), MemoryBytes: c.rng.Int64N(20) * 256 * mi, Slots: c.rng.Int64N(3)}
		if c.rng.IntN(2) == 0 {
			b = c.opts.Capacity
		}
		if err := c.supply.SetCapacity(b); err != nil {
			c.t.Error(err)
		}
	case k < 968:
		c.op = "leak"
		if !c.exact {
			c.host.leak(c.rng.IntN(2))
		}
	case k < 975:
		c.op = "disk"
		c.mu.Lock()
		c.free = c.chance.Int64N(100) << 30
		c.mu.Unlock()
	case k < 985:
		c.op = "reap"
		// What nobody has and the ledger does not know is nobody's: there is none. An earlier
		// look may have charged one that was being given back, and it may have come again since.
		charged := c.charged()
		reaped, err := c.reap(ctx, c.known()...)
		reaped = slices.DeleteFunc(reaped, func(id string) bool { return slices.Contains(charged, id) })
		if err != nil && !c.wild || len(reaped) > 0 {
			c.t.Errorf("seed %d, step %d: reaped %v, %v", c.seed, c.step, reaped, err)
		}
	case k < 995:
		c.op = "wait"
		time.Sleep(time.Duration(c.rng.IntN(10)) * time.Minute)
	case c.exact:
	default:
		c.op = "restart"
		c.restart(ctx)
	}
}

// charged are the machines that a look at all of them put into the ledger, for nobody.
func (c *chaotic) charged() []string {
	c.supply.mu.Lock()
	defer c.supply.mu.Unlock()
	return slices.Collect(maps.Keys(c.supply.pending))
}

// known are the requests that a provider has written down: of what it has, and of what it is
// about to have.
func (c *chaotic) known() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	var known []Request
	for _, l := range c.held {
		known = append(known, l.req)
	}
	for id := range c.busy {
		if c.held[id] == nil {
			known = append(known, request(id))
		}
	}
	return known
}

func (c *chaotic) acquire(ctx context.Context) {
	for range 1 + c.rng.IntN(3) {
		t := c.template(c.rng.IntN(6))
		req := templateRequest(fmt.Sprint("pod-", c.rng.IntN(12)), t)
		req.Path = []Path{"", "", "", "", PathRestore, PathCold}[c.rng.IntN(6)]
		switch c.rng.IntN(5) {
		case 0:
			req.Template, req.Refs = nil, nil
		case 1:
			req.Budget = Budget{MilliCPU: c.rng.Int64N(3000), MemoryBytes: t.Shape.MemoryBytes}
		}
		ctx, cancel := context.WithCancel(ctx)
		c.mu.Lock()
		_, busy := c.busy[req.MachineID]
		if !busy {
			c.busy[req.MachineID] = cancel
		}
		held := c.held[req.MachineID] != nil
		c.mu.Unlock()
		if busy {
			cancel()
			continue
		}
		c.calls.Go(func() {
			defer cancel()
			l, err := c.supply.Acquire(ctx, req)
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.busy, req.MachineID)
			switch {
			case err == nil && held:
				c.t.Errorf("seed %d, step %d: %s was given twice", c.seed, c.step, req.MachineID)
			case err == nil:
				c.held[req.MachineID] = l
			case ReasonOf(err) == "":
				c.t.Errorf("seed %d, step %d: an error that is no refusal: %v", c.seed, c.step, err)
			}
		})
	}
}

func (c *chaotic) release(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, l := range c.held {
		if c.busy[id] != nil {
			continue
		}
		grace := time.Duration(c.rng.IntN(2)) * time.Second
		rctx, cancel := context.WithCancel(ctx)
		c.busy[id] = cancel
		c.calls.Go(func() {
			defer cancel()
			err := l.Release(rctx, grace)
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.busy, id)
			if err == nil {
				delete(c.held, id)
			}
		})
		return
	}
}

func (c *chaotic) spoil(how func(*memoryMachine)) {
	ids := c.host.ids()
	if len(ids) == 0 {
		return
	}
	if m := c.host.machine(ids[c.rng.IntN(len(ids))]); m != nil {
		how(m)
	}
}

// restart is what the death of the process is, but that it ends what it had begun.
func (c *chaotic) restart(ctx context.Context) {
	wild := c.wild
	c.setWild(false)
	c.stop()
	c.calls.Wait()
	known := map[string]Request{}
	for id, l := range c.held {
		known[id] = l.req
	}
	c.held = map[string]*Lease{}
	c.start()
	c.setWild(wild)
	c.supply.SetTargets(c.targets())
	if err := c.supply.Start(ctx); err != nil {
		c.t.Error(err)
	}
	for id, req := range known {
		if l, err := c.supply.Adopt(ctx, req); err == nil {
			c.held[id] = l
		}
	}
	// What an earlier process was handing over when it ended is nobody's: it is reaped
	// here, so that no later reap finds anything.
	c.setWild(false)
	if _, err := c.reap(ctx, slices.Collect(maps.Values(known))...); err != nil {
		c.t.Error(err)
	}
	c.setWild(wild)
	// What could not be asked is tried until it can.
	for id := range known {
		if c.held[id] == nil {
			c.setWild(false)
			_ = c.supply.Discard(ctx, id)
			c.setWild(wild)
		}
	}
}
