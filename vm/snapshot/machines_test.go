// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package snapshot_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// TestRealMachines builds a base snapshot with a real guest, restores machines from
// it, and rebuilds it after a bit of its memory was flipped.
func TestRealMachines(t *testing.T) {
	dir := os.Getenv("FIRKIN_KIT_DIR")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin", "guest")
	}
	k, err := kit.Load(filepath.Join(dir, "amd64"))
	if err != nil {
		t.Fatalf("%v (make guest builds it)", err)
	}
	state := t.TempDir()
	driver, err := qemu.Open(t.Context(), qemu.Options{StateDir: state, Arch: "amd64", Accelerator: "tcg", Kit: k})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		ids, err := driver.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			if m, err := driver.Load(ctx, id); err == nil {
				if err := m.Delete(ctx); err != nil {
					t.Error(err)
				}
			}
		}
		_ = driver.Close()
	})
	spec := snapshot.Spec{Kind: snapshot.KindBase, Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, Kit: k}
	cfg := vm.Config{Shape: spec.Shape, Kit: k}
	open := func() *snapshot.Store {
		s, err := snapshot.Open(t.Context(), filepath.Join(state, "snapshots"), snapshot.Options{
			Driver: driver, MinFreeBytes: 1 << 30,
			Network: &agentv1.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	store := open()
	start := time.Now()
	ref, built, err := store.Ensure(t.Context(), spec)
	if err != nil || !built {
		t.Fatalf("build: %v, built %v", err, built)
	}
	t.Logf("built in %s, %d MiB on disk", time.Since(start).Round(time.Millisecond), allocated(t, store)>>20)

	var infos []*agentv1.InfoResponse
	for _, id := range []string{"one", "two"} {
		r, err := store.Restore(t.Context(), ref, id, cfg, snapshot.RestoreOptions{Hostname: "host-" + id})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Guest.Close()
		t.Logf("restored %s: driver %s, agent %s", id, r.Timings.Restore.Round(time.Millisecond), r.Timings.Agent.Round(time.Millisecond))
		info, err := r.Guest.Agent.Info(t.Context(), connect.NewRequest(&agentv1.InfoRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		if info.Msg.GetHostname() != "host-"+id || !info.Msg.GetSealed() {
			t.Errorf("%s: %v", id, info.Msg)
		}
		if off := time.Since(time.Unix(0, info.Msg.GetTimeUnixNano())).Abs(); off > 10*time.Second {
			t.Errorf("%s: its clock is off by %s", id, off)
		}
		infos = append(infos, info.Msg)
	}
	if infos[0].GetMachineId() == infos[1].GetMachineId() || bytes.Equal(infos[0].GetRandom(), infos[1].GetRandom()) {
		t.Errorf("two machines share identity or entropy: %v %v", infos[0], infos[1])
	}
	ref.Release()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}

	flip(t, filepath.Join(state, "snapshots", ref.Key(), "machine", "memory"))
	store = open()
	defer store.Close()
	start = time.Now()
	ref, built, err = store.Ensure(t.Context(), spec)
	if err != nil || !built {
		t.Fatalf("after a bit was flipped: %v, built again %v", err, built)
	}
	defer ref.Release()
	t.Logf("quarantined and built again in %s", time.Since(start).Round(time.Millisecond))
	r, err := store.Restore(t.Context(), ref, "three", cfg, snapshot.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Guest.Close()
	if err := r.Guest.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	all, err := store.List(t.Context())
	if err != nil || len(all) != 2 || all[1].Status != snapshot.StatusQuarantined || len(all[1].Machines) != 2 || len(all[0].Machines) != 1 {
		t.Errorf("list %+v, %v", all, err)
	}
}

func allocated(t *testing.T, s *snapshot.Store) int64 {
	t.Helper()
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != 1 {
		t.Fatalf("list %+v, %v", infos, err)
	}
	return infos[0].AllocatedBytes
}

// flip changes one bit in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}
