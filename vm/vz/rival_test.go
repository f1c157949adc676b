// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// Where the framework refuses to restore a machine beside another one with its
// identifier, the snapshot is not blamed for it, whoever knows of the other one; once
// that has gone the snapshot is restored, and blamed for what is its fault.
func TestRestoreBesideRival(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.change(t, func(h *simulator.Host) { h.RestoresIdentifierInUse = false })
	dir := b.snapshot(t, b.config, "memory")
	ctx := bounded(t)
	refused := func(when string, want error) {
		t.Helper()
		_, err := b.driver.Restore(ctx, "second", dir, b.config)
		if !errors.Is(err, want) || errors.Is(want, vm.ErrHostNotReady) && errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("%s: %v, want %v", when, err, want)
		}
	}
	rival, err := b.driver.Restore(ctx, "rival", dir, b.config)
	if err != nil {
		t.Fatal(err)
	}
	refused("beside a paused one", vm.ErrHostNotReady)
	if err := rival.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	refused("beside a running one", vm.ErrHostNotReady)
	b.open(t)
	refused("beside one that a driver before has made", vm.ErrHostNotReady)
	if rival, err = b.driver.Load(ctx, "rival"); err != nil {
		t.Fatal(err)
	}
	// What is known without the framework is the snapshot's fault, rival or not.
	other := b.config
	other.Kit.Cmdline += " more"
	if _, err := b.driver.Restore(ctx, "second", dir, other); !errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("with another command line: %v, want ErrSnapshotInvalid", err)
	}
	if err := rival.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	// It has exited, and its directory is still there.
	b.wantRestorable(t, dir, b.config, "memory")
	flip(t, filepath.Join(dir, layout.StateFile))
	refused("beside an exited one, and damaged", vm.ErrSnapshotInvalid)
	b.open(t)
	refused("beside one that exited under a driver before, and damaged", vm.ErrSnapshotInvalid)
	// A machine of another snapshot is none.
	if _, err := b.driver.Create(ctx, "stranger", b.config); err != nil {
		t.Fatal(err)
	}
	refused("beside a stranger, and damaged", vm.ErrSnapshotInvalid)
	b.sweep(t)
}

// Why a shim has died is told by the one who asked for its machine.
func TestShimsLastWords(t *testing.T) {
	t.Parallel()
	d, err := vz.Open(t.Context(), vz.Options{
		StateDir: t.TempDir(), Arch: "arm64",
		Shim: []string{"/bin/sh", "-c", "echo the entitlement is missing >&2; exit 3"},
		Host: func() (framework.Host, error) { return framework.Host{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, err = d.Create(bounded(t), "a", linuxConfig(t))
	if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "the entitlement is missing") {
		t.Errorf("error is %v, want ErrUnavailable with the shim's last words", err)
	}
	if ids, err := d.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("left are %q, %v", ids, err)
	}
}

// The longest grace there is does not become none.
func TestStopWithLongestGrace(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := bounded(t)
	m, err := b.driver.Create(ctx, "a", b.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(ctx, math.MaxInt64); err != nil {
		t.Errorf("stop: %v", err)
	}
	if exit, err := m.Wait(ctx); err != nil || exit.Reason != vm.ExitStopped || !strings.Contains(exit.Detail, "when asked") {
		t.Errorf("exit is %+v, %v, want that the guest powered off", exit, err)
	}
	b.sweep(t)
}
