// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator_test

import (
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// TestTransitions tries every call in every state that lasts.
func TestTransitions(t *testing.T) {
	t.Parallel()
	const (
		ok         = framework.Code(-1)
		state      = framework.CodeInvalidVirtualMachineState
		transition = framework.CodeInvalidVirtualMachineStateTransition
	)
	// The states a machine can be brought into. "stopped" has run before, "new" has not.
	states := []string{"new", "stopped", "running", "paused", "error", "closed"}
	calls := []struct {
		name string
		do   func(m framework.Machine, saved, path string) error
		want [6]framework.Code // by state
		to   framework.State   // where it works
	}{
		{"Start", func(m framework.Machine, _, _ string) error { return m.Start() }, [6]framework.Code{ok, ok, transition, transition, ok, state}, framework.StateRunning},
		{"Pause", func(m framework.Machine, _, _ string) error { return m.Pause() }, [6]framework.Code{transition, transition, ok, transition, transition, state}, framework.StatePaused},
		{"Resume", func(m framework.Machine, _, _ string) error { return m.Resume() }, [6]framework.Code{transition, transition, transition, ok, transition, state}, framework.StateRunning},
		{"Stop", func(m framework.Machine, _, _ string) error { return m.Stop() }, [6]framework.Code{transition, transition, ok, ok, transition, state}, framework.StateStopped},
		{"RequestStop", func(m framework.Machine, _, _ string) error { return m.RequestStop() }, [6]framework.Code{state, state, ok, state, state, state}, framework.StateStopped},
		{"Save", func(m framework.Machine, _, path string) error { return m.Save(path) }, [6]framework.Code{state, state, state, ok, state, state}, framework.StatePaused},
		{"Restore", func(m framework.Machine, saved, _ string) error { return m.Restore(saved) }, [6]framework.Code{ok, transition, transition, transition, transition, state}, framework.StatePaused},
	}
	for _, c := range calls {
		for i, name := range states {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
				cfg := linux(t)
				saved := savedMachine(t, f, cfg)
				m := newMachine(t, f, cfg)
				bring(t, m, name)
				before := m.State()
				err := c.do(m, saved, filepath.Join(t.TempDir(), "saved"))
				switch {
				case c.want[i] == ok && err != nil:
					t.Fatal(err)
				case c.want[i] == ok:
					waitState(t, m, c.to)
				case code(err) != c.want[i]:
					t.Errorf("%v, want code %d", err, c.want[i])
				default:
					wantState(t, m, before)
				}
			})
		}
	}
}

func bring(t *testing.T, m framework.Machine, state string) {
	t.Helper()
	if state == "new" {
		return
	}
	must(t, m.Start())
	switch state {
	case "stopped":
		must(t, m.Stop())
	case "paused":
		must(t, m.Pause())
	case "error":
		dial(t, m).send("fail for a test")
		waitState(t, m, framework.StateError)
	case "closed":
		must(t, m.Close())
	}
}

// TestChanges: the states on the way are seen.
func TestChanges(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	cfg := linux(t)
	saved := savedMachine(t, f, cfg)
	m := newMachine(t, f, cfg)
	var seen []framework.State
	drain := func() {
		for {
			select {
			case s := <-m.Changes():
				seen = append(seen, s)
				continue
			default:
			}
			return
		}
	}
	must(t, m.Restore(saved))
	must(t, m.Resume())
	must(t, m.Pause())
	must(t, m.Save(filepath.Join(t.TempDir(), "saved")))
	must(t, m.Stop())
	drain()
	must(t, m.Start())
	drain()
	want := []framework.State{
		framework.StateRestoring, framework.StatePaused, framework.StateResuming, framework.StateRunning,
		framework.StatePausing, framework.StatePaused, framework.StateSaving, framework.StatePaused,
		framework.StateStopping, framework.StateStopped, framework.StateStarting, framework.StateRunning,
	}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %v, want %v", seen, want)
	}
	// Nobody reads: steps are left out, and the last one is the last.
	for range 50 {
		must(t, m.Pause())
		must(t, m.Resume())
	}
	seen = nil
	drain()
	if len(seen) == 0 || len(seen) > 50 || seen[len(seen)-1] != framework.StateRunning {
		t.Errorf("seen %v, want a few states with running as the last", seen)
	}
}

// TestCallsFromAnywhere: calls wait for each other, and each comes to a legal end.
func TestCallsFromAnywhere(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	m := newMachine(t, f, linux(t))
	must(t, m.Start())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				for _, do := range []func() error{m.Pause, m.Resume, m.Start} {
					if err := do(); err != nil && code(err) != framework.CodeInvalidVirtualMachineStateTransition {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	must(t, m.Stop())
}

// TestGuestEndsDuringCall: a machine whose guest is gone is stopped, whatever was asked
// of it meanwhile.
func TestGuestEndsDuringCall(t *testing.T) {
	t.Parallel()
	for range 20 {
		f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
		m := newMachine(t, f, linux(t))
		must(t, m.Start())
		c := dial(t, m)
		var wg sync.WaitGroup
		wg.Go(func() { c.send("off") })
		wg.Go(func() {
			for m.Pause() == nil && m.Resume() == nil {
				continue // until it has ended
			}
		})
		waitState(t, m, framework.StateStopped)
		wg.Wait()
		wantState(t, m, framework.StateStopped)
	}
}

// TestPowerButton: a guest may ignore it.
func TestPowerButton(t *testing.T) {
	t.Parallel()
	pressed := make(chan struct{}, 1)
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{PowerButton: func(*simulator.Guest) { pressed <- struct{}{} }}))
	m := newMachine(t, f, linux(t))
	must(t, m.Start())
	must(t, m.RequestStop())
	<-pressed
	wantState(t, m, framework.StateRunning)
}

// TestHost is what the seam is told of the host.
func TestHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	change(t, dir, func(h *simulator.Host) { h.ID, h.User, h.ScreenLocked = "mac", "502", true })
	h, err := f.Host()
	must(t, err)
	want := framework.Host{OSVersion: "15.5", OSBuild: "24F74", ID: "mac/502", ScreenLocked: true, Accelerator: "simulator", SaveRestore: true}
	if h != want {
		t.Errorf("host is %+v, want %+v", h, want)
	}
	for _, c := range []struct {
		version string
		silicon bool
		want    bool
	}{{"13.7", true, false}, {"14.0", true, true}, {"26.1", true, true}, {"14.0", false, false}, {"", true, false}} {
		change(t, dir, func(h *simulator.Host) { h.OSVersion, h.SaveRestore = c.version, c.silicon })
		if h, err := f.Host(); err != nil || h.SaveRestore != c.want {
			t.Errorf("macOS %q, Apple silicon %v: SaveRestore %v, %v", c.version, c.silicon, h.SaveRestore, err)
		}
		m := newMachine(t, f, linux(t))
		if err := m.SaveRestoreSupport(); errors.Is(err, framework.ErrUnsupportedOS) == c.want {
			t.Errorf("macOS %q, Apple silicon %v: support: %v", c.version, c.silicon, err)
		}
	}
}
