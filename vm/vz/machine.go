// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

const (
	// stopTimeout is the default of Options.StopTimeout.
	stopTimeout = 10 * time.Second
	// maxGrace keeps sums of durations from overflowing: nobody waits longer.
	maxGrace = 365 * 24 * time.Hour
	// endTimeout is how long the end of a shim may take that answers no more: two seconds
	// of leave-taking, and what the process itself needs.
	endTimeout = 5 * time.Second
	// forceTimeout is how long the end of a killed process may take before it is reported
	// as unavailable.
	forceTimeout = 30 * time.Second
	// consoleBytes is what vm.Consoler promises.
	consoleBytes = 64 << 10
)

// errExited: the machine has ended.
var errExited = fmt.Errorf("%w: it has exited", vm.ErrInvalidState)

// machine is one shim and its directory.
type machine struct {
	driver *Driver
	id     string
	dir    string
	client *control.Client
	stderr *process.Tail // nil for a shim that an earlier process started

	// exited is closed once the machine has ended and exit is set.
	exited chan struct{}
	// op serializes deletions; a buffered channel, so that waiting for it can be cancelled.
	op chan struct{}

	mu      sync.Mutex
	record  layout.Record
	process *process.Process
	exit    vm.Exit                 // guarded by mu until exited is closed
	guests  map[*guestConn]struct{} // guarded by mu
	deleted bool                    // guarded by mu
}

var (
	_ vm.Machine  = (*machine)(nil)
	_ vm.Pauser   = (*machine)(nil)
	_ vm.Saver    = (*machine)(nil)
	_ vm.Consoler = (*machine)(nil)
)

func newMachine(d *Driver, r layout.Record) *machine {
	dir := d.machines.Dir(r.ID)
	return &machine{
		driver: d, id: r.ID, dir: dir, record: r, client: control.NewClient(dir),
		exited: make(chan struct{}), op: make(chan struct{}, 1), guests: map[*guestConn]struct{}{},
	}
}

var _ vm.Describer = (*machine)(nil)

// Config is part of vm.Describer.
func (m *machine) Config() vm.Config { return m.record.Config }

// ID is part of vm.Machine.
func (m *machine) ID() string { return m.id }

// wrap says which machine and what was done to it.
func (m *machine) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s machine %q: %w", doing, m.id, err)
}

// usable checks that the call may begin at all.
func (m *machine) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
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

// ask makes a request to the shim of a machine that lives. Its errors are those of a
// machine: one that ended meanwhile has exited, and the shim that cannot be reached any
// more is no more than that.
func (m *machine) ask(ctx context.Context, f func(ctx context.Context) error) error {
	if err := m.usable(ctx); err != nil {
		return err
	}
	if m.hasExited() {
		return errExited
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.driver.machines.Life(), cancel)()
	err := f(asking)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case m.driver.machines.Err() != nil:
		return machinedir.ErrClosed
	case errors.Is(err, vm.ErrUnavailable) && !control.Answered(err) && m.endsSoon(ctx):
		return errExited
	default:
		return err
	}
}

// endsSoon waits a moment for the end of a shim that has stopped answering: its socket
// falls silent before it takes leave of those who wait for the machine's end.
func (m *machine) endsSoon(ctx context.Context) bool {
	timer := time.NewTimer(endTimeout)
	defer timer.Stop()
	select {
	case <-m.exited:
		return true
	case <-timer.C:
	case <-ctx.Done():
	case <-m.driver.machines.Closing():
	}
	return m.hasExited()
}

// State is part of vm.Machine.
func (m *machine) State(ctx context.Context) (vm.State, error) {
	var state vm.State
	err := m.ask(ctx, func(ctx context.Context) (err error) {
		state, err = m.client.State(ctx)
		return err
	})
	if errors.Is(err, errExited) {
		return vm.StateExited, nil
	}
	return state, m.wrap("ask", err)
}

// Resume is part of vm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	return m.wrap("resume", m.ask(ctx, m.client.Resume))
}

// Pause is part of vm.Pauser.
func (m *machine) Pause(ctx context.Context) error {
	return m.wrap("pause", m.ask(ctx, m.client.Pause))
}

// Save is part of vm.Saver. The machine can go on afterwards: its disks are cloned.
func (m *machine) Save(ctx context.Context, dir string) ([]string, error) {
	var files []string
	err := m.ask(ctx, func(ctx context.Context) (err error) {
		files, err = m.client.Save(ctx, dir)
		return err
	})
	return files, m.wrap("save", err)
}

// DialGuest is part of vm.Machine.
func (m *machine) DialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	g, err := m.dialGuest(ctx, port)
	if err != nil {
		return nil, m.wrap("dial guest of", err)
	}
	return g, nil
}

func (m *machine) dialGuest(ctx context.Context, port uint32) (*guestConn, error) {
	if err := m.usable(ctx); err != nil {
		return nil, err
	}
	g := &guestConn{machine: m}
	if err := m.admit(g, port); err != nil {
		return nil, err
	}
	err := m.ask(ctx, func(ctx context.Context) error {
		conn, err := m.client.Dial(ctx, port)
		if err == nil {
			m.mu.Lock()
			g.Conn = conn
			m.mu.Unlock()
		}
		return err
	})
	if err != nil {
		m.release(g)
		return nil, err
	}
	// Whoever ended the machine or closed the driver meanwhile has either seen the stream,
	// or is seen here.
	if err := m.usable(ctx); err != nil {
		_ = g.Close()
		return nil, err
	}
	return g, nil
}

