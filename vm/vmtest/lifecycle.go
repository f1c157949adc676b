// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

func (s *suite) unknownID(t *testing.T) {
	ctx := s.context(t)
	for _, id := range []string{"nobody", "", "../boot", "UPPER", "-dash", "an-id-that-is-much-longer-than-allowed"} {
		_, err := s.driver.Load(ctx, id)
		wantError(t, "load "+id, err, vm.ErrNotFound)
	}
	if ids, err := s.driver.List(ctx); err != nil || len(ids) != 0 {
		t.Errorf("list is %q, %v", ids, err)
	}
}

func (s *suite) invalidConfig(t *testing.T) {
	ctx := s.context(t)
	for name, change := range map[string]func(*vm.Config){
		"no vCPUs":        func(c *vm.Config) { c.Shape.VCPUs = 0 },
		"odd memory":      func(c *vm.Config) { c.Shape.MemoryBytes++ },
		"other arch":      func(c *vm.Config) { c.Kit.Arch = "riscv64" },
		"no kernel":       func(c *vm.Config) { c.Kit.Kernel = "" },
		"too many images": func(c *vm.Config) { c.Images = make([]string, s.features.ImageSlots+1) },
		"missing image":   func(c *vm.Config) { c.Images = []string{"/no/such/image"} },
		"short image":     func(c *vm.Config) { c.Images = []string{s.Kit.Kernel} },
	} {
		cfg := s.config()
		change(&cfg)
		_, err := s.driver.Create(ctx, "invalid", cfg)
		wantError(t, "create with "+name, err, vm.ErrInvalidConfig)
	}
	for _, id := range []string{"", "../up", "UPPER", "-dash", "an-id-that-is-much-longer-than-allowed"} {
		_, err := s.driver.Create(ctx, id, s.config())
		wantError(t, "create "+id, err, vm.ErrInvalidConfig)
	}
}

func (s *suite) idTaken(t *testing.T) {
	m := s.restored(t, "taken", s.config())
	_, err := s.driver.Create(s.context(t), "taken", s.config())
	wantError(t, "create", err, vm.ErrAlreadyExists)
	_, err = s.driver.Restore(s.context(t), "taken", s.base, s.config())
	wantError(t, "restore", err, vm.ErrAlreadyExists)
	s.wantState(t, m, vm.StatePaused)
	if err := m.Stop(s.context(t), 0); err != nil {
		t.Fatal(err)
	}
	_, err = s.driver.Restore(s.context(t), "taken", s.base, s.config())
	wantError(t, "restore over an exited machine", err, vm.ErrAlreadyExists)
	if err := m.Delete(s.context(t)); err != nil {
		t.Fatal(err)
	}
	// The old handle does not mean the new machine.
	again := s.restored(t, "taken", s.config())
	if err := m.Delete(s.context(t)); err != nil {
		t.Errorf("delete again: %v", err)
	}
	s.wantState(t, again, vm.StatePaused)
}

