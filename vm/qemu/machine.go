// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guestport"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// forceTimeout is how long an end by force may take before it is reported as
// unavailable: the kernel unmaps the memory of a killed process in well under it.
const forceTimeout = 30 * time.Second

// machine is one QEMU process and its directory.
type machine struct {
	driver *Driver
	id     string
	dir    string
	stderr *process.Tail // nil for a machine that an earlier process started

	// exited is closed once the machine has ended and exit is set.
	exited chan struct{}

	// op serializes what changes the machine's state; a buffered channel, so that
	// waiting for it can be cancelled. Ending by force does not take it.
	op chan struct{}

	mu      sync.Mutex
	record  record
	process *process.Process
	qmp     *qmp          // nil while not connected
	online  chan struct{} // closed while qmp is not nil
	exit    vm.Exit
	guest   *guestConn
	deleted bool
	// ending: exit is decided and recorded, the process is being ended.
	ending bool
}

var (
	_ vm.Machine  = (*machine)(nil)
	_ vm.Pauser   = (*machine)(nil)
	_ vm.Saver    = (*machine)(nil)
	_ vm.Consoler = (*machine)(nil)
	_ vm.Meter    = (*machine)(nil)
)

func newMachine(d *Driver, r record) *machine {
	return &machine{
		driver: d,
		id:     r.ID,
		dir:    d.machines.Dir(r.ID),
		record: r,
		exited: make(chan struct{}),
		online: make(chan struct{}),
		op:     make(chan struct{}, 1),
	}
}

// ID is part of vm.Machine.
func (m *machine) ID() string { return m.id }

// wrap says which machine and what was done to it.
func (m *machine) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s machine %q: %w", doing, m.id, err)
}

// alive checks that the machine was not deleted and its driver not closed.
func (m *machine) alive() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deleted {
		return vm.ErrNotFound
	}
	return m.driver.machines.Err()
}

func (m *machine) hasExited() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// monitor returns the control connection, waiting for it to come back if it is
// lost. ErrInvalidState once the machine has exited.
func (m *machine) monitor(ctx context.Context) (*qmp, error) {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	for {
		m.mu.Lock()
		q, online := m.qmp, m.online
		m.mu.Unlock()
		if m.hasExited() {
			return nil, fmt.Errorf("%w: it has exited", vm.ErrInvalidState)
		}
		if q != nil {
			return q, nil
		}
		select {
		case <-online:
		case <-m.exited:
		case <-m.driver.machines.Closing():
			return nil, machinedir.ErrClosed
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, fmt.Errorf("%w: the hypervisor's control socket does not answer: %w", vm.ErrUnavailable, ctx.Err())
			}
			return nil, ctx.Err()
		}
	}
}

// begin takes the right to change the machine's state and returns the control
// connection. The caller must call end if err is nil.
func (m *machine) begin(ctx context.Context) (q *qmp, end func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if err := m.alive(); err != nil {
		return nil, nil, err
	}
	select {
	case m.op <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	q, err = m.monitor(ctx)
	if err != nil {
		<-m.op
		return nil, nil, err
	}
	return q, func() { <-m.op }, nil
}

// settle turns the error of a command to a machine that ended meanwhile into the
// one that says so.
func (m *machine) settle(err error) error {
	if err != nil && errors.Is(err, vm.ErrUnavailable) {
		m.mu.Lock()
		ending := m.ending
		m.mu.Unlock()
		if ending || m.hasExited() {
			return fmt.Errorf("%w: it has exited", vm.ErrInvalidState)
		}
	}
	return err
}

// stateOf translates QEMU's run state.
func stateOf(run string) vm.State {
	switch run {
	case runRunning, runSuspended:
		return vm.StateRunning
	case runShutdown, runPanicked, runInternal:
		return vm.StateExited
	default:
		return vm.StatePaused
	}
}

// State is part of vm.Machine.
func (m *machine) State(ctx context.Context) (vm.State, error) {
	if err := ctx.Err(); err != nil {
		return "", m.wrap("ask", err)
	}
	if err := m.alive(); err != nil {
		return "", m.wrap("ask", err)
	}
	if m.hasExited() {
		return vm.StateExited, nil
	}
	q, err := m.monitor(ctx)
	if err == nil {
		var run string
		if run, err = q.runState(ctx); err == nil {
			return stateOf(run), nil
		}
	}
	if errors.Is(m.settle(err), vm.ErrInvalidState) {
		return vm.StateExited, nil
	}
	return "", m.wrap("ask", err)
}

// Resume is part of vm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	q, end, err := m.begin(ctx)
	if err != nil {
		return m.wrap("resume", err)
	}
	defer end()
	return m.wrap("resume", m.settle(m.resume(ctx, q)))
}

