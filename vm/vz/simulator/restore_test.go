// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// TestRestoreRules changes one thing between a save and a restore.
func TestRestoreRules(t *testing.T) {
	t.Parallel()
	const denied, invalid = "permission denied", "invalid argument"
	type world struct {
		dir, saved string
		cfg        *framework.Configuration
		frame      framework.Framework
	}
	host := func(do func(*simulator.Host)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { change(t, w.dir, do) }
	}
	config := func(do func(*testing.T, *framework.Configuration)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { do(t, w.cfg) }
	}
	for _, c := range []struct {
		name    string
		macOS   bool
		before  func(*simulator.Host) // the save
		between func(*testing.T, *world)
		want    framework.Code // 0: it restores
		text    string
	}{
		{name: "nothing"},
		{name: "nothing of a macOS guest", macOS: true},
		// The host.
		{name: "another host", between: host(func(h *simulator.Host) { h.ID = "another" }), want: framework.CodeRestore, text: denied},
		{name: "another user", between: host(func(h *simulator.Host) { h.User = "502" }), want: framework.CodeRestore, text: denied},
		{name: "the screen is locked", between: host(func(h *simulator.Host) { h.ScreenLocked = true }), want: framework.CodeRestore, text: denied},
		{name: "nobody is logged in", between: host(func(h *simulator.Host) { h.GUISession = false }), want: framework.CodeHostKey, text: "HostKey"},
		{name: "an older build", between: host(func(h *simulator.Host) { h.OSBuild = "24F73" }), want: framework.CodeRestore, text: invalid},
		{name: "an older build that reads others", between: host(func(h *simulator.Host) { h.OSBuild, h.RestoresAcrossBuilds = "24E999", true }), want: framework.CodeRestore, text: invalid},
		{name: "an upgrade", between: host(func(h *simulator.Host) { h.OSBuild = "24G1" }), want: framework.CodeRestore, text: invalid},
		{name: "an upgrade that reads older files", between: host(func(h *simulator.Host) { h.OSBuild, h.RestoresAcrossBuilds = "25A1", true })},
		{name: "a reboot", between: func(t *testing.T, w *world) { must(t, simulator.Reboot(w.dir)) }},
		// The file.
		{name: "the file is missing", between: func(t *testing.T, w *world) { must(t, os.Remove(w.saved)) }, want: framework.CodeRestore, text: "no such file"},
		{name: "the file is a directory", between: func(t *testing.T, w *world) { w.saved = t.TempDir() }, want: framework.CodeRestore},
		{name: "the file is empty", between: func(t *testing.T, w *world) { must(t, os.Truncate(w.saved, 0)) }, want: framework.CodeRestore, text: invalid},
		{name: "the file ends early", between: func(t *testing.T, w *world) { resize(t, w.saved, -1) }, want: framework.CodeRestore, text: invalid},
		{name: "the file has a byte more", between: func(t *testing.T, w *world) { resize(t, w.saved, 1) }, want: framework.CodeRestore, text: invalid},
		{name: "a bit of the header flips", between: func(t *testing.T, w *world) { flip(t, w.saved, 2) }, want: framework.CodeRestore, text: invalid},
		{name: "a bit of the memory flips", between: func(t *testing.T, w *world) { flip(t, w.saved, -4) }, want: framework.CodeRestore, text: invalid},
		{name: "the file was moved", between: func(t *testing.T, w *world) {
			moved := filepath.Join(t.TempDir(), "moved")
			must(t, os.Rename(w.saved, moved))
			w.saved = moved
		}},
		// The configuration.
		{name: "CPUs", between: config(func(_ *testing.T, c *framework.Configuration) { c.CPUs++ }), want: framework.CodeRestore, text: invalid},
		{name: "memory", between: config(func(_ *testing.T, c *framework.Configuration) { c.MemoryBytes += 1 << 20 }), want: framework.CodeRestore, text: invalid},
		{name: "machine identifier", between: config(func(_ *testing.T, c *framework.Configuration) { c.MachineIdentifier = simulator.Identifier() }), want: framework.CodeRestore, text: invalid},
		{name: "MAC address", between: config(func(_ *testing.T, c *framework.Configuration) { c.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 2} }), want: framework.CodeRestore, text: invalid},
		{name: "another kernel", between: config(func(t *testing.T, c *framework.Configuration) { c.Kernel = write(t, "kernel", []byte("b kernel")) }), want: framework.CodeRestore, text: invalid},
		{name: "the same kernel elsewhere", between: config(func(t *testing.T, c *framework.Configuration) { c.Kernel = write(t, "kernel", []byte("a kernel")) })},
		{name: "another initramfs", between: config(func(_ *testing.T, c *framework.Configuration) { c.Initramfs = "" }), want: framework.CodeRestore, text: invalid},
		{name: "command line", between: config(func(_ *testing.T, c *framework.Configuration) { c.CommandLine += " quiet" }), want: framework.CodeRestore, text: invalid},
		{name: "a disk less", between: config(func(_ *testing.T, c *framework.Configuration) { c.Disks = c.Disks[:1] }), want: framework.CodeRestore, text: invalid},
		{name: "disks swapped", between: config(func(_ *testing.T, c *framework.Configuration) { slices.Reverse(c.Disks) }), want: framework.CodeRestore, text: invalid},
		{name: "a disk of another size", between: config(func(t *testing.T, c *framework.Configuration) {
			c.Disks[0].Path = write(t, "disk", make([]byte, 512))
		}), want: framework.CodeRestore, text: invalid},
		{name: "a disk's serial", between: config(func(_ *testing.T, c *framework.Configuration) { c.Disks[0].Serial = "slot1" }), want: framework.CodeRestore, text: invalid},
		{name: "a disk is writable", between: config(func(_ *testing.T, c *framework.Configuration) { c.Disks[0].ReadOnly = false }), want: framework.CodeRestore, text: invalid},
		// As wraithbox X02 found, and the image slots live by: content is not looked at.
		{name: "a disk of other content", between: config(func(t *testing.T, c *framework.Configuration) {
			c.Disks[0].Path = write(t, "disk", []byte(strings.Repeat("x", 4096)))
		})},
		{name: "another network socket", between: config(func(t *testing.T, c *framework.Configuration) { c.Network = datagrams(t) })},
		{name: "a console", between: config(func(t *testing.T, c *framework.Configuration) { c.ConsoleOut = temporary(t) }), want: framework.CodeRestore, text: invalid},
		{name: "an entropy device that can be saved", before: func(h *simulator.Host) { h.SavesEntropy = true },
			between: config(func(_ *testing.T, c *framework.Configuration) { c.Entropy = true }), want: framework.CodeRestore, text: invalid},
		{name: "hardware model", macOS: true, between: config(func(_ *testing.T, c *framework.Configuration) { c.HardwareModel = simulator.HardwareModel("another") }), want: framework.CodeRestore, text: invalid},
		{name: "auxiliary storage elsewhere", macOS: true, between: config(func(t *testing.T, c *framework.Configuration) {
			c.AuxiliaryStorage = write(t, "aux", make([]byte, 512))
		})},
		// Others.
		{name: "a started machine of the identifier", between: func(t *testing.T, w *world) { twin(t, w.frame, w.cfg, framework.Machine.Start) }, want: framework.CodeRestore, text: invalid},
		{name: "a restored machine of the identifier", between: func(t *testing.T, w *world) {
			twin(t, w.frame, w.cfg, func(m framework.Machine) error { return m.Restore(w.saved) })
		}, want: framework.CodeRestore, text: invalid},
		{name: "a restored machine of the identifier, where that is allowed", before: func(h *simulator.Host) { h.RestoresIdentifierInUse = true }, between: func(t *testing.T, w *world) {
			twin(t, w.frame, w.cfg, func(m framework.Machine) error { return m.Restore(w.saved) })
		}},
		{name: "a machine of the identifier that does not run", between: func(t *testing.T, w *world) {
			twin(t, w.frame, w.cfg, func(framework.Machine) error { return nil })
		}},
		{name: "a machine of the identifier that ran", between: func(t *testing.T, w *world) {
			twin(t, w.frame, w.cfg, func(m framework.Machine) error { return errors.Join(m.Start(), m.Stop()) })
		}},
		{name: "two macOS guests elsewhere", macOS: true, between: func(t *testing.T, w *world) {
			must(t, newMachine(t, w.frame, macOS(t)).Start())
			must(t, newMachine(t, w.frame, macOS(t)).Start())
		}, want: framework.CodeVirtualMachineLimitExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world{dir: t.TempDir()}
			w.frame = open(t, w.dir, simulator.NoGuest(simulator.Script{}))
			if c.before != nil {
				change(t, w.dir, c.before)
			}
			cfg := linux(t)
			if c.macOS {
				cfg = macOS(t)
			}
			w.cfg, w.saved = &cfg, savedMachine(t, w.frame, cfg)
			if c.between != nil {
				c.between(t, &w)
			}
			m := newMachine(t, w.frame, cfg)
			err := m.Restore(w.saved)
			if c.want == 0 {
				must(t, err)
				wantState(t, m, framework.StatePaused)
				must(t, m.Resume())
				if s := dial(t, m); s.memory != "saved" {
					t.Errorf("memory is %q, want what was saved", s.memory)
				}
				return
			}
			if code(err) != c.want || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("%v, want code %d and %q", err, c.want, c.text)
			}
			// Unchanged, and never a boot.
			wantState(t, m, framework.StateStopped)
		})
	}
}

