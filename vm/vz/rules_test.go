// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// TestRestoreRefused breaks each rule of restoring, looks at what becomes of the
// restore, mends what was broken, and restores: what is not the snapshot's fault must not
// cost the snapshot. The rules and their sources are the simulator's.
func TestRestoreRefused(t *testing.T) {
	const memory = "what was saved"
	for name, c := range map[string]struct {
		broken, mended func(*simulator.Host)
		files          func(t *testing.T, dir string)
		reopen         bool
		want           error
		says           string
	}{
		"the screen is locked": {
			broken: func(h *simulator.Host) { h.ScreenLocked = true }, mended: func(h *simulator.Host) { h.ScreenLocked = false },
			want: vm.ErrHostNotReady, says: "screen is locked",
		},
		"nobody is logged in": {
			broken: func(h *simulator.Host) { h.GUISession = false }, mended: func(h *simulator.Host) { h.GUISession = true },
			want: vm.ErrHostNotReady, says: "graphical session",
		},
		"a failure of the framework": {
			broken: func(h *simulator.Host) {
				h.Faults = []simulator.Fault{{Call: simulator.CallRestore, Kind: simulator.FaultFail, Code: framework.CodeInternal}}
			},
			mended: func(h *simulator.Host) { h.Faults = nil }, want: vm.ErrUnavailable, says: "doctor",
		},
		"macOS was upgraded under the node": {
			broken: func(h *simulator.Host) { h.OSBuild = "25A1" }, mended: func(h *simulator.Host) { h.OSBuild = "24F74" },
			want: vm.ErrSnapshotInvalid,
		},
		"macOS was upgraded": {
			broken: func(h *simulator.Host) { h.OSBuild = "25A1" }, mended: func(h *simulator.Host) { h.OSBuild = "24F74" }, reopen: true,
			want: vm.ErrSnapshotInvalid, says: "another build",
		},
		"another user": {
			broken: func(h *simulator.Host) { h.User = "502" }, mended: func(h *simulator.Host) { h.User = "501" },
			want: vm.ErrSnapshotInvalid,
		},
		"another host": {
			broken: func(h *simulator.Host) { h.ID += "2" }, mended: func(h *simulator.Host) { h.ID = strings.TrimSuffix(h.ID, "2") }, reopen: true,
			want: vm.ErrSnapshotInvalid, says: "another host",
		},
		"the saved file is missing": {
			files: func(t *testing.T, dir string) {
				if err := os.Rename(filepath.Join(dir, layout.StateFile), filepath.Join(dir, "gone")); err != nil {
					t.Fatal(err)
				}
			},
			want: vm.ErrSnapshotInvalid, says: layout.StateFile,
		},
		"the saved file is damaged": {
			files: func(t *testing.T, dir string) { flip(t, filepath.Join(dir, layout.StateFile)) },
			want:  vm.ErrSnapshotInvalid,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			dir := b.snapshot(t, b.config, memory)
			if c.broken != nil {
				b.change(t, c.broken)
			}
			if c.files != nil {
				c.files(t, dir)
			}
			if c.reopen {
				b.open(t)
			}
			_, err := b.driver.Restore(bounded(t), "refused", dir, b.config)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v, want %v that says %q", err, c.want, c.says)
			}
			if !errors.Is(c.want, vm.ErrSnapshotInvalid) && errors.Is(err, vm.ErrSnapshotInvalid) {
				t.Errorf("the snapshot is blamed: %v", err)
			}
			if left := remnants(t, b.stateDir); len(left) > 0 {
				t.Errorf("the refused restore left %q", left)
			}
			if c.mended != nil {
				b.change(t, c.mended)
				if c.reopen {
					b.open(t)
				}
				b.wantRestorable(t, dir, b.config, memory)
			}
		})
	}
}

