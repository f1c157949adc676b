// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// stallPatience is how long a step of a life waits for a framework that stalls.
const stallPatience = time.Second

// step is one call of a machine's life.
type step struct {
	name string
	do   func(ctx context.Context) error
}

// errSkipped: a step had no machine to be done to.
var errSkipped = errors.New("skipped")

// life makes a machine, saves it, makes another one of that, and ends both: every call
// of the driver, in an order in which nodes make them. Steps go on after a failure, as far
// as there is a machine to go on with.
func (b *bench) life(saved, good string) []step {
	var source, restored vm.Machine
	cfg := b.config
	cfg.Saveable = true
	need := func(m *vm.Machine, f func(context.Context, vm.Machine) error) func(context.Context) error {
		return func(ctx context.Context) error {
			if *m == nil {
				return errSkipped // it was not made, and that was looked at
			}
			return f(ctx, *m)
		}
	}
	return []step{
		{"create", func(ctx context.Context) (err error) {
			source, err = b.driver.Create(ctx, "source", cfg)
			if err != nil {
				source = nil
			}
			return err
		}},
		{"talk", need(&source, func(ctx context.Context, m vm.Machine) error {
			_, err := talk(ctx, m, "memory of the life")
			return err
		})},
		{"pause", need(&source, func(ctx context.Context, m vm.Machine) error { return m.(vm.Pauser).Pause(ctx) })},
		{"save", need(&source, func(ctx context.Context, m vm.Machine) error {
			_, err := m.(vm.Saver).Save(ctx, saved)
			return err
		})},
		{"resume", need(&source, func(ctx context.Context, m vm.Machine) error { return m.Resume(ctx) })},
		{"state", need(&source, func(ctx context.Context, m vm.Machine) error {
			_, err := m.State(ctx)
			return err
		})},
		{"stop", need(&source, func(ctx context.Context, m vm.Machine) error { return m.Stop(ctx, time.Second) })},
		{"delete", need(&source, func(ctx context.Context, m vm.Machine) error { return m.Delete(ctx) })},
		{"restore", func(ctx context.Context) (err error) {
			restored, err = b.driver.Restore(ctx, "restored", good, b.config)
			if err != nil {
				restored = nil
			}
			return err
		}},
		{"resume restored", need(&restored, func(ctx context.Context, m vm.Machine) error { return m.Resume(ctx) })},
		{"talk to restored", need(&restored, func(ctx context.Context, m vm.Machine) error {
			_, err := talk(ctx, m, "hello")
			return err
		})},
		{"delete restored", need(&restored, func(ctx context.Context, m vm.Machine) error { return m.Delete(ctx) })},
	}
}

// known are the kinds of errors that a caller can do something about.
var known = []error{
	vm.ErrUnavailable, vm.ErrInvalidState, vm.ErrNoSpace, vm.ErrLimitExceeded, vm.ErrNotSupported, vm.ErrNotFound,
	vm.ErrSnapshotInvalid, vm.ErrInvalidConfig, context.DeadlineExceeded,
}

func isKnown(err error) bool {
	for _, k := range known {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

// TestFaultAtEveryCall lives a machine's life with one call of the seam failing, stalling
// or killing the shim, the first time or the second, before its effect or after it. Then
// the fault is taken away, and: every machine that is left can be deleted and leaves
// nothing; a save that was reported is whole, and one that was not cannot be restored;
// the snapshot that was there before is as good as ever.
func TestFaultAtEveryCall(t *testing.T) {
	var cases waiting
	defer cases.run(t)
	for _, call := range simulator.Calls {
		for _, kind := range []simulator.FaultKind{simulator.FaultFail, simulator.FaultStall, simulator.FaultCrash} {
			for _, after := range []bool{false, true} {
				for _, nth := range []int{1, 2} {
					if call == simulator.CallHost && kind == simulator.FaultCrash {
						continue // the node asks this too, and the node is this test
					}
					name := fmt.Sprintf("%s/%s/after=%v/%d", call, kind, after, nth)
					cases.add(name, func(t *testing.T) {
						faultAt(t, simulator.Fault{Call: call, Kind: kind, After: after, Nth: nth})
					})
				}
			}
		}
	}
}

// waiting are cases that wait for deadlines most of the time: more of them run at once
// than the host has processors.
type waiting []struct {
	name string
	run  func(t *testing.T)
}

func (w *waiting) add(name string, run func(t *testing.T)) {
	*w = append(*w, struct {
		name string
		run  func(t *testing.T)
	}{name, run})
}

func (w *waiting) run(t *testing.T) {
	const atOnce = 12
	next := make(chan int)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := range next {
				t.Run((*w)[i].name, (*w)[i].run)
			}
		})
	}
	for i := range *w {
		next <- i
	}
	close(next)
	all.Wait()
}