// twin makes another machine of the identifier, with disks of its own.
func twin(t *testing.T, f framework.Framework, c *framework.Configuration, do func(framework.Machine) error) {
	t.Helper()
	cfg := *c
	cfg.Disks = slices.Clone(c.Disks)
	for i, d := range cfg.Disks {
		info, err := os.Stat(d.Path)
		must(t, err)
		cfg.Disks[i].Path = write(t, "disk", make([]byte, info.Size()))
	}
	must(t, do(newMachine(t, f, cfg)))
}

func resize(t *testing.T, path string, by int64) {
	info, err := os.Stat(path)
	must(t, err)
	must(t, os.Truncate(path, info.Size()+by))
}

// flip changes a byte, counted from the end if at is negative. There it is one of the
// nonce, which would load as another nonce.
func flip(t *testing.T, path string, at int) {
	b, err := os.ReadFile(path)
	must(t, err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
}

// TestSaveRules changes one thing before a save, which leaves the machine paused.
func TestSaveRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		host   func(*simulator.Host)
		config func(*framework.Configuration)
		path   func(t *testing.T) string
		want   framework.Code
		text   string
	}{
		{name: "nothing"},
		{name: "entropy device", config: func(c *framework.Configuration) { c.Entropy = true }, want: framework.CodeSave},
		{name: "entropy device that can be saved", config: func(c *framework.Configuration) { c.Entropy = true }, host: func(h *simulator.Host) { h.SavesEntropy = true }},
		{name: "the screen is locked", host: func(h *simulator.Host) { h.ScreenLocked = true }, want: framework.CodeSave, text: "permission denied"},
		{name: "nobody is logged in", host: func(h *simulator.Host) { h.GUISession = false }, want: framework.CodeHostKey},
		{name: "the disk is full", host: func(h *simulator.Host) { h.FreeBytes = new(int64) }, want: framework.CodeOutOfDiskSpace},
		{name: "the file exists", path: func(t *testing.T) string { return write(t, "saved", []byte("mine")) }, want: framework.CodeSave},
		{name: "no such directory", path: func(t *testing.T) string { return filepath.Join(t.TempDir(), "no", "saved") }, want: framework.CodeSave},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			f := open(t, dir, simulator.NoGuest(simulator.Script{}))
			cfg := linux(t)
			if c.config != nil {
				c.config(&cfg)
			}
			m := newMachine(t, f, cfg)
			must(t, m.Start())
			must(t, m.Pause())
			if c.host != nil {
				change(t, dir, c.host)
			}
			path := filepath.Join(t.TempDir(), "saved")
			if c.path != nil {
				path = c.path(t)
			}
			before, _ := os.ReadFile(path)
			err := m.Save(path)
			if code(err) != c.want || c.want != 0 && !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, want code %d and %q", err, c.want, c.text)
			}
			if after, _ := os.ReadFile(path); len(before) > 0 && string(after) != string(before) {
				t.Error("a file was overwritten")
			}
			wantState(t, m, framework.StatePaused)
			must(t, m.Resume())
			if err != nil {
				// Whatever it left is no machine.
				must(t, m.Stop())
				change(t, dir, func(h *simulator.Host) { h.ScreenLocked, h.GUISession, h.SavesEntropy = false, true, true })
				must(t, m.Close())
				if err := newMachine(t, f, cfg).Restore(path); code(err) != framework.CodeRestore {
					t.Errorf("restore of what a failed save left: %v, want code 12", err)
				}
			}
		})
	}
}

