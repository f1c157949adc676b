// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// running is a shim in this process.
type running struct {
	*control.Client
	dir      string
	listener net.Listener
	// terminate is what SIGTERM does.
	terminate context.CancelFunc
	ended     chan error
}

// begin runs a shim with a listener as a node hands it over.
func begin(t *testing.T, f framework.Framework, r layout.Record, deadline time.Duration) *running {
	t.Helper()
	o := testOptions(t, f)
	if err := machinedir.WriteJSON(durable.Host, o.Dir, layout.RecordFile, r); err != nil {
		t.Fatal(err)
	}
	file, err := machinedir.ListenUnix(o.Dir, control.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if o.Listener, err = Listener(duplicate(t, file)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &running{Client: control.NewClient(o.Dir), dir: o.Dir, listener: o.Listener, terminate: cancel, ended: make(chan error, 1)}
	over := make(chan struct{})
	go func() {
		defer close(over)
		s.ended <- run(ctx, o, deadline)
	}()
	t.Cleanup(func() {
		s.terminate()
		<-over
		s.Close()
		for _, name := range []string{"vz/shim.(*", "vz/control.", "vm/network.open"} {
			wantNone(t, name)
		}
	})
	return s
}

// duplicate is a descriptor that is Listener's to close.
func duplicate(t *testing.T, f *os.File) uintptr {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(fd)
}

// exit is what the shim has written down.
func (s *running) exit(t *testing.T) vm.Exit {
	t.Helper()
	var exit vm.Exit
	if err := machinedir.ReadJSON(durable.Host, s.dir, layout.ExitFile, &exit); err != nil {
		t.Errorf("read the exit: %v", err)
	}
	return exit
}

func TestRun(t *testing.T) {
	f := newFakeFramework()
	ends := make(chan net.Conn, 1)
	f.connect = guests(ends)
	s := begin(t, f, testRecord(t), time.Hour)
	ctx := t.Context()
	if v, err := s.Versions(ctx); err != nil || v.Build != "test" || v.PID != os.Getpid() {
		t.Errorf("versions are %+v, %v", v, err)
	}
	if _, err := s.State(ctx); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("state before it is made: %v, want ErrUnavailable", err)
	}
	if _, err := s.Dial(ctx, vm.AgentPort); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("dial before it is made: %v, want ErrUnavailable", err)
	}
	if state, err := s.Start(ctx); err != nil || state != vm.StateRunning {
		t.Fatalf("start: %q, %v", state, err)
	}
	conn, err := s.Dial(ctx, vm.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	guest := <-ends
	write(t, guest, "hello")
	read(t, conn, "hello")
	if err := s.Pause(ctx); err != nil {
		t.Errorf("pause: %v", err)
	}
	if files, err := s.Save(ctx, t.TempDir()); err != nil || len(files) != 3 {
		t.Errorf("saved %q, %v", files, err)
	}
	if err := s.Resume(ctx); err != nil {
		t.Errorf("resume: %v", err)
	}
	if err := s.Stop(ctx, 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the stream reads %v after the end, want its end", err)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if exit := s.exit(t); exit.Reason != vm.ExitStopped {
		t.Errorf("exit is %+v", exit)
	}
	if n := f.open(); n != 0 {
		t.Errorf("%d machines are left", n)
	}
	if _, err := s.State(ctx); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("state after the end: %v, want ErrUnavailable", err)
	}
}

// A shim that nobody tells to start ends, and one that is started in time does not.
func TestRunNobodyStarts(t *testing.T) {
	s := begin(t, newFakeFramework(), testRecord(t), time.Millisecond)
	if err := <-s.ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if exit := s.exit(t); exit.Reason != vm.ExitCrashed || !strings.Contains(exit.Detail, "nobody") {
		t.Errorf("exit is %+v", exit)
	}
	// The deadline passes while the start's call is held.
	f := newFakeFramework()
	entered, release := hold(f, "New")
	s = begin(t, f, testRecord(t), 500*time.Millisecond)
	result := make(chan error, 1)
	go func() {
		_, err := s.Start(t.Context())
		result <- err
	}()
	<-entered
	<-time.After(600 * time.Millisecond)
	release()
	if err := <-result; err != nil {
		t.Errorf("start: %v", err)
	}
	if state, err := s.State(t.Context()); err != nil || state != vm.StateRunning {
		t.Errorf("started before the deadline, after it it is %q, %v", state, err)
	}
	if err := s.Stop(t.Context(), 0); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// A starter that hangs up is dead: so is its machine.
func TestRunStarterHangsUp(t *testing.T) {
	f := newFakeFramework()
	entered, release := hold(f, "Start")
	s := begin(t, f, testRecord(t), time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := s.Start(ctx)
		result <- err
	}()
	<-entered
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v, want Canceled", err)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if exit := s.exit(t); exit.Reason != vm.ExitCrashed {
		t.Errorf("exit is %+v", exit)
	}
	release()
}

