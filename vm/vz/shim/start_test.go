// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// wantNone waits until no goroutine runs a function of this name: what goes on in the
// background ends by itself.
func wantNone(t *testing.T, function string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	buf := make([]byte, 4<<20)
	for {
		stacks := string(buf[:runtime.Stack(buf, true)])
		// Of a goroutine that runs at this moment the runtime may not tell more than that.
		if !strings.Contains(stacks, function) && !strings.Contains(stacks, "stack unavailable") {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s still runs:\n%s", function, stacks)
		}
	}
}

// hold makes a fake's call block until release.
func hold(f *fakeFramework, call string) (entered <-chan struct{}, release func()) {
	in, out := make(chan struct{}, 1), make(chan struct{})
	f.before = func(name string) error {
		if name == call {
			in <- struct{}{}
			<-out
		}
		return nil
	}
	return in, func() { close(out) }
}

func TestStartOnce(t *testing.T) {
	f := newFakeFramework()
	m := upMachine(t, f)
	if _, err := m.Start(t.Context()); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("a second start: %v, want ErrInvalidState", err)
	}
	if n := f.count("New"); n != 1 {
		t.Errorf("%d machines were made", n)
	}
	if state, err := m.State(t.Context()); err != nil || state != vm.StateRunning {
		t.Errorf("afterwards it is %q, %v", state, err)
	}
}

func TestStartTwiceAtOnce(t *testing.T) {
	f := newFakeFramework()
	entered, release := hold(f, "New")
	m := testMachine(t, f, testRecord(t))
	result := make(chan error, 1)
	go func() {
		_, err := m.Start(t.Context())
		result <- err
	}()
	<-entered
	if _, err := m.Start(t.Context()); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("a second start: %v, want ErrInvalidState", err)
	}
	if _, err := m.State(t.Context()); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("meanwhile its state is asked: %v, want ErrUnavailable", err)
	}
	release()
	if err := <-result; err != nil {
		t.Errorf("the first start: %v", err)
	}
}

// A start that is cancelled, or whose machine is stopped by somebody else, in the middle
// of any call leaves no machine and no network.
func TestStartEndsAtEachCall(t *testing.T) {
	restored := saved(t)
	for _, c := range []struct {
		call    string
		restore bool
	}{
		{"NewIdentifier", false}, {"New", false}, {"SaveRestoreSupport", false}, {"Start", false},
		{"New", true}, {"SaveRestoreSupport", true}, {"Restore", true},
	} {
		for _, how := range []string{"cancelled", "stopped"} {
			r := testRecord(t)
			if c.restore {
				r = restored
			}
			f := newFakeFramework()
			entered, release := hold(f, c.call)
			m := testMachine(t, f, r)
			ctx, cancel := context.WithCancel(t.Context())
			result := make(chan error, 1)
			go func() {
				_, err := m.Start(ctx)
				result <- err
			}()
			<-entered
			want := context.Canceled
			if how == "stopped" {
				want = vm.ErrInvalidState
				if err := m.Stop(t.Context(), time.Hour); err != nil {
					t.Errorf("%+v, stopped: %v", c, err)
				}
			} else {
				cancel()
			}
			if err := <-result; !errors.Is(err, want) {
				t.Errorf("%+v, %s: start: %v, want %v", c, how, err, want)
			}
			cancel()
			if state, err := m.State(t.Context()); err != nil || state != vm.StateExited {
				t.Errorf("%+v, %s: it is %q, %v, want exited", c, how, state, err)
			}
			release()
			wantNone(t, "shim.(*machine).start(")
			wantNone(t, ".AcceptVfkit(")
			if n := f.open(); n != 0 {
				t.Errorf("%+v, %s: %d machines are left", c, how, n)
			}
			if exit := recordedExit(t, m); how == "cancelled" && (exit.Reason != vm.ExitCrashed || !strings.Contains(exit.Detail, "never up")) {
				t.Errorf("%+v, %s: exit is %+v", c, how, exit)
			}
		}
	}
}

