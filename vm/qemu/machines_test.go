// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package qemu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/vmtest"
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

func TestConformance(t *testing.T) {
	k := vmtest.TestKit(t, guestKit(t, "amd64"))
	vmtest.Run(t, harness(k, 8))
}

// harness is for emulated machines: the suite's result must not depend on whether
// the host has hardware virtualization.
func harness(k vm.Kit, clones int) vmtest.Harness {
	return vmtest.Harness{
		Open: func(t *testing.T, stateDir string) vm.Driver {
			d, err := qemu.Open(t.Context(), qemu.Options{StateDir: stateDir, Arch: k.Arch, Accelerator: "tcg"})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Kit:   k,
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Kill: func(t *testing.T, stateDir, id string) {
			pids := processesUnder(t, filepath.Join(stateDir, "machines", id))
			if len(pids) != 1 {
				t.Fatalf("machine %q has processes %v, want one", id, pids)
			}
			if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
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
		Leftovers: func(t *testing.T, stateDir string) []string {
			var left []string
			for _, pid := range processesUnder(t, filepath.Join(stateDir, "machines")) {
				left = append(left, fmt.Sprintf("process %d", pid))
			}
			entries, err := os.ReadDir(filepath.Join(stateDir, "machines"))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				left = append(left, e.Name())
			}
			return left
		},
		Checked: []string{"qemu.json", "state"},
		// Emulation on a shared host: a boot takes 4 to 15 seconds alone.
		BootTimeout: 3 * time.Minute,
		Timeout:     time.Minute,
		Clones:      clones,
	}
}

// processesUnder lists live processes whose working directory is dir or below it.
func processesUnder(t *testing.T, dir string) []int {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if err == nil && (cwd == dir || strings.HasPrefix(cwd, dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// halted waits until every thread of a process has stopped: SIGSTOP is sent, not done, when kill
// returns.
func halted(t *testing.T, pid int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		stats, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat"))
		if err != nil {
			t.Fatal(err)
		}
		running := len(stats) == 0
		for _, path := range stats {
			stat, err := os.ReadFile(path)
			_, state, _ := strings.Cut(string(stat), ") ")
			running = running || err == nil && !strings.HasPrefix(state, "T")
		}
		if !running {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
}
