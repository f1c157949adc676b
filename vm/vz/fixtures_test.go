// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// bench is a simulated Mac with a driver on it, whose guests are states and a few bytes
// of memory.
type bench struct {
	simulation
	stateDir string
	driver   *vz.Driver
	config   vm.Config
}

// patience bounds what is not expected to stall.
const patience = time.Minute

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{simulation: simulation{HostDir: t.TempDir()}, stateDir: t.TempDir()}
	b.change(t, func(h *simulator.Host) { h.RestoresIdentifierInUse = true })
	b.config = linuxConfig(t)
	b.open(t)
	t.Cleanup(func() {
		_ = b.driver.Close()
		for _, pid := range processesUnder(t, filepath.Join(b.stateDir, "machines")) {
			t.Errorf("process %d is left", pid)
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	})
	return b
}

// open opens the driver, again if it was open.
func (b *bench) open(t *testing.T) {
	t.Helper()
	if b.driver != nil {
		if err := b.driver.Close(); err != nil {
			t.Fatal(err)
		}
	}
	d, err := b.simulation.driver(t.Context(), b.stateDir)
	if err != nil {
		t.Fatal(err)
	}
	b.driver = d
}

func (b *bench) change(t *testing.T, f func(*simulator.Host)) {
	t.Helper()
	if err := simulator.ChangeHost(b.HostDir, f); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) host(t *testing.T) simulator.Host {
	t.Helper()
	h, err := simulator.ReadHost(b.HostDir)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// linuxConfig is a machine whose files have the right sizes and no content.
func linuxConfig(t *testing.T) vm.Config {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, size int64) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if size > 0 {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	return vm.Config{
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Kit: vm.Kit{
			Arch: "arm64", Digest: "sha256:kit", Cmdline: "quiet",
			Kernel: file("kernel", 0), Initramfs: file("initramfs", 0), Scratch: file("scratch", 16<<30),
		},
	}
}

// macConfig is a machine with a macOS guest.
func macConfig(t *testing.T) vm.Config {
	t.Helper()
	dir := t.TempDir()
	m := &vm.MacOS{
		Digest: "sha256:macos", Disk: filepath.Join(dir, "disk"), AuxiliaryStorage: filepath.Join(dir, "aux"),
		HardwareModel: simulator.HardwareModel("mac"), MachineIdentifier: simulator.Identifier(),
	}
	for _, path := range []string{m.Disk, m.AuxiliaryStorage} {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return vm.Config{Shape: vm.Shape{VCPUs: 2, MemoryBytes: 4 << 30}, GuestOS: vm.GuestMacOS, MacOS: m}
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// talk dials the guest, says words to it, and returns its greeting, which tells boot
// nonce and memory.
func talk(ctx context.Context, m vm.Machine, words ...string) (greeting string, err error) {
	conn, err := m.DialGuest(ctx, vm.AgentPort)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return converse(conn, words...)
}

func converse(conn net.Conn, words ...string) (greeting string, err error) {
	in := bufio.NewReader(conn)
	if greeting, err = in.ReadString('\n'); err != nil {
		return "", err
	}
	for _, w := range words {
		if _, err := fmt.Fprintln(conn, w); err != nil {
			return greeting, err
		}
		if _, err := in.ReadString('\n'); err != nil {
			return greeting, err
		}
	}
	return greeting, nil
}

// snapshot makes a machine, gives it memory, saves it and deletes it.
func (b *bench) snapshot(t *testing.T, cfg vm.Config, memory string) (dir string) {
	t.Helper()
	cfg.Saveable = true
	ctx := bounded(t)
	m, err := b.driver.Create(ctx, "source", cfg)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	if _, err := talk(ctx, m, "memory "+memory); err != nil {
		t.Fatalf("talk: %v", err)
	}
	if err := m.(vm.Pauser).Pause(ctx); err != nil {
		t.Fatalf("pause: %v", err)
	}
	dir = filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := m.(vm.Saver).Save(ctx, dir); err != nil {
		t.Fatalf("save: %v", err)
	}
	if err := m.Delete(ctx); err != nil {
		t.Fatalf("delete: %v", err)
	}
	return dir
}

// wantRestorable restores a snapshot and looks at its memory: it is the saved machine and
// nothing else.
func (b *bench) wantRestorable(t *testing.T, dir string, cfg vm.Config, memory string) {
	t.Helper()
	ctx := bounded(t)
	m, err := b.driver.Restore(ctx, "restorable", dir, cfg)
	if err != nil {
		t.Errorf("the snapshot is of no use any more: %v", err)
		return
	}
	if err := m.Resume(ctx); err != nil {
		t.Errorf("resume: %v", err)
	}
	greeting, err := talk(ctx, m)
	if want := fmt.Sprintf(" memory %q\n", memory); err != nil || len(greeting) < len(want) || greeting[len(greeting)-len(want):] != want {
		t.Errorf("the restored guest greets with %q, %v, want memory %q", greeting, err, memory)
	}
	if err := m.Delete(ctx); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// sweep deletes every machine there is, and checks that nothing stays.
func (b *bench) sweep(t *testing.T) {
	t.Helper()
	ctx := bounded(t)
	ids, err := b.driver.List(ctx)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	for _, id := range ids {
		m, err := b.driver.Load(ctx, id)
		if err != nil {
			t.Errorf("load %q: %v", id, err)
			continue
		}
		if err := m.Delete(ctx); err != nil {
			t.Errorf("delete %q: %v", id, err)
		}
	}
	if left := remnants(t, b.stateDir); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}
