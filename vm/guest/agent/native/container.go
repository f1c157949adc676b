// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

const (
	sigKill = 9
	// killEvery is how long killed processes are given before it is looked again whether
	// there are others, and killPatience how long until that is an error.
	killEvery    = 10 * time.Millisecond
	killPatience = 10 * time.Second
	// maxKillPasses bounds the search for processes that are born while others are killed.
	maxKillPasses = 20
)

// container is a first process and those that came after it.
type container struct {
	*process

	r      *Runtime
	spec   agent.ContainerSpec
	who    account
	linked []string // guarded by removing once Create is over

	removing sync.Mutex

	life     sync.Mutex
	started  bool         // guarded by life, like all below
	ended    bool         // the first process has ended, or will never be
	sessions map[int]bool // of all its processes: whether the leader is there

	measuring sync.Mutex
	meter     Meter // guarded by measuring
}

var _ agent.Container = (*container)(nil)

// env is the environment of a process. Of a name that is there twice the last counts.
func (c *container) env(more []string, tty bool) []string {
	values := map[string]string{"PATH": c.r.opts.Path, "HOME": c.who.home}
	order := []string{"PATH", "HOME"}
	if tty {
		values["TERM"] = "xterm"
		order = append(order, "TERM")
	}
	for _, e := range append(slices.Clone(c.spec.Env), more...) {
		name, value, _ := strings.Cut(e, "=")
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = value
	}
	out := make([]string, len(order))
	for i, name := range order {
		out[i] = name + "=" + values[name]
	}
	return out
}

// Start implements agent.Container, like the methods below. After an error the container
// waits for its removal.
func (c *container) Start(context.Context) error {
	c.life.Lock()
	defer c.life.Unlock()
	if c.started || c.ended {
		return nil
	}
	if err := os.MkdirAll(c.spec.WorkingDir, 0o755); err != nil {
		return &agent.StartError{Err: fmt.Errorf("make working directory: %w", err)}
	}
	if err := c.start(program{args: c.spec.Args, env: c.env(nil, c.spec.TTY), dir: c.spec.WorkingDir, who: c.who}); err != nil {
		return err
	}
	c.started = true
	c.sessions[c.Pid()] = true
	go func() {
		exit := c.wait()
		c.life.Lock()
		c.ended = true
		c.sessions[c.Pid()] = false
		c.life.Unlock()
		if _, err := c.kill(); err != nil {
			c.r.opts.Logger.Warn("Killing what a container left failed", "container", c.spec.ID, "error", err)
		}
		c.end(exit)
	}()
	return nil
}

func (c *container) Exec(_ context.Context, spec agent.ExecSpec) (agent.Process, error) {
	p, err := openProcess(c.who, spec.Stdin, spec.TTY)
	if err != nil {
		return nil, err
	}
	if err := c.exec(p, spec); err != nil {
		p.end(agent.Exit{})
		p.Release()
		return nil, err
	}
	go func() {
		exit := p.wait()
		c.leaderGone(p.Pid())
		p.end(exit)
	}()
	return p, nil
}

func (c *container) exec(p *process, spec agent.ExecSpec) error {
	if spec.TTY && spec.Cols > 0 && spec.Rows > 0 {
		if err := p.Resize(spec.Cols, spec.Rows); err != nil {
			return err
		}
	}
	// Held until the session is known: whoever ends the container finds it.
	c.life.Lock()
	defer c.life.Unlock()
	if !c.started || c.ended {
		return fmt.Errorf("%w: container %q is not running", agent.ErrPrecondition, c.spec.ID)
	}
	prog := program{args: spec.Args, env: c.env(spec.Env, spec.TTY), dir: cmp.Or(spec.WorkingDir, c.spec.WorkingDir), who: c.who}
	if err := p.start(prog); err != nil {
		return err
	}
	c.sessions[p.Pid()] = true
	return nil
}

// leaderGone forgets a session that has nobody left.
func (c *container) leaderGone(sid int) {
	c.life.Lock()
	c.sessions[sid] = false
	c.life.Unlock()
	all, err := c.r.listed()
	if err != nil {
		return // it is looked at again by members
	}
	if !slices.ContainsFunc(all, func(e entry) bool { return e.sid == sid && !e.dead }) {
		c.life.Lock()
		delete(c.sessions, sid)
		c.life.Unlock()
	}
}

