// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package vz_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/vm/vmtest"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// guestKit is the kit that make guest has built.
func guestKit(t *testing.T, arch string) vm.Kit {
	t.Helper()
	dir := os.Getenv("FIRKIN_KIT_DIR")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin", "guest")
	}
	k, err := kit.Load(filepath.Join(dir, arch))
	if err != nil {
		t.Fatalf("%v (make guest builds it)", err)
	}
	return k
}

// TestConformance runs the suite with the arm64 guest kit, which is what Macs get, over
// the simulator.
func TestConformance(t *testing.T) {
	vmtest.Run(t, harness(t, vmtest.TestKit(t, guestKit(t, "arm64")), 4))
}

func harness(t *testing.T, k vm.Kit, clones int) vmtest.Harness {
	s := simulation{HostDir: t.TempDir(), Arch: k.Arch}
	if err := simulator.ChangeHost(s.HostDir, func(h *simulator.Host) {
		// Clones of one snapshot have its machine identifier. Others run several Linux guests
		// so (hypeman forks them); whether every macOS lets them is unproven on hardware.
		h.RestoresIdentifierInUse = true
	}); err != nil {
		t.Fatal(err)
	}
	return vmtest.Harness{
		Open: func(t *testing.T, stateDir string) vm.Driver {
			d, err := s.driver(t.Context(), stateDir)
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Kit:   k,
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		// The death of the shim is that of the machine.
		Kill: func(t *testing.T, stateDir, id string) {
			for _, pid := range processesUnder(t, filepath.Join(stateDir, "machines", id)) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		},
		// The shim alone: on a Mac the guest goes on in a process of the framework's.
		Stall: func(t *testing.T, stateDir, id string) func() {
			var stopped []*process.Process
			for _, pid := range processesUnder(t, filepath.Join(stateDir, "machines", id)) {
				p, err := process.Open(pid)
				if err != nil {
					t.Fatal(err)
				}
				stopped = append(stopped, p)
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				halted(t, pid)
			}
			return func() {
				for _, p := range stopped { // one that has ended meanwhile is not found
					if found, err := process.Find(p.Identity()); err == nil {
						_ = syscall.Kill(p.Identity().PID, syscall.SIGCONT)
						found.Close()
					}
					p.Close()
				}
				stopped = nil
			}
		},
		Leftovers: remnants,
		Checked:   []string{layout.SnapshotFile, layout.StateFile},
		// Emulation of another architecture on a shared host.
		BootTimeout: 5 * time.Minute,
		Timeout:     2 * time.Minute,
		Clones:      clones,
	}
}
