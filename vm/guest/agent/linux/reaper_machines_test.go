// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package linux_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux"
)

// guestReaper: a child that somebody waits for late keeps its exit, for a while; one
// that nobody waits for is collected.
func guestReaper(t *testing.T, _ *linux.System) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); linux.Reaper(ctx) }()
	defer func() { cancel(); <-done }()

	child := func() *exec.Cmd {
		// The child is this binary; not being PID 1 and given no tests, it ends at once.
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^$")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	waited := child()
	time.Sleep(3 * time.Second) // a real child dies meanwhile
	if err := waited.Wait(); err != nil {
		t.Errorf("a child that was waited for 3 s late: %v", err)
	}
	orphan := child().Process.Pid
	if stat, err := os.ReadFile("/proc/self/stat"); err != nil || !strings.HasPrefix(string(stat), "1 ") {
		t.Fatalf("not PID 1: %s", stat)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if err := syscall.Kill(orphan, 0); err == syscall.ESRCH {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody collects an orphan")
		}
	}
}