func (m *machine) resume(ctx context.Context, q *qmp) error {
	run, err := q.runState(ctx)
	if err != nil {
		return err
	}
	switch stateOf(run) {
	case vm.StateRunning:
		return nil
	case vm.StateExited:
		return fmt.Errorf("%w: it has exited", vm.ErrInvalidState)
	case vm.StatePaused: // the one to resume
	}
	// What the last save wrote is of no use once the machine goes on.
	if err := os.Remove(filepath.Join(m.dir, stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := q.execute(ctx, "cont", nil); err != nil {
		return commandError(err)
	}
	return nil
}

// commandError gives a refusal by QEMU a kind.
func commandError(err error) error {
	if refusal := (*qmpError)(nil); errors.As(err, &refusal) {
		return fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	return err
}

// Pause is part of vm.Pauser.
func (m *machine) Pause(ctx context.Context) error {
	q, end, err := m.begin(ctx)
	if err != nil {
		return m.wrap("pause", err)
	}
	defer end()
	run, err := q.runState(ctx)
	if err == nil && stateOf(run) == vm.StateExited {
		err = fmt.Errorf("%w: it has exited", vm.ErrInvalidState)
	}
	if err == nil && stateOf(run) == vm.StateRunning {
		if _, err = q.execute(ctx, "stop", nil); err != nil {
			err = commandError(err)
		}
	}
	return m.wrap("pause", m.settle(err))
}

// DialGuest is part of vm.Machine. Only vm.AgentPort exists.
func (m *machine) DialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := m.dialGuest(ctx, port)
	if err != nil {
		return nil, m.wrap("dial guest of", err)
	}
	return conn, nil
}

func (m *machine) dialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := m.alive(); err != nil {
		return nil, err
	}
	if port != vm.AgentPort {
		return nil, fmt.Errorf("%w: guest port %d, only %d exists", vm.ErrNotSupported, port, vm.AgentPort)
	}
	if m.hasExited() {
		return nil, fmt.Errorf("%w: it has exited", vm.ErrInvalidState)
	}
	g := &guestConn{machine: m}
	m.mu.Lock()
	if m.guest != nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("%w: it has a stream to its guest already", vm.ErrUnavailable)
	}
	m.guest = g
	m.mu.Unlock()
	conn, err := guestport.Open(ctx, func(ctx context.Context) (net.Conn, error) {
		return machinedir.DialUnix(ctx, m.dir, agentSocket)
	})
	if err != nil {
		m.release(g)
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	m.mu.Lock()
	g.Conn = conn
	m.mu.Unlock()
	// Whoever ended the machine or closed the driver meanwhile has either seen the
	// stream, or is seen here.
	if err := m.alive(); err != nil {
		_ = g.Close()
		return nil, err
	}
	return g, nil
}

// hangUp ends the stream to the guest, if there is one.
func (m *machine) hangUp() {
	m.mu.Lock()
	guest := m.guest
	dialled := guest != nil && guest.Conn != nil
	m.mu.Unlock()
	if dialled {
		_ = guest.Close()
	}
}

// guestConn is the one stream to the guest.
type guestConn struct {
	*guestport.Conn
	machine *machine
}

// Close ends the stream and makes room for the next.
func (g *guestConn) Close() error {
	err := g.Conn.Close()
	g.machine.release(g)
	return err
}

func (m *machine) release(g *guestConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest == g {
		m.guest = nil
	}
}

// Stop is part of vm.Machine.
func (m *machine) Stop(ctx context.Context, grace time.Duration) error {
	if err := ctx.Err(); err != nil {
		return m.wrap("stop", err)
	}
	if err := m.alive(); err != nil {
		return m.wrap("stop", err)
	}
	if m.hasExited() {
		return nil
	}
	if grace > 0 {
		ended, err := m.askToEnd(ctx, grace)
		if ended || err != nil {
			return m.wrap("stop", err)
		}
	}
	return m.wrap("stop", m.force(ctx))
}

// askToEnd presses the power button and waits for grace. It is not an error if the
// guest cannot be reached: the end by force follows. The error is ctx's.
func (m *machine) askToEnd(ctx context.Context, grace time.Duration) (ended bool, err error) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	asking, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if q, err := m.monitor(asking); err == nil {
		run, err := q.runState(asking)
		if err != nil || stateOf(run) == vm.StatePaused {
			return false, ctx.Err()
		}
		m.mu.Lock()
		m.record.Stopping = true
		r := m.record
		m.mu.Unlock()
		if err := machinedir.NoteJSON(m.driver.machines.FS, m.dir, recordFile, r); err != nil {
			m.driver.log.Warn("Cannot record that the machine is being stopped", "machine", m.id, "err", err)
		}
		if _, err := q.execute(asking, "system_powerdown", nil); err != nil && !m.hasExited() {
			return false, ctx.Err()
		}
	}
	select {
	case <-m.exited:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	case <-m.driver.machines.Closing():
		return false, machinedir.ErrClosed
	}
}