// An error of any call is the start's, and leaves no machine.
func TestStartFails(t *testing.T) {
	restored := saved(t)
	for _, c := range []struct {
		call    string
		restore bool
		code    framework.Code
		want    error
	}{
		{"NewIdentifier", false, framework.CodeNotSupported, vm.ErrNotSupported},
		{"New", false, framework.CodeInvalidVirtualMachineConfiguration, vm.ErrInvalidConfig},
		{"SaveRestoreSupport", false, framework.CodeInvalidVirtualMachineConfiguration, vm.ErrNotSupported},
		{"Start", false, framework.CodeVirtualMachineLimitExceeded, vm.ErrLimitExceeded},
		{"Start", false, framework.CodeHostKey, vm.ErrUnavailable},
		{"New", true, framework.CodeOutOfDiskSpace, vm.ErrNoSpace},
		{"Restore", true, framework.CodeRestore, vm.ErrSnapshotInvalid},
		{"Restore", true, framework.CodeHostKey, vm.ErrUnavailable},
		{"Restore", true, framework.CodeVirtualMachineLimitExceeded, vm.ErrLimitExceeded},
	} {
		r := testRecord(t)
		if c.restore {
			r = restored
		}
		f := newFakeFramework()
		f.before = func(name string) error {
			if name == c.call {
				return framework.NewError(c.code, "Refused.")
			}
			return nil
		}
		m := testMachine(t, f, r)
		_, err := m.Start(t.Context())
		if !errors.Is(err, c.want) || errors.Is(err, vm.ErrSnapshotInvalid) && !errors.Is(c.want, vm.ErrSnapshotInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
		if n := f.count(c.call); n != 1 {
			t.Errorf("%+v: called %d times", c, n)
		}
		if n := f.open(); n != 0 {
			t.Errorf("%+v: %d machines are left", c, n)
		}
		if exit := recordedExit(t, m); exit.Reason != vm.ExitCrashed || !strings.Contains(exit.Detail, "never up") {
			t.Errorf("%+v: exit is %+v", c, exit)
		}
		wantNone(t, ".AcceptVfkit(")
	}
}

// What may succeed a moment later is tried three times, each time with a new machine.
func TestStartTriesAgain(t *testing.T) {
	internal, refused := framework.NewError(framework.CodeInternal, "Internal."), framework.NewError(framework.CodeRestore, "No.")
	for name, c := range map[string]struct {
		restore bool
		errs    []error // of the calls of Start or Restore, in order; nil after the last
		tries   int
		want    error
		took    time.Duration
	}{
		"twice":                  {errs: []error{internal, internal}, tries: 3, took: 600 * time.Millisecond},
		"for ever":               {errs: []error{internal, internal, internal, internal}, tries: 3, want: vm.ErrUnavailable, took: 600 * time.Millisecond},
		"the network":            {errs: []error{framework.NewError(framework.CodeNetworkError, "x")}, tries: 2, took: 200 * time.Millisecond},
		"another error":          {errs: []error{internal, framework.NewError(framework.CodeVirtualMachineLimitExceeded, "x")}, tries: 2, want: vm.ErrLimitExceeded, took: 200 * time.Millisecond},
		"a restore":              {restore: true, errs: []error{internal}, tries: 2, took: 200 * time.Millisecond},
		"a restore that refuses": {restore: true, errs: []error{refused}, tries: 1, want: vm.ErrSnapshotInvalid},
		"none":                   {tries: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeFramework()
				m := bareMachine(t, f)
				m.phase, m.virtual = phaseStarting, nil
				tries := 0
				f.before = func(call string) error {
					if call != "Start" && call != "Restore" {
						return nil
					}
					if n := f.open(); n != 1 {
						t.Errorf("%d machines at a time", n)
					}
					if tries++; tries <= len(c.errs) {
						return c.errs[tries-1]
					}
					return nil
				}
				began := time.Now()
				err := m.tryAgain(t.Context(), framework.Configuration{}, c.restore)
				if (c.want == nil) != (err == nil) || !errors.Is(err, c.want) {
					t.Errorf("error is %v, want %v", err, c.want)
				}
				if tries != c.tries || time.Since(began) != c.took {
					t.Errorf("%d tries in %s, want %d in %s", tries, time.Since(began), c.tries, c.took)
				}
				want := 1
				if c.want != nil {
					want = 0
				}
				if n := f.open(); n != want {
					t.Errorf("%d machines are left, want %d", n, want)
				}
				m.end(vm.Exit{Reason: vm.ExitStopped})
			})
		})
	}
}

