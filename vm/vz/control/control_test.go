// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// fakeMachine answers with what a test has put into it, and notes what it was asked.
type fakeMachine struct {
	state vm.State
	files []string
	err   error
	// asked gets each call; entered, when not nil, its beginning, and the call ends with
	// its ctx.
	asked   chan string
	entered chan struct{}
	dial    func(ctx context.Context, port uint32, conn net.Conn)
}

func (f *fakeMachine) note(ctx context.Context, format string, args ...any) error {
	if f.entered != nil {
		f.entered <- struct{}{}
		<-ctx.Done()
		f.asked <- "the end of ctx"
		return ctx.Err()
	}
	f.asked <- fmt.Sprintf(format, args...)
	return f.err
}

func (f *fakeMachine) Start(ctx context.Context) (vm.State, error) {
	return f.state, f.note(ctx, "start")
}

func (f *fakeMachine) State(context.Context) (vm.State, error) { return f.state, f.err }
func (f *fakeMachine) Pause(ctx context.Context) error         { return f.note(ctx, "pause") }
func (f *fakeMachine) Resume(ctx context.Context) error        { return f.note(ctx, "resume") }

func (f *fakeMachine) Save(ctx context.Context, dir string) ([]string, error) {
	return f.files, f.note(ctx, "save %s", dir)
}

func (f *fakeMachine) Stop(ctx context.Context, grace time.Duration) error {
	return f.note(ctx, "stop %s", grace)
}

func (f *fakeMachine) Dial(ctx context.Context, port uint32, conn net.Conn) { f.dial(ctx, port, conn) }

func newFake() *fakeMachine {
	return &fakeMachine{state: vm.StateRunning, asked: make(chan string, 1)}
}

