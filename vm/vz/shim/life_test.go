// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

func TestPauseResume(t *testing.T) {
	f := newFakeFramework()
	m := upMachine(t, f)
	ctx := t.Context()
	for range 2 {
		if err := m.Pause(ctx); err != nil {
			t.Errorf("pause: %v", err)
		}
		if state, err := m.State(ctx); err != nil || state != vm.StatePaused {
			t.Errorf("paused, it is %q, %v", state, err)
		}
	}
	for range 2 {
		if err := m.Resume(ctx); err != nil {
			t.Errorf("resume: %v", err)
		}
		if state, err := m.State(ctx); err != nil || state != vm.StateRunning {
			t.Errorf("resumed, it is %q, %v", state, err)
		}
	}
	if f.count("Pause") != 1 || f.count("Resume") != 1 {
		t.Errorf("the framework was asked for %q", f.calls)
	}
}

// Before it is up and after its end a machine does nothing.
func TestNotUp(t *testing.T) {
	m := testMachine(t, newFakeFramework(), testRecord(t))
	ctx := t.Context()
	for _, c := range []struct {
		when string
		want error
	}{{"before its start", vm.ErrUnavailable}, {"after its end", vm.ErrInvalidState}} {
		_, save := m.Save(ctx, t.TempDir())
		for call, err := range map[string]error{"pause": m.Pause(ctx), "resume": m.Resume(ctx), "save": save} {
			if !errors.Is(err, c.want) {
				t.Errorf("%s %s: %v, want %v", call, c.when, err, c.want)
			}
		}
		if err := m.Stop(ctx, time.Hour); err != nil {
			t.Errorf("stop %s: %v", c.when, err)
		}
	}
	if _, err := m.Start(ctx); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("start after its end: %v, want ErrInvalidState", err)
	}
}

func TestSaveRefuses(t *testing.T) {
	f := newFakeFramework()
	m := upMachine(t, f)
	ctx := t.Context()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	save := func(dir string) error { _, err := m.Save(ctx, dir); return err }
	if err := save(t.TempDir()); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("running: %v, want ErrInvalidState", err)
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := save(full); !errors.Is(err, vm.ErrInvalidConfig) {
		t.Errorf("into a full directory: %v, want ErrInvalidConfig", err)
	}
	if err := save(filepath.Join(full, "none")); !errors.Is(err, vm.ErrInvalidConfig) {
		t.Errorf("into no directory: %v, want ErrInvalidConfig", err)
	}
	if f.count("Save") > 0 {
		t.Error("the framework was asked to save")
	}
	f.before = func(call string) error {
		if call == "Save" {
			return framework.NewError(framework.CodeOutOfDiskSpace, "Full.")
		}
		return nil
	}
	if err := save(t.TempDir()); !errors.Is(err, vm.ErrNoSpace) {
		t.Errorf("on a full disk: %v, want ErrNoSpace", err)
	}
	f.before = nil
	m.record.Config.Saveable = false
	if err := save(t.TempDir()); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("not saveable: %v, want ErrInvalidState", err)
	}
	if state, err := m.State(ctx); err != nil || state != vm.StatePaused {
		t.Errorf("afterwards it is %q, %v, want paused", state, err)
	}
}

// A save that nobody waits for any more writes nothing more into the directory, and the
// machine can go on after it.
func TestSaveCancelled(t *testing.T) {
	f := newFakeFramework()
	m := upMachine(t, f)
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	entered, release := hold(f, "Save")
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	result := make(chan error, 1)
	go func() {
		_, err := m.Save(ctx, dir)
		result <- err
	}()
	<-entered
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("save: %v, want Canceled", err)
	}
	// The next call waits for its turn, and can be cancelled as well.
	if err := m.Resume(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("resume: %v, want Canceled", err)
	}
	release()
	if err := m.Resume(t.Context()); err != nil {
		t.Errorf("resume: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != layout.StateFile {
		t.Errorf("directory has %v, %v, want what the framework writes only", entries, err)
	}
}

// A save that stalls does not keep its machine from being ended by force.
func TestStopWhileSaveStalls(t *testing.T) {
	f := newFakeFramework()
	m := upMachine(t, f)
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	entered, release := hold(f, "Save")
	defer release()
	result := make(chan error, 1)
	go func() {
		_, err := m.Save(t.Context(), t.TempDir())
		result <- err
	}()
	<-entered
	if err := m.Stop(t.Context(), time.Hour); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := <-result; !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("save: %v, want ErrInvalidState", err)
	}
	if exit := recordedExit(t, m); exit.Reason != vm.ExitStopped {
		t.Errorf("exit is %+v", exit)
	}
}