// members are the processes of the container: those in its sessions, and all that descend
// from them.
func (c *container) members() ([]entry, error) {
	all, err := c.r.listed()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	c.life.Lock()
	for _, e := range all {
		if leader, ours := c.sessions[e.pid]; ours && !leader && !e.dead && e.sid == e.pid {
			// The session ended unnoticed and its number was given out again, to somebody else.
			delete(c.sessions, e.pid)
		}
	}
	in := map[int]bool{}
	var out []entry
	for _, e := range all {
		if _, ours := c.sessions[e.sid]; ours && e.sid != 0 {
			in[e.pid] = true
			out = append(out, e)
		}
	}
	c.life.Unlock()
	for found := true; found; {
		found = false
		for _, e := range all {
			if !in[e.pid] && in[e.ppid] {
				in[e.pid], found = true, true
				out = append(out, e)
			}
		}
	}
	return slices.DeleteFunc(out, func(e entry) bool { return e.dead }), nil
}

// kill kills every process of the container, and those that they start meanwhile, and
// returns how many of them were there last.
func (c *container) kill() (left int, err error) {
	seen := map[int]bool{}
	for range maxKillPasses {
		members, err := c.members()
		if err != nil {
			return 0, err
		}
		left = len(members)
		fresh := false
		for _, e := range members {
			fresh = fresh || !seen[e.pid]
			seen[e.pid] = true
			if err := unix.Kill(e.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return left, fmt.Errorf("kill process %d: %w", e.pid, err)
			}
		}
		if !fresh {
			break
		}
	}
	return left, nil
}

// Signal overrides that of the process: one that was never started has only one end.
func (c *container) Signal(signal int) error {
	if signal == sigKill && c.abandon() {
		return nil
	}
	return c.process.Signal(signal)
}

// abandon ends a container that was not started, and reports whether it did.
func (c *container) abandon() bool {
	c.life.Lock()
	defer c.life.Unlock()
	if c.started || c.ended {
		return false
	}
	c.ended = true
	c.end(agent.Exit{Code: 128 + sigKill, Signal: sigKill, Time: time.Now()})
	return true
}

func (c *container) SignalAll(signal int) error {
	sig, err := toSystem(signal)
	if err != nil {
		return err
	}
	if sig == syscall.SIGKILL {
		if c.abandon() {
			return nil
		}
		_, err := c.kill()
		return err
	}
	members, err := c.members()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range members {
		if err := unix.Kill(e.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("signal process %d: %w", e.pid, err))
		}
	}
	return errors.Join(errs...)
}

func (c *container) Stats() (agent.ContainerStats, error) {
	members, err := c.members()
	if err != nil {
		return agent.ContainerStats{}, err
	}
	c.measuring.Lock()
	defer c.measuring.Unlock()
	now, err := processUsage(members)
	if err != nil {
		return agent.ContainerStats{}, fmt.Errorf("measure processes: %w", err)
	}
	out := agent.ContainerStats{CPUTime: c.meter.Add(now), PIDs: int64(len(members))}
	for _, u := range now {
		out.MemoryBytes += u.MemoryBytes
	}
	// Pages that processes share count for each of them, and there is no cache in this.
	out.WorkingSetBytes, out.RSSBytes = out.MemoryBytes, out.MemoryBytes
	return out, nil
}

// Update refuses every limit, as Create does; what only weighs containers against each other
// does nothing here.
func (c *container) Update(_ context.Context, limits agent.Resources) error {
	return c.r.refuse(agent.ContainerSpec{Lower: c.r.opts.Root, Resources: limits})
}

func (c *container) Remove(ctx context.Context) error {
	c.removing.Lock()
	defer c.removing.Unlock()
	c.abandon()
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	again := time.NewTicker(killEvery)
	defer again.Stop()
	for {
		left, err := c.kill()
		if err != nil {
			return fmt.Errorf("kill container: %w", err)
		}
		over := false
		select {
		case <-c.done:
			over = true
		default:
		}
		if over && left == 0 {
			break
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d killed processes: %w", left, ctx.Err())
		}
	}
	err := c.r.links.remove(c.linked)
	c.linked = nil
	if err != nil {
		return fmt.Errorf("remove mounts: %w", err)
	}
	return nil
}

// entry is a process of the machine.
type entry struct {
	pid, ppid, sid int
	dead           bool // and not waited for
}
