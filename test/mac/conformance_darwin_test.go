// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && arm64

package mac

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/vmtest"
	"github.com/vk-firkin/vk-firkin/vm/vz"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
	host "github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

// hostTimeout is for the questions to macOS.
const hostTimeout = 30 * time.Second

// TestHost is first: what it finds is in the log of every run, and what it does not find
// makes the rest pointless.
func TestHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), hostTimeout)
	defer cancel()
	h, err := host.Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("host: %+v", h)
	if !h.SaveRestore {
		t.Errorf("this Mac cannot save machines: %+v", h)
	}
	if h.ScreenLocked {
		t.Error("the screen is locked: restores fail")
	}
	t.Logf("facts: %+v", host.This().Facts(ctx, filepath.Join(required(t, "FIRKIN_BIN_DIR"), "vk-firkin"), t.TempDir()))
}

// TestVZ has a short name, for the names of sockets below its directory.
func TestVZ(t *testing.T) {
	k, err := kit.Load(filepath.Join(required(t, "FIRKIN_KIT_DIR"), "arm64"))
	if err != nil {
		t.Fatalf("%v (make guest builds it, on Debian; copy it from there)", err)
	}
	k = vmtest.TestKit(t, k)
	program := filepath.Join(required(t, "FIRKIN_BIN_DIR"), "vk-firkin")
	this := host.This()
	vmtest.Run(t, vmtest.Harness{
		Open: func(t *testing.T, stateDir string) vm.Driver {
			d, err := vz.Open(t.Context(), vz.Options{
				StateDir: stateDir, Shim: []string{program, "machine-shim"}, Arch: "arm64",
				Host: func() (framework.Host, error) {
					ctx, cancel := context.WithTimeout(context.Background(), hostTimeout)
					defer cancel()
					return this.Host(ctx)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Kit:   k,
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		// The death of the shim is that of the machine.
		Kill: func(t *testing.T, stateDir, id string) {
			for _, pid := range shims(t, filepath.Join(stateDir, "machines", id)) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		},
		Leftovers: func(t *testing.T, stateDir string) []string {
			var left []string
			machines := filepath.Join(stateDir, "machines")
			for _, pid := range shims(t, machines) {
				left = append(left, fmt.Sprintf("process %d", pid))
			}
			entries, err := os.ReadDir(machines)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				left = append(left, e.Name())
			}
			return left
		},
		Checked:     []string{layout.SnapshotFile, layout.StateFile},
		BootTimeout: time.Minute,
		Timeout:     time.Minute,
		Clones:      8,
	})
}

// shims are the processes of machines whose directory is dir or below it. Their command
// line ends with "--dir" and that directory.
func shims(t *testing.T, dir string) []int {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/ps", "-axwwo", "pid=,command=").Output()
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{dir}
	if real, err := filepath.EvalSymlinks(dir); err == nil && real != dir { // /tmp is a link on a Mac
		dirs = append(dirs, real)
	}
	var pids []int
	for line := range strings.Lines(string(bytes.ToValidUTF8(out, nil))) {
		pid, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, at, found := strings.Cut(command, " machine-shim --dir ")
		if !found {
			continue
		}
		for _, d := range dirs {
			if at == d || strings.HasPrefix(at, d+"/") {
				n, err := strconv.Atoi(pid)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, n)
			}
		}
	}
	return pids
}

func required(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run make test-vz", name)
	}
	return v
}