// TestUnsupportedOS: neither call exists before macOS 14.
func TestUnsupportedOS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	cfg := linux(t)
	saved := savedMachine(t, f, cfg)
	change(t, dir, func(h *simulator.Host) { h.OSVersion = "13.6" })
	m := newMachine(t, f, cfg)
	if err := m.Restore(saved); !errors.Is(err, framework.ErrUnsupportedOS) {
		t.Errorf("restore: %v, want ErrUnsupportedOS", err)
	}
	must(t, m.Start())
	must(t, m.Pause())
	if err := m.Save(saved + "2"); !errors.Is(err, framework.ErrUnsupportedOS) {
		t.Errorf("save: %v, want ErrUnsupportedOS", err)
	}
}

// TestEntropySupport: the question has the answer that Save would give.
func TestEntropySupport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	cfg := linux(t)
	must(t, newMachine(t, f, cfg).SaveRestoreSupport())
	cfg = linux(t)
	cfg.Entropy = true
	m := newMachine(t, f, cfg)
	if err := m.SaveRestoreSupport(); code(err) != framework.CodeInvalidVirtualMachineConfiguration {
		t.Errorf("support: %v, want code 2", err)
	}
	change(t, dir, func(h *simulator.Host) { h.SavesEntropy = true })
	must(t, m.SaveRestoreSupport())
}

