// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"context"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// stalls is about a machine whose hypervisor lives and does not answer: State says so in time,
// which is how one tells that a machine is stuck; whoever waits for its end is not told of one;
// it can be ended all the same; and no other machine is touched by it.
func (s *suite) stalls(t *testing.T) {
	stalled, _ := s.running(t, "stalled", s.config())
	other, guest := s.running(t, "other", s.config())
	goOn := s.Stall(t, s.stateDir, "stalled")
	t.Cleanup(goOn) // on the way out of a failure; ending it is all that there is to do then

	s.wantNoAnswer(t, stalled)
	s.wantState(t, other, vm.StateRunning)
	s.wantValue(t, guest, baseKey, baseValue)

	// A stall that passes changes nothing.
	goOn()
	s.wantState(t, stalled, vm.StateRunning)

	goOn = s.Stall(t, s.stateDir, "stalled")
	t.Cleanup(goOn)
	s.wantNoAnswer(t, stalled)
	if err := stalled.Stop(s.context(t), 0); err != nil {
		t.Fatalf("stop: %v", err)
	}
	s.wantExit(t, stalled, vm.ExitStopped)
	s.wantState(t, other, vm.StateRunning)
	s.wantValue(t, guest, baseKey, baseValue)

	// Deleted without being stopped before.
	last := s.restored(t, "deleted", s.config())
	goOn = s.Stall(t, s.stateDir, "deleted")
	t.Cleanup(goOn)
	if err := last.Delete(s.context(t)); err != nil {
		t.Fatalf("delete: %v", err)
	}
}

// wantNoAnswer asks a machine that cannot answer: an error, no state, and soon after the deadline.
func (s *suite) wantNoAnswer(t *testing.T, m vm.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.context(t), time.Second)
	defer cancel()
	if state, err := m.State(ctx); err == nil {
		t.Errorf("the hypervisor stands still and the machine is %q", state)
	}
	if s.context(t).Err() != nil {
		t.Error("State did not end with its context")
	}
	waiting, cancel := context.WithTimeout(s.context(t), 100*time.Millisecond)
	defer cancel()
	if exit, err := m.Wait(waiting); err == nil {
		t.Errorf("a machine that stands still has ended: %+v", exit)
	}
}