// flip changes one bit in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFreshIsNotRestored: what comes back has the boot nonce of the saved machine, and
// two machines that were booted have not.
func TestFreshIsNotRestored(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := bounded(t)
	nonces := map[string]bool{}
	for _, id := range []string{"first", "second"} {
		m, err := b.driver.Create(ctx, id, b.config)
		if err != nil {
			t.Fatal(err)
		}
		greeting, err := talk(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		nonces[strings.Fields(greeting)[1]] = true
	}
	dir := b.snapshot(t, b.config, "x")
	for _, id := range []string{"third", "fourth"} {
		m, err := b.driver.Restore(ctx, id, dir, b.config)
		if err != nil {
			t.Fatal(err)
		}
		if state, err := m.State(ctx); err != nil || state != vm.StatePaused {
			t.Errorf("restored, it is %q, %v, want paused", state, err)
		}
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		greeting, err := talk(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		nonces[strings.Fields(greeting)[1]] = true
	}
	if len(nonces) != 3 {
		t.Errorf("two booted and two restored machines have boot nonces %v, want three", nonces)
	}
	b.sweep(t)
}

// TestSaveRefused: a save that fails leaves the machine as it was, and nothing that could
// be restored.
func TestSaveRefused(t *testing.T) {
	for name, c := range map[string]struct {
		broken, mended func(*simulator.Host)
		want           error
	}{
		"the disk is full": {
			func(h *simulator.Host) { h.FreeBytes = new(int64) }, func(h *simulator.Host) { h.FreeBytes = nil }, vm.ErrNoSpace,
		},
		"the framework fails": {
			func(h *simulator.Host) {
				h.Faults = []simulator.Fault{{Call: simulator.CallSave, Kind: simulator.FaultFail, Code: framework.CodeSave}}
			}, func(h *simulator.Host) { h.Faults = nil }, vm.ErrUnavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ctx := bounded(t)
			cfg := b.config
			cfg.Saveable = true
			m, err := b.driver.Create(ctx, "saved", cfg)
			if err != nil {
				t.Fatal(err)
			}
			running := t.TempDir()
			if _, err := m.(vm.Saver).Save(ctx, running); !errors.Is(err, vm.ErrInvalidState) {
				t.Errorf("save of a running machine: %v, want %v", err, vm.ErrInvalidState)
			}
			if _, err := talk(ctx, m, "memory kept"); err != nil {
				t.Fatal(err)
			}
			if err := m.(vm.Pauser).Pause(ctx); err != nil {
				t.Fatal(err)
			}
			b.change(t, c.broken)
			failed := t.TempDir()
			if _, err := m.(vm.Saver).Save(ctx, failed); !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			b.change(t, c.mended)
			if _, err := b.driver.Restore(ctx, "half", failed, b.config); !errors.Is(err, vm.ErrSnapshotInvalid) {
				t.Errorf("restore of what a failed save left: %v, want %v", err, vm.ErrSnapshotInvalid)
			}
			if state, err := m.State(ctx); err != nil || state != vm.StatePaused {
				t.Errorf("after the failed save it is %q, %v, want paused", state, err)
			}
			whole := filepath.Join(t.TempDir(), "whole")
			if err := os.Mkdir(whole, 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := m.(vm.Saver).Save(ctx, whole); err != nil {
				t.Errorf("the next save: %v", err)
			}
			if err := m.Resume(ctx); err != nil {
				t.Errorf("resume: %v", err)
			}
			if _, err := talk(ctx, m, "memory later"); err != nil {
				t.Errorf("it does not go on: %v", err)
			}
			b.wantRestorable(t, whole, b.config, "kept")
			b.sweep(t)
		})
	}
}

// TestOldMacOS: without saving and restoring nothing is promised, and machines still
// boot.
func TestOldMacOS(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.change(t, func(h *simulator.Host) { h.OSVersion, h.OSBuild = "13.7", "22H123" })
	b.open(t)
	if b.driver.Features().Snapshots {
		t.Error("snapshots are promised on macOS 13")
	}
	ctx := bounded(t)
	cfg := b.config
	cfg.Saveable = true
	if _, err := b.driver.Create(ctx, "saveable", cfg); !errors.Is(err, vm.ErrNotSupported) {
		t.Errorf("create saveable: %v, want %v", err, vm.ErrNotSupported)
	}
	if _, err := b.driver.Restore(ctx, "restored", t.TempDir(), b.config); !errors.Is(err, vm.ErrNotSupported) {
		t.Errorf("restore: %v, want %v", err, vm.ErrNotSupported)
	}
	if _, err := b.driver.Create(ctx, "plain", b.config); err != nil {
		t.Errorf("create: %v", err)
	}
	b.sweep(t)
}

// TestMacOSGuests: two run, a third does not until one of them has ended, and not even
// then while the host counts one that has.
func TestMacOSGuests(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := bounded(t)
	create := func(id string) (vm.Machine, error) { return b.driver.Create(ctx, id, macConfig(t)) }
	first, err := create("first")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := create("second"); err != nil {
		t.Fatal(err)
	}
	if _, err := create("third"); !errors.Is(err, vm.ErrLimitExceeded) {
		t.Errorf("the third: %v, want %v", err, vm.ErrLimitExceeded)
	}
	if _, err := b.driver.Create(ctx, "linux", b.config); err != nil {
		t.Errorf("a Linux guest beside them: %v", err)
	}
	if err := first.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	b.change(t, func(h *simulator.Host) { h.LeaksSlots = true })
	third, err := create("third")
	if err != nil {
		t.Fatalf("after one has ended: %v", err)
	}
	if err := third.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := create("fourth"); !errors.Is(err, vm.ErrLimitExceeded) {
		t.Errorf("while its slot leaks: %v, want %v", err, vm.ErrLimitExceeded)
	}
	if err := simulator.Reboot(b.HostDir); err != nil {
		t.Fatal(err)
	}
	if _, err := create("fourth"); err != nil {
		t.Errorf("after the host was restarted: %v", err)
	}
	b.sweep(t)
}

// TestMacOSSnapshot: disk, auxiliary storage and memory of a macOS guest are one set, and
// every machine has clones of its own.
func TestMacOSSnapshot(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := macConfig(t)
	dir := b.snapshot(t, cfg, "macOS memory")
	for _, name := range []string{layout.DiskFile, layout.AuxiliaryFile, layout.StateFile, layout.SnapshotFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("not in the snapshot: %v", err)
		}
	}
	b.wantRestorable(t, dir, cfg, "macOS memory")
	other := macConfig(t)
	other.MacOS.Digest = "sha256:another"
	if _, err := b.driver.Restore(bounded(t), "other", dir, other); !errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("restore as another installation: %v, want %v", err, vm.ErrSnapshotInvalid)
	}
	b.sweep(t)
}

// TestEnds: how a guest ends by itself is told.
func TestEnds(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, c := range []struct {
		id, word string
		want     vm.ExitReason
	}{{"off", "off", vm.ExitGuest}, {"fails", "fail for a reason", vm.ExitCrashed}} {
		ctx := bounded(t)
		m, err := b.driver.Create(ctx, c.id, b.config)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := m.DialGuest(ctx, vm.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := converse(conn, "hello", c.word); err == nil {
			t.Errorf("%s: the guest answers after its end", c.id)
		}
		exit, err := m.Wait(ctx)
		if err != nil || exit.Reason != c.want {
			t.Errorf("%s: exit is %+v, %v, want %s", c.id, exit, err, c.want)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: the stream is open after the machine's end: %v", c.id, err)
		}
		_ = conn.Close()
	}
	b.sweep(t)
}