func faultAt(t *testing.T, fault simulator.Fault) {
	b := newBench(t)
	b.StopTimeout = stallPatience
	b.open(t)
	const before = "from before"
	good := b.snapshot(t, b.config, before)
	saved := filepath.Join(t.TempDir(), "saved")
	if err := os.Mkdir(saved, 0o700); err != nil {
		t.Fatal(err)
	}
	b.change(t, func(h *simulator.Host) { h.Faults = []simulator.Fault{fault} })
	savedWhole, memory := false, ""
	for _, s := range b.life(saved, good) {
		ctx, cancel := context.WithTimeout(t.Context(), stallPatience)
		began := time.Now()
		err := s.do(ctx)
		cancel()
		if took := time.Since(began); took > stallPatience+10*time.Second {
			t.Errorf("%s took %s, with a deadline of %s", s.name, took, stallPatience)
		}
		if errors.Is(err, errSkipped) {
			continue
		}
		if s.name == "talk" && err == nil {
			memory = "of the life"
		}
		if s.name == "save" && err == nil {
			savedWhole = true
		}
		if err != nil && !isKnown(err) && !talks(s.name) {
			t.Errorf("%s: an error of no kind: %v", s.name, err)
		}
		if s.name == "restore" && errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("a fault of %s %s is taken for a bad snapshot: %v", fault.Call, fault.Kind, err)
		}
	}
	if f := b.host(t).Faults[0]; f.Hits == 0 && (fault.Nth == 1 || f.Seen >= fault.Nth) {
		t.Errorf("the fault never struck: the call was made %d times", f.Seen)
	}
	b.change(t, func(h *simulator.Host) { h.Faults = nil })
	b.sweep(t)
	entries, err := os.ReadDir(saved)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case savedWhole:
		b.wantRestorable(t, saved, b.config, memory)
	case len(entries) > 0 && !complete(t, saved):
		if m, err := b.driver.Restore(bounded(t), "half", saved, b.config); !errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("restore of what a failed save left: %v, want %v", err, vm.ErrSnapshotInvalid)
			if err == nil {
				_ = m.Delete(bounded(t))
			}
		}
	}
	b.wantRestorable(t, good, b.config, before)
	b.sweep(t)
}

// talks: the guest's words are not the driver's calls.
func talks(name string) bool { return name == "talk" || name == "talk to restored" }

// complete: the save had ended when its answer was lost, so that what it wrote is whole.
func complete(t *testing.T, dir string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(dir, "vz.json"))
	return err == nil
}

// TestShimDies kills the shim of each of two machines: the other one does not notice.
func TestShimDies(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := bounded(t)
	var machines []vm.Machine
	for _, id := range []string{"dies", "lives"} {
		m, err := b.driver.Create(ctx, id, b.config)
		if err != nil {
			t.Fatal(err)
		}
		machines = append(machines, m)
	}
	for _, pid := range processesUnder(t, filepath.Join(b.stateDir, "machines", "dies")) {
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	exit, err := machines[0].Wait(ctx)
	if err != nil || exit.Reason != vm.ExitCrashed {
		t.Errorf("exit is %+v, %v, want a crash", exit, err)
	}
	if _, err := talk(ctx, machines[1], "hello"); err != nil {
		t.Errorf("the other machine: %v", err)
	}
	b.sweep(t)
}