// listen makes the control socket of a machine's directory.
func listen(t *testing.T) (dir string, l net.Listener) {
	t.Helper()
	dir = t.TempDir()
	f, err := machinedir.ListenUnix(dir, Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if l, err = net.FileListener(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return dir, l
}

// serve puts the real server before a machine.
func serve(t *testing.T, m Machine) *Client {
	t.Helper()
	dir, l := listen(t)
	server := NewServer(m, "v1.2.3")
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	c := NewClient(dir)
	t.Cleanup(func() {
		c.Close()
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return c
}

func TestRoundTrip(t *testing.T) {
	f := newFake()
	f.files = []string{"vz.json", "machine.vzstate"}
	c := serve(t, f)
	ctx := t.Context()
	if v, err := c.Versions(ctx); err != nil || v.Build != "v1.2.3" || v.PID == 0 {
		t.Errorf("versions are %+v, %v", v, err)
	}
	for name, call := range map[string]func() error{
		"start": func() error {
			state, err := c.Start(ctx)
			if state != vm.StateRunning {
				err = errors.Join(err, fmt.Errorf("state %q", state))
			}
			return err
		},
		"pause":  func() error { return c.Pause(ctx) },
		"resume": func() error { return c.Resume(ctx) },
		"save /a directory\n": func() error {
			files, err := c.Save(ctx, "/a directory\n")
			if !slices.Equal(files, f.files) {
				err = errors.Join(err, fmt.Errorf("files %q", files))
			}
			return err
		},
		"stop 0s":     func() error { return c.Stop(ctx, 0) },
		"stop 1m30s":  func() error { return c.Stop(ctx, 90*time.Second) },
		"stop 1ms":    func() error { return c.Stop(ctx, time.Microsecond) }, // by force would be another thing
		"stop 1.001s": func() error { return c.Stop(ctx, time.Second+time.Nanosecond) },
	} {
		if err := call(); err != nil {
			t.Errorf("%q: %v", name, err)
		} else if got := <-f.asked; got != name {
			t.Errorf("asked for %q, the machine was asked for %q", name, got)
		}
	}
	for _, want := range []vm.State{vm.StateRunning, vm.StatePaused, vm.StateExited} {
		f.state = want
		if got, err := c.State(ctx); err != nil || got != want {
			t.Errorf("state is %q, %v, want %q", got, err, want)
		}
	}
}

// Every kind of error arrives as what it was, from every call.
func TestErrorsKeepTheirKind(t *testing.T) {
	f := newFake()
	c := serve(t, f)
	ctx := t.Context()
	for want, sent := range map[error]error{
		vm.ErrSnapshotInvalid: vm.ErrSnapshotInvalid, vm.ErrNoSpace: vm.ErrNoSpace, vm.ErrLimitExceeded: vm.ErrLimitExceeded,
		vm.ErrInvalidConfig: vm.ErrInvalidConfig, vm.ErrInvalidState: vm.ErrInvalidState, vm.ErrNotSupported: vm.ErrNotSupported,
		vm.ErrNotFound: vm.ErrNotFound, vm.ErrUnavailable: vm.ErrUnavailable, ErrRestoreRefused: ErrRestoreRefused,
	} {
		f.err = fmt.Errorf("doing it: %w: for a reason: %w", sent, errors.New("a cause"))
		for name, call := range map[string]func() error{
			"start":  func() error { _, err := c.Start(ctx); <-f.asked; return err },
			"state":  func() error { _, err := c.State(ctx); return err },
			"pause":  func() error { err := c.Pause(ctx); <-f.asked; return err },
			"resume": func() error { err := c.Resume(ctx); <-f.asked; return err },
			"save":   func() error { _, err := c.Save(ctx, "/d"); <-f.asked; return err },
			"stop":   func() error { err := c.Stop(ctx, 0); <-f.asked; return err },
			"dial":   func() error { _, err := c.Dial(ctx, vm.AgentPort); return err },
		} {
			err := call()
			if !errors.Is(err, want) || err.Error() != f.err.Error() || !Answered(err) {
				t.Errorf("%s: %v arrived as %v", name, f.err, err)
			}
			for _, k := range kinds {
				if errors.Is(err, k.err) && !errors.Is(want, k.err) {
					t.Errorf("%s: %v is %v as well", name, f.err, k.err)
				}
			}
		}
	}
	f.err = errors.New("no kind at all")
	if err := c.Pause(ctx); !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "no kind at all") {
		t.Errorf("an error without a kind arrived as %v", err)
	}
	<-f.asked
	f.err = errors.New(strings.Repeat("ü", maxMessageBytes) + "\xff")
	if err := c.Pause(ctx); err == nil || len(err.Error()) > maxMessageBytes {
		t.Errorf("an error of %d bytes arrived with %d", len(f.err.Error()), len(err.Error()))
	}
	<-f.asked
}

// The machine hears that nobody waits any more.
func TestCancelled(t *testing.T) {
	f := newFake()
	f.entered = make(chan struct{})
	c := serve(t, f)
	for name, call := range map[string]func(ctx context.Context) error{
		"start": func(ctx context.Context) error { _, err := c.Start(ctx); return err },
		"pause": c.Pause, "resume": c.Resume,
		"save": func(ctx context.Context) error { _, err := c.Save(ctx, "/d"); return err },
		"stop": func(ctx context.Context) error { return c.Stop(ctx, time.Hour) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- call(ctx) }()
		<-f.entered
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: error is %v, want Canceled", name, err)
		}
		if got := <-f.asked; got != "the end of ctx" {
			t.Errorf("%s: the machine has seen %q", name, got)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	dir, l := listen(t)
	_ = l.Close()
	c := NewClient(dir)
	if _, err := c.State(t.Context()); !errors.Is(err, vm.ErrUnavailable) || Answered(err) {
		t.Errorf("state: %v, want ErrUnavailable without an answer", err)
	}
	if _, err := c.Dial(t.Context(), 1024); !errors.Is(err, vm.ErrUnavailable) || Answered(err) {
		t.Errorf("dial: %v, want ErrUnavailable without an answer", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.State(gone); !errors.Is(err, context.Canceled) || errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("state with an ended ctx: %v, want Canceled only", err)
	}
	if _, err := c.Dial(gone, 1024); !errors.Is(err, context.Canceled) || errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("dial with an ended ctx: %v, want Canceled only", err)
	}
}

func TestStopRequest(t *testing.T) {
	for _, c := range []struct {
		millis int64
		want   time.Duration
	}{
		{0, 0},
		{1500, 1500 * time.Millisecond},
		{-1, 0},
		{math.MinInt64, 0},
		{math.MaxInt64, time.Duration(math.MaxInt64).Truncate(time.Millisecond)},
	} {
		if got := (StopRequest{c.millis}).Grace(); got != c.want {
			t.Errorf("%d ms are %s, want %s", c.millis, got, c.want)
		}
	}
}

// A stream carries what was sent behind the request and before the answer was read, in
// both directions, and ends with either end.
func TestDial(t *testing.T) {
	f := newFake()
	over := make(chan struct{})
	f.dial = func(_ context.Context, port uint32, conn net.Conn) {
		defer close(over)
		defer conn.Close()
		fmt.Fprintf(conn, "port %d\n", port)
		_, _ = io.Copy(conn, conn)
	}
	c := serve(t, f)
	conn, err := c.Dial(t.Context(), math.MaxUint32)
	if err != nil {
		t.Fatal(err)
	}
	want := "port 4294967295\n" + strings.Repeat("0123456789", 10_000)
	go fmt.Fprint(conn, want[16:])
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("read %.40q..., %v", got, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	<-over
}

// The stream outlives the ctx that it was dialled with.
func TestDialOutlivesContext(t *testing.T) {
	f := newFake()
	f.dial = func(ctx context.Context, _ uint32, conn net.Conn) {
		defer conn.Close()
		if ctx.Err() != nil {
			fmt.Fprint(conn, "ended")
		}
		_, _ = io.Copy(conn, conn)
	}
	c := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := c.Dial(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	fmt.Fprint(conn, "on")
	got := make([]byte, 2)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "on" {
		t.Errorf("read %q, %v, want \"on\"", got, err)
	}
}

func TestDialExited(t *testing.T) {
	f := newFake()
	f.state = vm.StateExited
	if _, err := serve(t, f).Dial(t.Context(), 1); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("error is %v, want ErrInvalidState", err)
	}
}