// A failed start is told to the starter although the shim ends over it.
func TestRunStartFails(t *testing.T) {
	f := newFakeFramework()
	f.before = func(call string) error {
		if call == "Start" {
			return framework.NewError(framework.CodeVirtualMachineLimitExceeded, "Too many.")
		}
		return nil
	}
	s := begin(t, f, testRecord(t), time.Hour)
	if _, err := s.Start(t.Context()); !errors.Is(err, vm.ErrLimitExceeded) || !strings.Contains(err.Error(), "Too many.") {
		t.Errorf("start: %v, want ErrLimitExceeded", err)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

// Without its socket a machine ends: nobody could ever end it.
func TestRunServerDies(t *testing.T) {
	f := newFakeFramework()
	s := begin(t, f, testRecord(t), time.Hour)
	if _, err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-s.ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("run: %v, want ErrClosed", err)
	}
	if exit := s.exit(t); exit.Reason != vm.ExitCrashed || !strings.Contains(exit.Detail, "reached") {
		t.Errorf("exit is %+v", exit)
	}
	if n := f.open(); n != 0 {
		t.Errorf("%d machines are left", n)
	}
}

// When the host is shut down the guest is asked to power off.
func TestRunTerminated(t *testing.T) {
	f := newFakeFramework()
	f.before = func(call string) error {
		if call == "RequestStop" {
			f.machines[0].enter(framework.StateStopped)
		}
		return nil
	}
	s := begin(t, f, testRecord(t), time.Hour)
	if _, err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.terminate()
	if err := <-s.ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if exit := s.exit(t); exit.Reason != vm.ExitStopped || !strings.Contains(exit.Detail, "when asked") {
		t.Errorf("exit is %+v", exit)
	}
	// One that is paused, and one that was never made, are not waited for.
	for _, start := range []bool{true, false} {
		f := newFakeFramework()
		s := begin(t, f, testRecord(t), time.Hour)
		if start {
			if _, err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else if _, err := s.Versions(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.terminate()
		if err := <-s.ended; err != nil {
			t.Errorf("run: %v", err)
		}
		if exit := s.exit(t); exit.Reason != vm.ExitStopped || f.count("RequestStop") > 0 {
			t.Errorf("exit is %+v, after %q", exit, f.calls)
		}
	}
}

// Whoever waits for an answer when the machine ends gets one.
func TestRunAnswersAtTheEnd(t *testing.T) {
	f := newFakeFramework()
	entered, release := hold(f, "Pause")
	defer release()
	s := begin(t, f, testRecord(t), time.Hour)
	if _, err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pause, stop := make(chan error, 1), make(chan error, 1)
	go func() { pause <- s.Pause(t.Context()) }()
	<-entered
	go func() { stop <- s.Stop(t.Context(), time.Hour) }()
	f.machines[0].enter(framework.StateStopped)
	if err := <-pause; !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("pause: %v, want ErrInvalidState", err)
	}
	// The shim may have gone before this one came.
	if err := <-stop; err != nil && !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("stop: %v", err)
	}
}

func TestRunRefusesRecord(t *testing.T) {
	o := testOptions(t, newFakeFramework())
	if err := Run(t.Context(), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a record: %v, want ErrNotExist", err)
	}
	r := testRecord(t)
	r.Version++
	if err := machinedir.WriteJSON(durable.Host, o.Dir, layout.RecordFile, r); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("another version: %v", err)
	}
	f := newFakeFramework()
	f.hostErr = errFake
	o.Framework = f
	r.Version--
	if err := machinedir.WriteJSON(durable.Host, o.Dir, layout.RecordFile, r); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), o); !errors.Is(err, errFake) {
		t.Errorf("a host that does not answer: %v", err)
	}
	wantNone(t, "(*console).copy(")
}

func TestListener(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, fd := range map[string]uintptr{"a file": duplicate(t, file), "none": 1 << 20} {
		if _, err := Listener(fd); err == nil || !strings.Contains(err.Error(), "by hand") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