func (s *suite) pauseResume(t *testing.T) {
	m, g := s.running(t, "pause", s.config())
	ctx := s.context(t)
	for range 2 { // idempotent
		if err := m.(vm.Pauser).Pause(ctx); err != nil {
			t.Fatalf("pause: %v", err)
		}
		s.wantState(t, m, vm.StatePaused)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := g.Info(short); err == nil {
		t.Error("the guest of a paused machine answers")
	}
	_ = g.Close()
	for range 2 {
		if err := m.Resume(ctx); err != nil {
			t.Fatalf("resume: %v", err)
		}
		s.wantState(t, m, vm.StateRunning)
	}
	s.wantValue(t, s.dial(t, m), baseKey, baseValue)
}

func (s *suite) redial(t *testing.T) {
	m, g := s.running(t, "redial", s.config())
	for range 5 {
		s.wantValue(t, g, baseKey, baseValue)
		if err := g.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		g = s.dial(t, m)
	}
}

func (s *suite) singleConn(t *testing.T) {
	m, g := s.running(t, "single", s.config())
	_, err := m.DialGuest(s.context(t), vm.AgentPort)
	wantError(t, "second dial", err, vm.ErrUnavailable)
	_, err = m.DialGuest(s.context(t), vm.AgentPort+1)
	wantError(t, "dial another port", err, vm.ErrNotSupported)
	s.wantValue(t, g, baseKey, baseValue)
}

func (s *suite) stopByForce(t *testing.T) {
	m, _ := s.running(t, "force", s.config())
	if err := m.Stop(s.context(t), 0); err != nil {
		t.Fatalf("stop: %v", err)
	}
	s.wantState(t, m, vm.StateExited)
	s.wantExit(t, m, vm.ExitStopped)
}

func (s *suite) stopWithGrace(t *testing.T) {
	m, _ := s.running(t, "grace", s.config())
	began := time.Now()
	// The whole timeout as grace: if the guest is not reached the case fails by it.
	if err := m.Stop(s.context(t), s.Timeout); err != nil {
		t.Fatalf("stop: %v\nconsole: %s", err, console(m))
	}
	if took := time.Since(began); took >= s.Timeout {
		t.Errorf("the guest did not power off within %s", took)
	}
	s.wantState(t, m, vm.StateExited)
	s.wantExit(t, m, vm.ExitStopped)
}

func (s *suite) stopPaused(t *testing.T) {
	m := s.restored(t, "stoppaused", s.config())
	ctx, cancel := context.WithTimeout(t.Context(), s.Timeout)
	defer cancel()
	if err := m.Stop(ctx, time.Hour); err != nil {
		t.Fatalf("stop: %v", err)
	}
	s.wantExit(t, m, vm.ExitStopped)
}

func (s *suite) doubleStop(t *testing.T) {
	m, _ := s.running(t, "double", s.config())
	errs := make(chan error)
	for i := range 4 {
		go func() { errs <- m.Stop(s.context(t), time.Duration(i%2)*time.Second) }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if err := m.Stop(s.context(t), time.Second); err != nil {
		t.Errorf("stop of an exited machine: %v", err)
	}
	s.wantExit(t, m, vm.ExitStopped)
}

func (s *suite) exitIsKept(t *testing.T) {
	m, _ := s.running(t, "kept", s.config())
	type result struct {
		exit vm.Exit
		err  error
	}
	early := make(chan result)
	for range 3 {
		go func() {
			exit, err := m.Wait(s.context(t))
			early <- result{exit, err}
		}()
	}
	if err := m.Stop(s.context(t), 0); err != nil {
		t.Fatal(err)
	}
	want := s.wantExit(t, m, vm.ExitStopped)
	for range 3 {
		if r := <-early; r.err != nil || r.exit != want {
			t.Errorf("early waiter got %+v, %v, want %+v", r.exit, r.err, want)
		}
	}
	if late := s.wantExit(t, m, vm.ExitStopped); late != want {
		t.Errorf("late waiter got %+v, want %+v", late, want)
	}
	s.reopen(t)
	again, err := s.driver.Load(s.context(t), "kept")
	if err != nil {
		t.Fatalf("load an exited machine: %v", err)
	}
	s.wantState(t, again, vm.StateExited)
	if got := s.wantExit(t, again, vm.ExitStopped); !got.Time.Equal(want.Time) || got.Detail != want.Detail {
		t.Errorf("after reopening the exit is %+v, want %+v", got, want)
	}
}

func (s *suite) powersOff(t *testing.T) {
	m, g := s.running(t, "poweroff", s.config())
	_ = g.PowerOff(s.context(t)) // it may end before it answers
	s.wantExit(t, m, vm.ExitGuest)
	s.wantState(t, m, vm.StateExited)
}

func (s *suite) panics(t *testing.T) {
	m, g := s.running(t, "panics", s.config())
	_ = g.Panic(s.context(t)) // it does not answer
	s.wantExit(t, m, vm.ExitCrashed)
}

func (s *suite) dies(t *testing.T) {
	m, g := s.running(t, "dies", s.config())
	s.Kill(t, s.stateDir, "dies")
	s.wantExit(t, m, vm.ExitCrashed)
	s.wantState(t, m, vm.StateExited)
	if _, err := g.Info(s.context(t)); err == nil {
		t.Error("the guest of a dead machine answers")
	}
}

func (s *suite) diesUnwatched(t *testing.T) {
	s.running(t, "unwatched", s.config())
	s.close(t)
	s.Kill(t, s.stateDir, "unwatched")
	s.driver = s.Open(t, s.stateDir)
	m, err := s.driver.Load(s.context(t), "unwatched")
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	s.wantExit(t, m, vm.ExitCrashed)
}

func (s *suite) powersOffUnwatched(t *testing.T) {
	m, g := s.running(t, "unwatchedoff", s.config())
	_ = m
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_ = g.PowerOff(ctx)
	s.reopen(t)
	again, err := s.driver.Load(s.context(t), "unwatchedoff")
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	s.wantExit(t, again, vm.ExitGuest)
}

func (s *suite) exitedIsExited(t *testing.T) {
	m, _ := s.running(t, "exited", s.config())
	if err := m.Stop(s.context(t), 0); err != nil {
		t.Fatal(err)
	}
	ctx := s.context(t)
	wantError(t, "resume", m.Resume(ctx), vm.ErrInvalidState)
	if p, ok := m.(vm.Pauser); ok {
		wantError(t, "pause", p.Pause(ctx), vm.ErrInvalidState)
	}
	if _, err := m.DialGuest(ctx, vm.AgentPort); err == nil {
		t.Error("dialled the guest of an exited machine")
	}
	if c, ok := m.(vm.Consoler); ok {
		if text, err := c.Console(ctx); err != nil || len(text) > 64<<10 {
			t.Errorf("console has %d bytes, %v", len(text), err)
		}
	}
}

func (s *suite) deleteIsIdempotent(t *testing.T) {
	m, _ := s.running(t, "delete", s.config())
	ctx := s.context(t)
	for range 3 {
		if err := m.Delete(ctx); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	if m.ID() != "delete" {
		t.Errorf("id is %q", m.ID())
	}
	_, err := m.State(ctx)
	wantError(t, "state", err, vm.ErrNotFound)
	wantError(t, "resume", m.Resume(ctx), vm.ErrNotFound)
	wantError(t, "stop", m.Stop(ctx, 0), vm.ErrNotFound)
	_, err = m.Wait(ctx)
	wantError(t, "wait", err, vm.ErrNotFound)
	_, err = m.DialGuest(ctx, vm.AgentPort)
	wantError(t, "dial", err, vm.ErrNotFound)
	_, err = s.driver.Load(ctx, "delete")
	wantError(t, "load", err, vm.ErrNotFound)
}

// deleteEndsWaiters: whoever waits when a running machine is deleted is told.
func (s *suite) deleteEndsWaiters(t *testing.T) {
	m, _ := s.running(t, "waiters", s.config())
	done := make(chan error, 1)
	go func() {
		_, err := m.Wait(s.context(t))
		done <- err
	}()
	if err := m.Delete(s.context(t)); err != nil {
		t.Fatalf("delete: %v", err)
	}
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("wait: %v", err)
		}
	case <-s.context(t).Done():
		t.Error("the waiter still waits")
	}
}

func (s *suite) cancelledContexts(t *testing.T) {
	m, g := s.running(t, "cancelled", s.config())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.driver.Create(ctx, "other", s.config())
	wantError(t, "create", err, context.Canceled)
	_, err = s.driver.Restore(ctx, "other", s.base, s.config())
	wantError(t, "restore", err, context.Canceled)
	_, err = s.driver.Load(ctx, "cancelled")
	wantError(t, "load", err, context.Canceled)
	_, err = s.driver.List(ctx)
	wantError(t, "list", err, context.Canceled)
	_, err = m.State(ctx)
	wantError(t, "state", err, context.Canceled)
	wantError(t, "resume", m.Resume(ctx), context.Canceled)
	wantError(t, "stop", m.Stop(ctx, 0), context.Canceled)
	wantError(t, "delete", m.Delete(ctx), context.Canceled)
	_, err = m.Wait(ctx)
	wantError(t, "wait", err, context.Canceled)
	_, err = m.DialGuest(ctx, vm.AgentPort)
	wantError(t, "dial", err, context.Canceled)
	// None of it had an effect.
	s.wantState(t, m, vm.StateRunning)
	s.wantValue(t, g, baseKey, baseValue)
	if ids, err := s.driver.List(t.Context()); err != nil || len(ids) != 1 {
		t.Errorf("list is %q, %v", ids, err)
	}
}

// cancelledWhileRestoring cancels at many points in time; whatever the result, a
// failed restore leaves nothing and a successful one a machine.
func (s *suite) cancelledWhileRestoring(t *testing.T) {
	for after := time.Millisecond; after < 300*time.Millisecond; after *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		m, err := s.driver.Restore(ctx, "hurry", s.base, s.config())
		cancel()
		if err == nil {
			s.wantState(t, m, vm.StatePaused)
			if err := m.Delete(s.context(t)); err != nil {
				t.Fatalf("delete: %v", err)
			}
			continue
		}
		wantError(t, "restore", err, context.DeadlineExceeded)
		if ids, err := s.driver.List(t.Context()); err != nil || len(ids) != 0 {
			t.Fatalf("after a restore that failed the list is %q, %v", ids, err)
		}
		if s.Leftovers != nil {
			if left := s.Leftovers(t, s.stateDir); len(left) > 0 {
				t.Fatalf("a restore that failed left %q", left)
			}
		}
	}
}