// TestRestoredMemory: each file restores its own machine, with the nonce of its boot,
// and a boot has another.
func TestRestoredMemory(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	cfg := linux(t)
	m := newMachine(t, f, cfg)
	must(t, m.Start())
	booted := dial(t, m)
	dir := t.TempDir()
	for _, memory := range []string{"one", "two"} {
		booted.ask("memory " + memory)
		must(t, m.Pause())
		must(t, m.Save(filepath.Join(dir, memory)))
		must(t, m.Resume())
	}
	// It goes on with the connection that it was saved with.
	if got := booted.ask("still there"); got != "still there" {
		t.Errorf("answer is %q", got)
	}
	must(t, m.Close())
	for _, memory := range []string{"one", "two", "one"} {
		r := newMachine(t, f, cfg)
		must(t, r.Restore(filepath.Join(dir, memory)))
		must(t, r.Resume())
		if s := dial(t, r); s.memory != memory || s.nonce != booted.nonce {
			t.Errorf("restored %q with nonce %s, want %q with %s", s.memory, s.nonce, memory, booted.nonce)
		}
		must(t, r.Close())
	}
	b := newMachine(t, f, cfg)
	must(t, b.Start())
	if s := dial(t, b); s.memory != "" || s.nonce == booted.nonce {
		t.Errorf("booted with %q and nonce %s: that is a restored machine", s.memory, s.nonce)
	}
}

// TestTwoRestoresAtOnce: of two restores of one state at the same time, one works
// (wraithbox X02). States of different machines are restored side by side.
func TestTwoRestoresAtOnce(t *testing.T) {
	t.Parallel()
	for _, same := range []bool{true, false} {
		f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
		one, two := linux(t), linux(t)
		if same {
			two.MachineIdentifier = one.MachineIdentifier
		}
		var errs [2]error
		var wg sync.WaitGroup
		machines := [2]framework.Machine{}
		saved := [2]string{savedMachine(t, f, one), savedMachine(t, f, two)}
		machines[0], machines[1] = newMachine(t, f, one), newMachine(t, f, two)
		for i := range errs {
			wg.Go(func() { errs[i] = machines[i].Restore(saved[i]) })
		}
		wg.Wait()
		failed := 0
		for _, err := range errs {
			if err != nil {
				failed++
				if code(err) != framework.CodeRestore {
					t.Error(err)
				}
			}
		}
		if want := map[bool]int{true: 1, false: 0}[same]; failed != want {
			t.Errorf("identifier shared %v: %d failed, want %d: %v", same, failed, want, errs)
		}
	}
}

// TestStartsBesideTwin: machines that share an identifier may be started side by side
// (wraithbox X02), and beside a restored one (unproven on hardware).
func TestStartsBesideTwin(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	cfg := linux(t)
	saved := savedMachine(t, f, cfg)
	must(t, newMachine(t, f, cfg).Restore(saved))
	twin(t, f, &cfg, framework.Machine.Start)
	twin(t, f, &cfg, framework.Machine.Start)
}