// A framework that does not stop its machine is not waited for for ever.
func TestStopStalls(t *testing.T) {
	for _, call := range []string{"Stop", "Close"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeFramework()
			held := make(chan struct{})
			f.before = func(name string) error {
				if name == call {
					<-held
				}
				return nil
			}
			m := bareMachine(t, f)
			began := time.Now()
			if err := m.Stop(t.Context(), 0); err != nil {
				t.Errorf("%s stalls: stop: %v", call, err)
			}
			if took := time.Since(began); took != stopTimeout {
				t.Errorf("%s stalls: it took %s, want %s", call, took, stopTimeout)
			}
			if state, err := m.State(t.Context()); err != nil || state != vm.StateExited {
				t.Errorf("%s stalls: it is %q, %v, want exited", call, state, err)
			}
			close(held)
		})
	}
}

// The exit is written down before the machine's plug is pulled, and once: what is there
// already, by a node that is about to kill this process, stays.
func TestExitIsWrittenFirst(t *testing.T) {
	f := newFakeFramework()
	m := upMachine(t, f)
	f.before = func(call string) error {
		if call == "Stop" && recordedExit(t, m).Reason != vm.ExitStopped {
			t.Error("it is stopped, and its exit is not written down")
		}
		return nil
	}
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if f.count("Stop") != 1 || f.count("Close") != 1 {
		t.Errorf("the framework was asked for %q", f.calls)
	}

	m = upMachine(t, newFakeFramework())
	node := vm.Exit{Reason: vm.ExitStopped, Time: time.Now().UTC().Truncate(time.Second), Detail: "the node was first"}
	if err := machinedir.WriteJSON(durable.Host, m.dir, layout.ExitFile, node); err != nil {
		t.Fatal(err)
	}
	m.end(vm.Exit{Reason: vm.ExitCrashed})
	if got := recordedExit(t, m); got != node {
		t.Errorf("exit is %+v, want %+v", got, node)
	}
}

// However many end a machine at once, it ends once, and all return when it has.
func TestEndsOnce(t *testing.T) {
	for range 20 {
		f := newFakeFramework()
		m := upMachine(t, f)
		begin := make(chan struct{})
		var ends []func()
		for range 4 {
			ends = append(ends,
				func() { _ = m.Stop(t.Context(), 0) },
				func() { m.end(vm.Exit{Reason: vm.ExitCrashed, Detail: "crash"}) },
				func() { f.machines[0].enter(framework.StateStopped) })
		}
		done := make(chan bool, len(ends))
		for i, end := range ends {
			go func() {
				<-begin
				end()
				_, err := os.Stat(filepath.Join(m.dir, layout.ExitFile))
				done <- i%3 == 2 || err == nil
			}()
		}
		close(begin)
		for range ends {
			if !<-done {
				t.Error("an end has returned, and the exit is not written down")
			}
		}
		<-m.exited
		m.watcher.Wait()
		if f.count("Close") != 1 || f.count("Stop") > 1 {
			t.Errorf("the framework was asked for %q", f.calls)
		}
		first := recordedExit(t, m)
		m.end(vm.Exit{Reason: vm.ExitGuest, Detail: "late"})
		if got := recordedExit(t, m); got != first {
			t.Errorf("exit was %+v and is %+v", first, got)
		}
	}
}

// A guest's own end is seen, and told as what it was.
func TestWatch(t *testing.T) {
	for name, c := range map[string]struct {
		asked bool
		do    func(m *machine, v *fakeMachine)
		want  vm.ExitReason
	}{
		"powers off":      {do: func(_ *machine, v *fakeMachine) { v.enter(framework.StateStopped) }, want: vm.ExitGuest},
		"powers off late": {asked: true, do: func(_ *machine, v *fakeMachine) { v.enter(framework.StateStopped) }, want: vm.ExitStopped},
		"fails":           {do: func(_ *machine, v *fakeMachine) { v.enter(framework.StateError) }, want: vm.ExitCrashed},
		"panics":          {do: func(m *machine, _ *fakeMachine) { m.console.look([]byte(panicMarker + ": x\n")) }, want: vm.ExitCrashed},
	} {
		f := newFakeFramework()
		m := upMachine(t, f)
		m.mu.Lock()
		m.asked = c.asked
		m.mu.Unlock()
		f.machines[0].enter(framework.StatePaused)
		f.machines[0].enter(framework.StateRunning)
		c.do(m, f.machines[0])
		<-m.exited
		if exit := recordedExit(t, m); exit.Reason != c.want || exit.Time.IsZero() || exit.Detail == "" {
			t.Errorf("%s: exit is %+v, want %s", name, exit, c.want)
		}
		if n := f.open(); n != 0 {
			t.Errorf("%s: %d machines are left", name, n)
		}
	}
}