// admit makes room for a stream.
func (m *machine) admit(g *guestConn, port uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.driver.features.SingleConn {
		if port != vm.AgentPort {
			return fmt.Errorf("%w: guest port %d, only %d exists", vm.ErrNotSupported, port, vm.AgentPort)
		}
		if len(m.guests) > 0 {
			return fmt.Errorf("%w: it has a stream to its guest already", vm.ErrUnavailable)
		}
	}
	m.guests[g] = struct{}{}
	return nil
}

func (m *machine) release(g *guestConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.guests, g)
}

// hangUp ends the streams to the guest.
func (m *machine) hangUp() {
	m.mu.Lock()
	var open []*guestConn
	for g := range m.guests {
		if g.Conn != nil {
			open = append(open, g)
		}
	}
	m.mu.Unlock()
	for _, g := range open {
		_ = g.Close()
	}
	m.client.Close()
}

// guestConn is a stream to the guest.
type guestConn struct {
	net.Conn
	machine *machine
}

// Close ends the stream and makes room for the next.
func (g *guestConn) Close() error {
	err := g.Conn.Close()
	g.machine.release(g)
	return err
}

// Stop is part of vm.Machine.
func (m *machine) Stop(ctx context.Context, grace time.Duration) error {
	if err := m.usable(ctx); err != nil {
		return m.wrap("stop", err)
	}
	return m.wrap("stop", m.stop(ctx, grace))
}

func (m *machine) stop(ctx context.Context, grace time.Duration) error {
	if m.hasExited() {
		return nil
	}
	grace = min(grace, maxGrace)
	polite, cancel := context.WithTimeout(ctx, grace+m.driver.opts.StopTimeout)
	err := m.ask(polite, func(ctx context.Context) error { return m.client.Stop(ctx, grace) })
	cancel()
	if err != nil && !errors.Is(err, errExited) {
		if ctx.Err() != nil || m.driver.machines.Err() != nil {
			return errors.Join(ctx.Err(), m.driver.machines.Err())
		}
		m.driver.log.Warn("The shim does not end its machine, and is killed", "machine", m.id, "err", err)
		// If its process ended meanwhile there is no handle to kill it by.
		if err := m.kill(); err != nil && !m.hasExited() {
			return err
		}
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
		// It has ended its machine but not itself.
		if err := m.kill(); m.hasExited() {
			return nil
		} else if err != nil {
			return err
		}
		return fmt.Errorf("%w: its shim's process does not end", vm.ErrUnavailable)
	}
}

// watch owns the shim's process from the time that the machine is known until it has
// ended or the driver is closed.
func (m *machine) watch() {
	ended := make(chan bool, 1)
	go func() { ended <- m.process.Wait() }()
	var late <-chan time.Time
	if _, ending := m.knownExit(); ending {
		// It was found ending: by its shim, or by a process that died before it killed that.
		timer := time.NewTimer(m.driver.opts.StopTimeout)
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case gone := <-ended:
			if gone {
				m.finish()
			}
			m.letGo()
			return
		case <-late:
			if err := m.process.Kill(); err != nil {
				m.driver.log.Error("Cannot end the shim of an ended machine", "machine", m.id, "err", err)
			}
			late = nil
		case <-m.driver.machines.Closing():
			m.process.Close()
			<-ended
			m.letGo()
			return
		}
	}
}

// letGo releases what belongs to the process's handle.
func (m *machine) letGo() {
	m.process.Close()
	if m.stderr != nil {
		m.stderr.Close()
	}
}

// finish publishes the exit of a machine whose shim has ended.
func (m *machine) finish() {
	status, child := m.process.Reap()
	if !child {
		status = "its process has ended"
	}
	detail := "its shim died: " + status
	if m.stderr != nil {
		m.stderr.Settle()
		if text := m.stderr.String(); text != "" {
			detail += ": " + text
		}
	}
	exit := m.recordedExit(detail)
	m.mu.Lock()
	m.exit = exit
	m.mu.Unlock()
	close(m.exited)
	m.client.Close()
}

// Wait is part of vm.Machine.
func (m *machine) Wait(ctx context.Context) (vm.Exit, error) {
	if m.hasExited() {
		ctx = context.WithoutCancel(ctx)
	}
	if err := m.usable(ctx); err != nil {
		return vm.Exit{}, m.wrap("wait for", err)
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
	if err := m.usable(ctx); err != nil {
		return err
	}
	if err := m.stop(ctx, 0); err != nil {
		return err
	}
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
	if err := m.driver.machines.Remove(m.id, m.driver.program); err != nil {
		return err
	}
	m.mu.Lock()
	m.deleted = true
	m.mu.Unlock()
	m.hangUp()
	m.driver.machines.Forget(m.id, m)
	return nil
}

// Console is part of vm.Consoler. It reads what the shim has written down, so it works
// in every state.
func (m *machine) Console(ctx context.Context) ([]byte, error) {
	if err := m.usable(ctx); err != nil {
		return nil, m.wrap("read console of", err)
	}
	var text []byte
	for _, name := range []string{layout.ConsoleBefore, layout.ConsoleFile} {
		part, err := machinedir.ReadTail(filepath.Join(m.dir, name), consoleBytes)
		if err != nil {
			return nil, m.wrap("read console of", err)
		}
		text = slices.Concat(text, part)
	}
	return text[max(0, len(text)-consoleBytes):], nil
}