// close closes the suite's driver.
func (s *suite) close(t *testing.T) {
	t.Helper()
	if err := s.driver.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// reopen does what a restart of the node does, as far as one process can.
func (s *suite) reopen(t *testing.T) {
	t.Helper()
	s.close(t)
	s.driver = s.Open(t, s.stateDir)
}

func (s *suite) survivesReopen(t *testing.T) {
	m, g := s.running(t, "survives", s.config())
	paused := s.restored(t, "survivespaused", s.config())
	if err := g.Put(s.context(t), "survives", "yes"); err != nil {
		t.Fatal(err)
	}
	_ = m
	_ = paused
	s.reopen(t) // with the stream to the guest open
	if got := s.driver.Features(); got != s.features {
		t.Errorf("features are %+v, were %+v", got, s.features)
	}
	m, err := s.driver.Load(s.context(t), "survives")
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	s.wantState(t, m, vm.StateRunning)
	again := s.dial(t, m)
	s.wantValue(t, again, "survives", "yes")
	if p, err := s.driver.Load(s.context(t), "survivespaused"); err != nil {
		t.Errorf("load: %v", err)
	} else {
		s.wantState(t, p, vm.StatePaused)
	}
	_ = again.PowerOff(s.context(t))
	s.wantExit(t, m, vm.ExitGuest)
}

func (s *suite) closedDriver(t *testing.T) {
	s.close(t)
	s.close(t) // idempotent
	_, err := s.driver.Create(s.context(t), "closed", s.config())
	if err == nil {
		t.Error("a closed driver creates machines")
	}
	if _, err := s.driver.Load(s.context(t), "closed"); err == nil || errors.Is(err, vm.ErrNotFound) {
		t.Errorf("a closed driver says of a machine: %v", err)
	}
	s.driver = s.Open(t, s.stateDir)
}

func (s *suite) usage(t *testing.T) {
	m, _ := s.running(t, "usage", s.config())
	meter, ok := m.(vm.Meter)
	if !ok {
		t.Skip("machines cannot be measured")
	}
	u, err := meter.Usage(s.context(t))
	if err != nil {
		t.Fatalf("measure: %v", err)
	}
	if u.PrivateBytes <= 0 || u.PrivateBytes > 2*s.Shape.MemoryBytes {
		t.Errorf("usage is %+v", u)
	}
}
