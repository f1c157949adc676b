// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/network"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// stopTimeout is how long the framework may take to pull a machine's plug before the
// process ends with it.
const stopTimeout = 5 * time.Second

// endTimeout is how long the process may live on once its machine's end is written down:
// the framework has stopTimeout, whoever asks has farewell, streams and disks the rest.
const endTimeout = 15 * time.Second

// maxDetailBytes is what vm.Exit promises.
const maxDetailBytes = 4 << 10

// machine is the one machine of a shim.
type machine struct {
	dir       string
	record    layout.Record
	slots     int
	framework framework.Framework
	log       *slog.Logger
	abort     func() // nil: nobody insists
	// single: the guest has one stream at a time (framework.Host.SingleConn).
	single bool

	// op serializes what changes the machine's state; a buffered channel, so that waiting
	// for it can be cancelled. Ending by force does not take it.
	op chan struct{}
	// exited is closed once the machine has ended.
	exited chan struct{}

	console *console
	streams streams
	watcher sync.WaitGroup

	mu       sync.Mutex
	phase    phase             // guarded by mu
	virtual  framework.Machine // guarded by mu; nil before it is made
	network  *network.Network  // guarded by mu
	identity layout.Identity   // guarded by mu
	print    string            // guarded by mu; the configuration's fingerprint
	asked    bool              // guarded by mu; the guest was asked to power off
	wasUp    bool              // guarded by mu
}

var _ control.Machine = (*machine)(nil)

func newMachine(dir string, r layout.Record, o Options) (*machine, error) {
	c, err := newConsole(dir)
	if err != nil {
		return nil, fmt.Errorf("open console: %w", err)
	}
	m := &machine{
		dir: dir, record: r, slots: o.Slots, framework: o.Framework, log: o.Logger, console: c,
		abort: o.Abort, op: make(chan struct{}, 1), exited: make(chan struct{}),
	}
	m.streams.init()
	host, err := o.Framework.Host()
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("ask the host: %w", err)
	}
	m.single = host.SingleConn
	return m, nil
}

// current is the phase and the framework's machine.
func (m *machine) current() (phase, framework.Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.phase, m.virtual
}

// State is part of control.Machine.
func (m *machine) State(context.Context) (vm.State, error) {
	p, v := m.current()
	if v == nil {
		return stateOf(p, framework.StateStopped)
	}
	return stateOf(p, v.State())
}