// Between two tries a start is cancelled, and a machine is ended.
func TestStartEndsBetweenTries(t *testing.T) {
	for _, how := range []string{"cancelled", "ended"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeFramework()
			f.before = func(call string) error {
				if call == "Start" {
					return framework.NewError(framework.CodeInternal, "Internal.")
				}
				return nil
			}
			m := bareMachine(t, f)
			m.phase, m.virtual = phaseStarting, nil
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan error, 1)
			go func() { result <- m.tryAgain(ctx, framework.Configuration{}, false) }()
			synctest.Wait()
			want := context.Canceled
			if how == "ended" {
				want = vm.ErrInvalidState
				m.end(vm.Exit{Reason: vm.ExitStopped})
			} else {
				cancel()
			}
			if err := <-result; !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", how, err, want)
			}
			if n := f.count("New"); n != 1 {
				t.Errorf("%s: %d machines were made", how, n)
			}
		})
	}
}

// A machine that is anything but paused after its restore is not handed out.
func TestRestoreIsPaused(t *testing.T) {
	r := saved(t)
	f := newFakeFramework()
	m := testMachine(t, f, r)
	if state, err := m.Start(t.Context()); err != nil || state != vm.StatePaused {
		t.Errorf("restored, it is %q, %v, want paused", state, err)
	}
	if f.count("Start") > 0 || f.count("Resume") > 0 {
		t.Error("it was started")
	}
	if got := string(f.machines[0].cfg.MachineIdentifier); got != "new identifier" {
		t.Errorf("restored with identifier %q, saved with %q", got, "new identifier")
	}
	if f.count("NewIdentifier") > 0 {
		t.Error("a restored machine got an identifier of its own")
	}
	for _, state := range []framework.State{framework.StateRunning, framework.StateStopped, framework.StateError, framework.StateStarting} {
		f := newFakeFramework()
		f.restored = state
		m := testMachine(t, f, r)
		if _, err := m.Start(t.Context()); !errors.Is(err, vm.ErrSnapshotInvalid) || !strings.Contains(err.Error(), state.String()) {
			t.Errorf("%s after the restore: %v, want ErrSnapshotInvalid that says so", state, err)
		}
		if n := f.open(); n != 0 {
			t.Errorf("%s after the restore: %d machines are left", state, n)
		}
	}
}

// A snapshot of other devices is refused before the framework is asked.
func TestRestoreOtherConfiguration(t *testing.T) {
	for name, change := range map[string]func(r *layout.Record){
		"command line": func(r *layout.Record) { r.Config.Kit.Cmdline += " more" },
		"shape":        func(r *layout.Record) { r.Config.Shape.VCPUs++ },
		"kit":          func(r *layout.Record) { r.Config.Kit.Digest = "sha256:other" },
		"host":         func(r *layout.Record) { r.Compatibility = "sha256:other" },
	} {
		r := saved(t)
		change(&r)
		f := newFakeFramework()
		if _, err := testMachine(t, f, r).Start(t.Context()); !errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("another %s: %v, want ErrSnapshotInvalid", name, err)
		}
		if len(f.calls) > 0 {
			t.Errorf("another %s: the framework was asked to %q", name, f.calls)
		}
	}
}

// A restored machine has disks of its own, with the snapshot's content.
func TestRestoreClonesDisks(t *testing.T) {
	r := saved(t)
	if err := os.WriteFile(filepath.Join(r.Snapshot, layout.ScratchFile), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := testMachine(t, newFakeFramework(), r)
	if _, err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(m.dir, layout.ScratchFile))
	if err != nil || string(text) != "changed" {
		t.Errorf("its disk has %q, %v", text, err)
	}
}

// Without a disk to clone a machine is not made, and nothing is blamed for it but the host.
func TestStartWithoutScratch(t *testing.T) {
	r := testRecord(t)
	if err := os.Remove(r.Config.Kit.Scratch); err != nil {
		t.Fatal(err)
	}
	f := newFakeFramework()
	if _, err := testMachine(t, f, r).Start(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want ErrNotExist", err)
	}
	if n := f.count("New"); n != 0 {
		t.Errorf("%d machines were made", n)
	}
}