// A guest that ends as soon as it runs was made, and has ended.
func TestEndsWhileStarting(t *testing.T) {
	f := newFakeFramework()
	m := testMachine(t, f, testRecord(t))
	f.before = func(call string) error {
		if call == "Start" {
			// The fake enters running after this; the framework's last word is stopped.
			f.machines[0].changes <- framework.StateStopped
		}
		return nil
	}
	if _, err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-m.exited
	if exit := recordedExit(t, m); exit.Reason != vm.ExitGuest {
		t.Errorf("exit is %+v", exit)
	}
}

func TestStopWithGrace(t *testing.T) {
	const grace = 30 * time.Second
	for name, c := range map[string]struct {
		// press is what the guest does when asked.
		press  func(v *fakeMachine) error
		state  framework.State
		took   time.Duration
		detail string
		asked  int
	}{
		"obeys": {press: func(v *fakeMachine) error { v.enter(framework.StateStopped); return nil }, asked: 1, detail: "when asked"},
		"obeys later": {press: func(v *fakeMachine) error {
			time.AfterFunc(time.Second, func() { v.enter(framework.StateStopped) })
			return nil
		}, asked: 1, took: time.Second, detail: "when asked"},
		"ignores it":       {press: func(*fakeMachine) error { return nil }, asked: 1, took: grace, detail: "by force"},
		"cannot be asked":  {press: func(*fakeMachine) error { return errFake }, asked: 1, detail: "by force"},
		"is paused":        {state: framework.StatePaused, detail: "by force"},
		"is being paused":  {state: framework.StatePausing, detail: "by force"},
		"has stopped just": {state: framework.StateStopped, detail: "by force"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeFramework()
				m := bareMachine(t, f)
				v := m.virtual.(*fakeMachine)
				if c.state != framework.StateStopped || c.press == nil {
					v.state = c.state
				}
				if c.press != nil {
					v.state = framework.StateRunning
					f.before = func(call string) error {
						if call == "RequestStop" {
							return c.press(v)
						}
						return nil
					}
					m.watcher.Go(func() { m.watch(v) })
				}
				began := time.Now()
				if err := m.Stop(t.Context(), grace); err != nil {
					t.Errorf("stop: %v", err)
				}
				if took := time.Since(began); took != c.took {
					t.Errorf("it took %s, want %s", took, c.took)
				}
				if exit := recordedExit(t, m); exit.Reason != vm.ExitStopped || !strings.Contains(exit.Detail, c.detail) {
					t.Errorf("exit is %+v, want stopped, %s", exit, c.detail)
				}
				if n := f.count("RequestStop"); n != c.asked {
					t.Errorf("the guest was asked %d times, want %d", n, c.asked)
				}
			})
		})
	}
}

// A stop that is given up leaves the machine; the next one ends it.
func TestStopCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bareMachine(t, newFakeFramework())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.Stop(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop: %v, want DeadlineExceeded", err)
		}
		if state, err := m.State(t.Context()); err != nil || state != vm.StateRunning {
			t.Errorf("it is %q, %v, want running", state, err)
		}
		if _, err := os.Stat(filepath.Join(m.dir, layout.ExitFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its exit is written down: %v", err)
		}
		if err := m.Stop(t.Context(), 0); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
}

// What an exit tells is bounded and can be read, whatever it came from.
func TestExitDetail(t *testing.T) {
	for _, detail := range []string{"x" + strings.Repeat("ü", maxDetailBytes), "\xff" + strings.Repeat("€", maxDetailBytes), strings.Repeat("\xff", 2*maxDetailBytes)} {
		m := testMachine(t, newFakeFramework(), testRecord(t))
		m.end(vm.Exit{Reason: vm.ExitCrashed, Detail: detail})
		got := recordedExit(t, m).Detail
		if len(got) > maxDetailBytes || !utf8.ValidString(got) || strings.Contains(got, "\ufffd") {
			t.Errorf("%.10q...: detail has %d bytes, ends with %q", detail, len(got), got[max(0, len(got)-8):])
		}
	}
}

// A directory that takes no record does not keep a machine from being ended.
func TestStopWithoutDirectory(t *testing.T) {
	m := upMachine(t, newFakeFramework())
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	if state, err := m.State(t.Context()); err != nil || state != vm.StateExited {
		t.Errorf("it is %q, %v, want exited", state, err)
	}
}

// An end that something below holds up does not keep the process: what is written down
// would be learnt by nobody.
func TestEndInsists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bareMachine(t, newFakeFramework())
		aborted := make(chan time.Duration, 1)
		began := time.Now()
		m.abort = func() { aborted <- time.Since(began) }
		m.streams.all.Add(1) // a stream that does not end
		go m.end(vm.Exit{Reason: vm.ExitStopped, Detail: "held up"})
		if took := <-aborted; took != endTimeout {
			t.Errorf("aborted after %s, want %s", took, endTimeout)
		}
		if exit := recordedExit(t, m); exit.Detail != "held up" {
			t.Errorf("what was written down is %+v", exit)
		}
		m.streams.all.Done()
		<-m.exited
	})
}