// force ends the machine: the exit is recorded first, so that a driver that finds
// the process later knows that it is to be ended and why.
func (m *machine) force(ctx context.Context) error {
	if err := m.decide(vm.Exit{Reason: vm.ExitStopped, Time: time.Now().UTC(), Detail: "ended by force"}); err != nil {
		return err
	}
	timer := time.NewTimer(forceTimeout)
	defer timer.Stop()
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.driver.machines.Closing():
		return machinedir.ErrClosed
	case <-timer.C:
		return fmt.Errorf("%w: the hypervisor's process does not end", vm.ErrUnavailable)
	}
}

// decide records how the machine ends, unless that is decided already, and ends
// the process.
func (m *machine) decide(exit vm.Exit) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hasExited() {
		return nil
	}
	if !m.ending {
		exit.Detail = bounded(exit.Detail)
		if err := machinedir.NoteJSON(m.driver.machines.FS, m.dir, exitFile, exit); err != nil {
			// On a full disk a machine must still be stoppable.
			m.driver.log.Warn("Cannot record the exit of the machine", "machine", m.id, "err", err)
		}
		m.exit, m.ending = exit, true
	}
	return m.process.Kill()
}

// Wait is part of vm.Machine.
func (m *machine) Wait(ctx context.Context) (vm.Exit, error) {
	if err := m.alive(); err != nil {
		return vm.Exit{}, m.wrap("wait for", err)
	}
	select {
	case <-m.exited:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.exit, nil
	default:
	}
	select {
	case <-m.exited:
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.deleted {
			return vm.Exit{}, m.wrap("wait for", vm.ErrNotFound)
		}
		return m.exit, nil
	case <-ctx.Done():
		return vm.Exit{}, m.wrap("wait for", ctx.Err())
	case <-m.driver.machines.Closing():
		return vm.Exit{}, m.wrap("wait for", machinedir.ErrClosed)
	}
}

// Delete is part of vm.Machine.
func (m *machine) Delete(ctx context.Context) error {
	m.mu.Lock()
	deleted := m.deleted
	m.mu.Unlock()
	if deleted {
		return nil
	}
	return m.wrap("delete", m.delete(ctx))
}

func (m *machine) delete(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.alive(); err != nil {
		return err
	}
	if !m.hasExited() {
		if err := m.force(ctx); err != nil {
			return err
		}
	}
	// Whatever was being done to it ends now that the process is gone.
	select {
	case m.op <- struct{}{}:
		defer func() { <-m.op }()
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	deleted := m.deleted
	m.mu.Unlock()
	if deleted {
		return nil // by a call that was before this one: the id may be another machine's by now
	}
	if err := m.driver.machines.Remove(m.id, m.driver.binary); err != nil {
		return err
	}
	m.mu.Lock()
	m.deleted = true
	m.mu.Unlock()
	m.hangUp()
	m.driver.machines.Forget(m.id, m)
	return nil
}

// Console is part of vm.Consoler.
func (m *machine) Console(ctx context.Context) ([]byte, error) {
	if err := m.alive(); err != nil {
		return nil, m.wrap("read console of", err)
	}
	if m.hasExited() {
		text, err := machinedir.ReadTail(filepath.Join(m.dir, consoleFile), consoleBytes)
		return text, m.wrap("read console of", err)
	}
	q, end, err := m.begin(ctx)
	if err != nil {
		return nil, m.wrap("read console of", err)
	}
	defer end()
	text, err := m.keepConsole(ctx, q)
	return text, m.wrap("read console of", m.settle(err))
}

// keepConsole takes what is in QEMU's ring, which reading empties, and keeps it
// with what was taken before.
func (m *machine) keepConsole(ctx context.Context, q *qmp) ([]byte, error) {
	path := filepath.Join(m.dir, consoleFile)
	before, err := machinedir.ReadTail(path, consoleBytes)
	if err != nil {
		return nil, err
	}
	fresh, err := q.console(ctx)
	if err != nil {
		return nil, commandError(err)
	}
	text := slices.Concat(before, fresh)
	if len(text) > consoleBytes {
		text = text[len(text)-consoleBytes:]
	}
	if len(fresh) > 0 {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return text, machinedir.NoSpace(err)
		}
	}
	return text, nil
}

// Usage is part of vm.Meter.
func (m *machine) Usage(context.Context) (vm.Usage, error) {
	if err := m.alive(); err != nil {
		return vm.Usage{}, m.wrap("measure", err)
	}
	var u vm.Usage
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return u, m.wrap("measure", err)
	}
	var memory int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			u.DiskBytes += machinedir.AllocatedBytes(info)
			if e.Name() == memoryFile {
				memory = machinedir.AllocatedBytes(info)
			}
		}
	}
	m.mu.Lock()
	p := m.process
	m.mu.Unlock()
	if m.hasExited() || p == nil {
		return u, nil
	}
	// A memory file of its own lies in the page cache: as good as private.
	u.PrivateBytes, u.CPUTime, err = process.Measure(p.Identity().PID)
	u.PrivateBytes += memory
	return u, m.wrap("measure", err)
}
