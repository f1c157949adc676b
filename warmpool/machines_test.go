// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package warmpool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// realNode is a supply over QEMU.
type realNode struct {
	driver vm.Driver
	store  *snapshot.Store
	supply *warmpool.Supply
}

func startRealNode(t *testing.T, state string, k vm.Kit) *realNode {
	t.Helper()
	driver, err := qemu.Open(t.Context(), qemu.Options{StateDir: state, Arch: "amd64", Accelerator: "tcg", Kit: k})
	if err != nil {
		t.Fatal(err)
	}
	store, err := snapshot.Open(t.Context(), filepath.Join(state, "snapshots"), snapshot.Options{Driver: driver, MinFreeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	supply, err := warmpool.New(warmpool.Options{
		Driver: driver, Store: warmpool.FromStore(store, warmpool.StoreOptions{}), Kit: k, Capacity: warmpool.Budget{MilliCPU: 8000, MemoryBytes: 2 << 30},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &realNode{driver: driver, store: store, supply: supply}
}

func (n *realNode) stop(t *testing.T) {
	t.Helper()
	if err := errors.Join(n.supply.Shutdown(context.Background()), n.store.Close(), n.driver.Close()); err != nil {
		t.Errorf("stop node: %v", err)
	}
}

// TestRealMachines acquires machines, restarts the node while they run, adopts one,
// reaps the other, and lets the guest end itself within its grace.
func TestRealMachines(t *testing.T) {
	dir := os.Getenv("FIRKIN_KIT_DIR")
	if dir == "" {
		dir = filepath.Join("..", "bin", "guest")
	}
	k, err := kit.Load(filepath.Join(dir, "amd64"))
	if err != nil {
		t.Fatalf("%v (make guest builds it)", err)
	}
	state := t.TempDir()
	n := startRealNode(t, state, k)
	t.Cleanup(func() {
		for _, id := range []string{"kept", "orphan", "again"} { // what a failure left
			if err := n.supply.Discard(context.Background(), id); err != nil && warmpool.ReasonOf(err) != warmpool.ReasonExists {
				t.Errorf("discard %s: %v", id, err)
			}
		}
		n.stop(t)
	})
	request := func(id string) warmpool.Request {
		return warmpool.Request{MachineID: id, Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}}
	}
	for i, id := range []string{"kept", "orphan"} {
		l, err := n.supply.Acquire(t.Context(), request(id))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s by %s: %+v", id, l.Path(), l.Timings())
		if want := []warmpool.Path{warmpool.PathBuild, warmpool.PathRestore}[i]; l.Path() != want {
			t.Errorf("%s came by %s, want %s", id, l.Path(), want)
		}
	}
	n.stop(t)

	n = startRealNode(t, state, k)
	kept, err := n.supply.Adopt(t.Context(), request("kept"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := kept.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Ping(t.Context()); err != nil {
		t.Errorf("ping an adopted machine: %v", err)
	}
	// It runs, and nothing says whose it is: it is kept until somebody says that it may go.
	findings, err := n.supply.Reconcile(t.Context(), warmpool.Survey{Prefixes: []string{"orphan"}})
	if err != nil || len(findings) != 1 || findings[0].Machine != "orphan" || findings[0].Verdict != warmpool.VerdictQuarantine {
		t.Errorf("found %+v, %v", findings, err)
	}
	if err := n.supply.Discard(t.Context(), "orphan"); err != nil {
		t.Errorf("discard: %v", err)
	}
	start := time.Now()
	exited := make(chan vm.Exit, 1)
	go func() {
		if e, err := kept.Machine().Wait(t.Context()); err == nil {
			exited <- e
		}
		close(exited)
	}()
	if err := kept.Release(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("released in %s", time.Since(start).Round(time.Millisecond))
	if e, ok := <-exited; ok && e.Reason != vm.ExitGuest {
		t.Errorf("the guest was asked to power off and had a minute, but was ended: %+v", e)
	}
	ids, err := n.driver.List(t.Context())
	if a := n.supply.Ledger(); err != nil || len(ids) != 0 || len(a.Machines) != 0 {
		t.Errorf("left: %v %+v, %v", ids, a, err)
	}
	again, err := n.supply.Acquire(t.Context(), request("again"))
	if err != nil || again.Path() != warmpool.PathRestore {
		t.Fatalf("after a restart: %v", err)
	}
	t.Logf("again by %s: %+v", again.Path(), again.Timings())
	if err := again.Release(t.Context(), 0); err != nil {
		t.Error(err)
	}
}