// do runs one of the framework's calls, alone. The call cannot be cancelled: with ctx
// only the waiting ends, and the next call waits for this one.
func (m *machine) do(ctx context.Context, f func(v framework.Machine) error) error {
	select {
	case m.op <- struct{}{}:
	case <-m.exited:
		return errExited
	case <-ctx.Done():
		return ctx.Err()
	}
	p, v := m.current()
	if p != phaseUp {
		<-m.op
		_, err := stateOf(p, framework.StateStopped)
		return errors.Join(err, m.exitError(p))
	}
	result := make(chan error, 1)
	go func() {
		result <- f(v)
		<-m.op
	}()
	select {
	case err := <-result:
		return err
	case <-m.exited:
		return errExited
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errExited = fmt.Errorf("%w: it has exited", vm.ErrInvalidState)

func (m *machine) exitError(p phase) error {
	if p >= phaseEnding {
		return errExited
	}
	return nil
}

// Pause is part of control.Machine.
func (m *machine) Pause(ctx context.Context) error {
	return m.do(ctx, func(v framework.Machine) error {
		switch state, err := stateOf(phaseUp, v.State()); {
		case err != nil:
			return err
		case state == vm.StateExited:
			return errExited
		case state == vm.StatePaused:
			return nil
		}
		return m.mapped(callPause, v.Pause())
	})
}

// Resume is part of control.Machine.
func (m *machine) Resume(ctx context.Context) error {
	return m.do(ctx, func(v framework.Machine) error {
		switch state, err := stateOf(phaseUp, v.State()); {
		case err != nil:
			return err
		case state == vm.StateExited:
			return errExited
		case state == vm.StateRunning:
			return nil
		}
		return m.mapped(callResume, v.Resume())
	})
}

// mapped gives an error of the framework its kind. Whether the screen is locked is asked
// after the failure, which it explains.
func (m *machine) mapped(doing call, err error) error {
	if err == nil {
		return nil
	}
	host, herr := m.framework.Host()
	err = mapped(doing, err, herr == nil && host.ScreenLocked)
	if herr != nil && errors.Is(err, vm.ErrSnapshotInvalid) {
		// A locked screen looks the same: a snapshot is not given up for want of an answer.
		return fmt.Errorf("%w: %v; whether the Mac's screen is locked cannot be told: %w", vm.ErrUnavailable, err, herr) //nolint:errorlint // err must not blame the snapshot any more
	}
	return err
}

// Save is part of control.Machine.
func (m *machine) Save(ctx context.Context, dir string) ([]string, error) {
	var files []string
	err := m.do(ctx, func(v framework.Machine) error {
		var err error
		files, err = m.save(ctx, v, dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	return files, nil
}

// save does it. The framework's part cannot be cancelled; once ctx has ended nothing more
// is written to dir, which its owner is throwing away.
func (m *machine) save(ctx context.Context, v framework.Machine, dir string) ([]string, error) {
	if !m.record.Config.Saveable {
		return nil, fmt.Errorf("%w: it was not made to be saved (Config.Saveable)", vm.ErrInvalidState)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrInvalidConfig, err)
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%w: %s is not empty", vm.ErrInvalidConfig, dir)
	}
	// The framework would refuse it as well, and say less.
	if state, err := stateOf(phaseUp, v.State()); err != nil || state != vm.StatePaused {
		return nil, errors.Join(err, fmt.Errorf("%w: it is %s, want paused", vm.ErrInvalidState, state))
	}
	if err := v.Save(filepath.Join(dir, layout.StateFile)); err != nil {
		return nil, m.mapped(callSave, err)
	}
	m.mu.Lock()
	s := layout.NewSnapshot(m.record, m.identity, m.print)
	m.mu.Unlock()
	// The machine still stands: its disks belong to the memory that was written.
	files := append([]string{layout.StateFile}, layout.Disks(m.record.Config)...)
	for _, name := range files[1:] {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := machinedir.CopySparse(filepath.Join(m.dir, name), filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("copy %s: %w", name, err)
		}
	}
	for _, name := range files {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("%w: the framework has not written what it says: %w", vm.ErrUnavailable, err)
		}
		s.Sizes[name] = info.Size()
	}
	s.Digest = s.Sum()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := machinedir.WriteJSON(durable.Host, dir, layout.SnapshotFile, s); err != nil {
		return nil, err
	}
	return append(files, layout.SnapshotFile), nil
}

// Stop is part of control.Machine.
func (m *machine) Stop(ctx context.Context, grace time.Duration) error {
	if grace > 0 {
		ended, err := m.askToEnd(ctx, grace)
		if ended || err != nil {
			return err
		}
	}
	m.end(vm.Exit{Reason: vm.ExitStopped, Detail: "ended by force"})
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// askToEnd presses the power button of a running machine and waits for grace. The error
// is ctx's; a guest that cannot be asked is ended by force.
func (m *machine) askToEnd(ctx context.Context, grace time.Duration) (ended bool, err error) {
	p, v := m.current()
	if p != phaseUp || v.State() != framework.StateRunning {
		return p == phaseExited, nil
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	m.mu.Lock()
	m.asked = true
	m.mu.Unlock()
	pressed := make(chan error, 1)
	go func() { pressed <- v.RequestStop() }()
	for {
		select {
		case err := <-pressed:
			if err != nil {
				m.log.Warn("The guest cannot be asked to power off", "machine", m.record.ID, "err", err)
				return false, nil
			}
			pressed = nil
		case <-m.exited:
			return true, nil
		case <-timer.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// watch waits for the guest's own end.
func (m *machine) watch(v framework.Machine) {
	for {
		var state framework.State
		select {
		case state = <-v.Changes():
		case <-m.console.Panicked():
			state = v.State()
		case <-m.exited:
			return
		}
		m.mu.Lock()
		asked := m.asked
		m.mu.Unlock()
		if exit, ok := exitOf(state, asked, m.console.Panic()); ok {
			m.end(exit)
			return
		}
	}
}

// end brings the machine's end about, once: the first exit counts. It returns when the
// machine has ended.
func (m *machine) end(exit vm.Exit) {
	m.mu.Lock()
	if m.phase >= phaseEnding {
		m.mu.Unlock()
		<-m.exited
		return
	}
	m.phase = phaseEnding
	exit.Time = time.Now().UTC()
	exit.Detail = strings.ToValidUTF8(exit.Detail, "?")
	exit.Detail = strings.ToValidUTF8(exit.Detail[:min(len(exit.Detail), maxDetailBytes)], "") // a rune may have been cut
	v, n := m.virtual, m.network
	m.mu.Unlock()
	// Once: a node that kills this process has written down so before.
	if err := machinedir.WriteJSONOnce(durable.Host, m.dir, layout.ExitFile, exit); err != nil && !errors.Is(err, fs.ErrExist) {
		// On a full disk a machine must still be stoppable.
		m.log.Warn("Cannot record the exit of the machine", "machine", m.record.ID, "err", err)
	}
	if m.abort != nil {
		// Never stopped: the end of the process comes first.
		time.AfterFunc(endTimeout, m.abort)
	}
	if v != nil {
		m.unplug(v)
	}
	m.streams.close()
	if n != nil {
		_ = n.Close()
	}
	m.console.Close()
	m.mu.Lock()
	m.phase = phaseExited
	m.mu.Unlock()
	close(m.exited)
}

// unplug stops the framework's machine and waits for it as long as is reasonable: the
// end of the process does the rest.
func (m *machine) unplug(v framework.Machine) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if v.State() != framework.StateStopped {
			if err := v.Stop(); err != nil {
				m.log.Warn("The framework does not stop the machine", "machine", m.record.ID, "err", err)
			}
		}
		if err := v.Close(); err != nil {
			m.log.Warn("The framework does not let go of the machine", "machine", m.record.ID, "err", err)
		}
	}()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		m.log.Warn("The framework does not stop the machine in time: it ends with its process", "machine", m.record.ID)
	}
}
