// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator_test

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// TestChangeHost: no change of two goroutines and two processes is lost, and nobody
// reads half of one.
func TestChangeHost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	change(t, dir, func(h *simulator.Host) { h.Boots = 0 })
	one, two := another(t, dir, "count"), another(t, dir, "count")
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 100 {
				if err := simulator.ChangeHost(dir, func(h *simulator.Host) { h.Boots++ }); err != nil {
					t.Error(err)
				}
				if _, err := simulator.ReadHost(dir); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, one.Wait())
	must(t, two.Wait())
	h, err := simulator.ReadHost(dir)
	must(t, err)
	if h.Boots != 400 {
		t.Errorf("%d changes, want 400", h.Boots)
	}
}

// TestOpen: what cannot be opened, and that a second opening changes nothing.
func TestOpen(t *testing.T) {
	t.Parallel()
	engine := simulator.NoGuest(simulator.Script{})
	for name, o := range map[string]simulator.Options{
		"no directory": {Engine: engine},
		"no engine":    {HostDir: t.TempDir()},
		"no program":   {HostDir: t.TempDir(), Engine: simulator.QEMU(simulator.QEMUOptions{Binary: "no-such-emulator"})},
		"no such arch": {HostDir: t.TempDir(), Engine: simulator.QEMU(simulator.QEMUOptions{Arch: "vax"})},
	} {
		if _, err := simulator.Open(o); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	dir := filepath.Join(t.TempDir(), "new", "host")
	open(t, dir, engine)
	change(t, dir, func(h *simulator.Host) { h.OSBuild = "25A1" })
	open(t, dir, engine)
	h, err := simulator.ReadHost(dir)
	must(t, err)
	if h.OSBuild != "25A1" {
		t.Error("opening a host changed it")
	}
	must(t, os.WriteFile(filepath.Join(dir, "host.json"), []byte("{"), 0o600))
	if _, err := simulator.Open(simulator.Options{HostDir: dir, Engine: engine}); err == nil {
		t.Error("a damaged host.json was replaced")
	}
}

// TestTwoMacOSGuests: not three, over all processes, and no longer than they live.
func TestTwoMacOSGuests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	other := another(t, dir, "macos")
	here := newMachine(t, f, macOS(t))
	must(t, here.Start())
	third := newMachine(t, f, macOS(t))
	exceeded := func() {
		t.Helper()
		if err := third.Start(); code(err) != framework.CodeVirtualMachineLimitExceeded {
			t.Fatalf("start: %v, want code 6", err)
		}
		wantState(t, third, framework.StateStopped)
	}
	exceeded()
	must(t, newMachine(t, f, linux(t)).Start()) // no such limit
	must(t, here.Pause())
	exceeded() // a paused one counts
	must(t, here.Stop())
	must(t, third.Start())
	must(t, third.Stop())
	must(t, here.Start())
	exceeded()
	kill(t, other)
	must(t, third.Start())
	// Guests that end by themselves free their slots, before it is seen.
	dial(t, third).send("off")
	waitState(t, third, framework.StateStopped)
	must(t, third.Start())
	dial(t, third).send("fail x")
	waitState(t, third, framework.StateError)
	must(t, third.Start())
	must(t, third.Close())
	must(t, newMachine(t, f, macOS(t)).Start())
	// Another Mac has slots of its own.
	must(t, newMachine(t, open(t, t.TempDir(), simulator.NoGuest(simulator.Script{})), macOS(t)).Start())
}

// TestNobodyLoggedIn: tuist #10670, tart #1075: macOS guests want a graphical session to
// be started, Linux guests do not.
func TestNobodyLoggedIn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	change(t, dir, func(h *simulator.Host) { h.GUISession = false })
	must(t, newMachine(t, f, linux(t)).Start())
	m := newMachine(t, f, macOS(t))
	if err := m.Start(); code(err) != framework.CodeHostKey {
		t.Errorf("start: %v, want code -9", err)
	}
	change(t, dir, func(h *simulator.Host) { h.GUISession = true })
	must(t, m.Start())
}

// TestLeakedSlots: UTM #5563, macosvm #16.
func TestLeakedSlots(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	change(t, dir, func(h *simulator.Host) { h.LeaksSlots = true })
	m := newMachine(t, f, macOS(t))
	must(t, m.Start())
	must(t, m.Stop())
	kill(t, another(t, dir, "macos"))
	h, err := simulator.ReadHost(dir)
	must(t, err)
	if !slices.Equal(h.LeakedSlots, []int{0, 1}) {
		t.Errorf("leaked slots are %v, want both", h.LeakedSlots)
	}
	if err := m.Start(); code(err) != framework.CodeVirtualMachineLimitExceeded {
		t.Fatalf("start: %v, want code 6", err)
	}
	must(t, simulator.Reboot(dir))
	must(t, m.Start())
}

// TestProcessDeath: what a process holds ends with it.
func TestProcessDeath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	cfg := linux(t)
	saved := savedMachine(t, f, cfg)
	scratch := cfg.Disks[1].Path
	must(t, os.WriteFile(scratch+".identifier", cfg.MachineIdentifier, 0o600))
	other := another(t, dir, "linux "+scratch)
	if _, err := f.New(cfg); code(err) != framework.CodeInvalidVirtualMachineConfiguration {
		t.Errorf("new with a disk of another process: %v, want code 2", err)
	}
	mine := cfg
	mine.Disks = []framework.Disk{cfg.Disks[0], cfg.Disks[1]}
	mine.Disks[1].Path = write(t, "clone", make([]byte, 8192))
	m := newMachine(t, f, mine)
	if err := m.Restore(saved); code(err) != framework.CodeRestore {
		t.Errorf("restore beside another process's machine of the identifier: %v, want code 12", err)
	}
	kill(t, other)
	must(t, m.Restore(saved))
	newMachine(t, f, cfg)
}

// TestNothingIsKept: machines that were closed leave no descriptor and no goroutine.
func TestNothingIsKept(t *testing.T) {
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	cfg := macOS(t)
	saved := savedMachine(t, f, cfg)
	use := func(n int) {
		for range n {
			m, err := f.New(cfg)
			must(t, err)
			must(t, m.Restore(saved))
			must(t, m.Resume())
			s := dial(t, m)
			must(t, m.Close())
			s.conn.Close()
			must(t, m.Close()) // twice is no error
		}
	}
	use(1)
	before := descriptors(t)
	use(30)
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before 30 machines", after, before)
	}
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/dev/fd")
	must(t, err)
	return len(entries)
}
