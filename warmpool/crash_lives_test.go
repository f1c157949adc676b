// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// lives are ways through the supply, and the operations that each is to have.
var lives = []struct {
	name string
	live func(*caller)
	ops  []string
}{
	{"pods", (*caller).pods, []string{"build", "pull", "restore", "prove", "rehearse", "pause", "record", "resume", "refresh", "boot", "unrecord", "delete", "forget"}},
	{"evictions", (*caller).evictions, []string{"build", "restore", "rehearse", "pause", "record", "resume", "refresh", "unrecord", "delete", "forget"}},
	{"takeover", (*caller).takeover, []string{"list", "load", "dial", "ping", "resume", "pause", "unrecord", "delete", "forget"}},
}

// pods is a life of a node in which pods come and go: a template's snapshot is built, a pool
// filled, machines are checked out, restored, booted, one evicts entries, all are released.
func (c *caller) pods() {
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

// evictions is a life in which a pool's entries end in every other way than for a pod's need:
// dead at a checkout, given up in one, not finished, from a snapshot that is damaged, outdated,
// too old, for another pool, too many, under pressure.
func (c *caller) evictions() {
	tmpl := template("a", "r1")
	set := func(targets ...Target) {
		c.supply.SetTargets(targets)
		pass(time.Minute)
	}
	if err := c.supply.Start(context.Background()); err != nil && !c.crash.over() {
		c.t.Fatal(err)
	}
	set(target("a", tmpl, 2, 0))
	c.oldest((*memoryMachine).hang)
	c.acquire(templateRequest("pod-warm", tmpl))
	pass(time.Minute)
	c.host.setDelay(func(op, _ string) time.Duration {
		if op == "refresh" {
			return 2 * time.Second
		}
		return 0
	})
	c.giveUp(templateRequest("pod-given-up", tmpl), time.Second)
	c.host.setDelay(nil)
	c.crash.once("rehearse", errBoom)
	set(target("a", tmpl, 3, 0))
	c.crash.once("restore", vm.ErrSnapshotInvalid)
	restored := templateRequest("pod-restored", tmpl)
	restored.Path = PathRestore
	c.acquire(restored)
	set(target("a", template("a", "r2"), 2, 0))
	aged := target("a", template("a", "r2"), 2, 0)
	aged.MaxAge = 2 * time.Minute
	set(aged)
	pass(2 * time.Minute)
	set(target("a", template("a", "r2"), 3, 0), target("b", template("b", "r1"), 3, 9))
	set(target("a", template("a", "r2"), 0, 0), target("b", template("b", "r1"), 1, 9))
	c.supply.Press(Skip{Reason: SkipMemoryPressure})
	for more := true; more && !c.crash.over(); {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		more, _ = c.supply.Shed(ctx, true)
		cancel()
	}
	c.supply.Press(Skip{})
	pass(time.Minute)
	for _, id := range []string{"pod-restored", "pod-warm"} {
		c.release(id)
	}
	pass(time.Minute)
}

// takeover is the life of a process that comes after one that died in the middle of a
// checkout, beside pods and warm entries of which one does not answer.
func (c *caller) takeover() {
	c.crash.mu.Lock()
	c.crash.until = "resume"
	c.crash.mu.Unlock()
	tmpl := template("a", "r1")
	if err := c.supply.Start(context.Background()); err != nil {
		c.t.Fatal(err)
	}
	c.supply.SetTargets([]Target{target("a", tmpl, 3, 0)})
	pass(time.Minute)
	restored := templateRequest("pod-restored", tmpl)
	restored.Path = PathRestore
	c.acquire(restored)
	c.acquire(request("pod-base"))
	c.oldest((*memoryMachine).hang)
	c.acquire(templateRequest("pod-cut-off", tmpl))
	c.stop()
	if !c.crash.over() {
		c.t.Fatal("the first process has not died")
	}
	c.crash.begin()
	c.host.reopen()
	supply, err := New(c.opts)
	if err != nil {
		if !c.crash.over() {
			c.t.Fatal(err)
		}
		return
	}
	c.supply = supply
	c.supply.SetTargets([]Target{target("a", tmpl, 3, 0)})
	c.takeUp()
	pass(2 * time.Minute)
}

// oldest does something to the entry that is checked out next.
func (c *caller) oldest(how func(*memoryMachine)) {
	c.supply.ledger.mu.Lock()
	defer c.supply.ledger.mu.Unlock()
	if p := c.supply.ledger.shelves.pools["ns/a"]; p != nil && len(p.ready) > 0 {
		how(p.ready[0].machine.(*memoryMachine))
	}
}

// giveUp asks for a machine and does not wait for it.
func (c *caller) giveUp(req Request, after time.Duration) {
	if c.crash.over() {
		return
	}
	c.wants[req.MachineID] = &wanted{req: req}
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	_, err := c.supply.Acquire(ctx, req)
	if c.crash.over() {
		return
	}
	if err == nil {
		c.t.Errorf("%s was not given up", req.MachineID)
	}
	delete(c.wants, req.MachineID)
}
