// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// fakeFramework does what it is told and keeps a list of its calls. Rules are the
// simulator's affair; this one lets a test hold any call at any point.
type fakeFramework struct {
	// before is asked at the beginning of every call: it may block, and its error is the
	// call's. Nil: nothing.
	before func(call string) error
	// connect is Connect. Nil: nothing listens.
	connect func(port uint32) (net.Conn, error)

	mu       sync.Mutex
	host     framework.Host // guarded by mu
	hostErr  error          // guarded by mu
	calls    []string       // guarded by mu
	machines []*fakeMachine // guarded by mu
	// restored is the state after Restore.
	restored framework.State
}

func newFakeFramework() *fakeFramework { return &fakeFramework{restored: framework.StatePaused} }

func (f *fakeFramework) call(name string) error {
	f.mu.Lock()
	f.calls = append(f.calls, name)
	f.mu.Unlock()
	if f.before != nil {
		return f.before(name)
	}
	return nil
}

// count is how often a call was made.
func (f *fakeFramework) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if c == name {
			n++
		}
	}
	return n
}

// open is how many machines were made and not closed.
func (f *fakeFramework) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, m := range f.machines {
		if !m.isClosed() {
			n++
		}
	}
	return n
}

func (f *fakeFramework) Host() (framework.Host, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.host, f.hostErr
}

func (f *fakeFramework) NewIdentifier(framework.GuestOS) ([]byte, error) {
	return []byte("new identifier"), f.call("NewIdentifier")
}

func (f *fakeFramework) New(cfg framework.Configuration) (framework.Machine, error) {
	if err := f.call("New"); err != nil {
		return nil, err
	}
	m := &fakeMachine{framework: f, cfg: cfg, changes: make(chan framework.State, 16)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machines = append(f.machines, m)
	return m, nil
}

// fakeMachine is a machine of it.
type fakeMachine struct {
	framework *fakeFramework
	cfg       framework.Configuration
	changes   chan framework.State

	mu     sync.Mutex
	state  framework.State // guarded by mu
	closed bool            // guarded by mu
}

func (m *fakeMachine) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// enter goes over into a state, as the framework's own doing.
func (m *fakeMachine) enter(s framework.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = s
	m.changes <- s
}

func (m *fakeMachine) step(call string, to framework.State) error {
	err := m.framework.call(call)
	if err == nil {
		m.enter(to)
	}
	return err
}

func (m *fakeMachine) State() framework.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *fakeMachine) Changes() <-chan framework.State { return m.changes }
func (m *fakeMachine) SaveRestoreSupport() error       { return m.framework.call("SaveRestoreSupport") }
func (m *fakeMachine) Start() error                    { return m.step("Start", framework.StateRunning) }
func (m *fakeMachine) Pause() error                    { return m.step("Pause", framework.StatePaused) }
func (m *fakeMachine) Resume() error                   { return m.step("Resume", framework.StateRunning) }
func (m *fakeMachine) RequestStop() error              { return m.framework.call("RequestStop") }
func (m *fakeMachine) Stop() error                     { return m.step("Stop", framework.StateStopped) }

func (m *fakeMachine) Save(path string) error {
	if err := m.framework.call("Save"); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("state"), 0o600)
}

func (m *fakeMachine) Restore(string) error { return m.step("Restore", m.framework.restored) }

func (m *fakeMachine) Connect(port uint32) (net.Conn, error) {
	if m.framework.connect == nil {
		return nil, framework.ErrNoListener
	}
	return m.framework.connect(port)
}

func (m *fakeMachine) Close() error {
	err := m.framework.call("Close")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return err
}

// testRecord is the record of a machine whose files are there and small.
func testRecord(t *testing.T) layout.Record {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return layout.Record{
		Version: layout.RecordVersion, ID: "test", Compatibility: "sha256:host", EmptySlot: file("empty"),
		Config: vm.Config{
			Shape:    vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
			Kit:      vm.Kit{Digest: "sha256:kit", Kernel: file("kernel"), Initramfs: file("initramfs"), Scratch: file("scratch"), Cmdline: "quiet"},
			Saveable: true,
		},
	}
}

func testOptions(t *testing.T, f framework.Framework) Options {
	return Options{Dir: t.TempDir(), Framework: f, Slots: 2, Build: "test", Logger: slog.New(slog.DiscardHandler)}
}

// testMachine is a machine that is not started; at the test's end it is ended.
func testMachine(t *testing.T, f framework.Framework, r layout.Record) *machine {
	t.Helper()
	o := testOptions(t, f)
	m, err := newMachine(o.Dir, r, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.end(vm.Exit{Reason: vm.ExitStopped})
		m.watcher.Wait()
	})
	return m
}

// upMachine is a machine that runs.
func upMachine(t *testing.T, f *fakeFramework) *machine {
	t.Helper()
	m := testMachine(t, f, testRecord(t))
	if state, err := m.Start(t.Context()); err != nil || state != vm.StateRunning {
		t.Fatalf("start: %q, %v", state, err)
	}
	return m
}

// bareMachine is a machine that runs, without console, network and files: it can live in
// a bubble of testing/synctest.
func bareMachine(t *testing.T, f *fakeFramework) *machine {
	v := &fakeMachine{framework: f, changes: make(chan framework.State, 16), state: framework.StateRunning}
	m := &machine{
		dir: t.TempDir(), framework: f, log: slog.New(slog.DiscardHandler), phase: phaseUp, virtual: v,
		op: make(chan struct{}, 1), exited: make(chan struct{}),
		console: &console{panicked: make(chan struct{}), done: make(chan struct{})},
	}
	close(m.console.done)
	m.streams.init()
	return m
}

// saved makes a snapshot of a running machine, and the record of one restored from it.
func saved(t *testing.T) layout.Record {
	t.Helper()
	m := upMachine(t, newFakeFramework())
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := m.record
	r.Snapshot = t.TempDir()
	files, err := m.Save(t.Context(), r.Snapshot)
	slices.Sort(files)
	if want := []string{layout.StateFile, layout.ScratchFile, layout.SnapshotFile}; err != nil || !slices.Equal(files, want) {
		t.Fatalf("saved %q, %v, want %q", files, err, want)
	}
	m.end(vm.Exit{Reason: vm.ExitStopped})
	return r
}

// recordedExit is what the shim has written down.
func recordedExit(t *testing.T, m *machine) vm.Exit {
	t.Helper()
	var exit vm.Exit
	if err := machinedir.ReadJSON(durable.Host, m.dir, layout.ExitFile, &exit); err != nil {
		t.Errorf("read the exit: %v", err)
	}
	return exit
}

var errFake = fmt.Errorf("a fake's: %w", errors.ErrUnsupported)
