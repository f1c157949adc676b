// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// nodeArguments makes TestNodeProcess a process that runs a node.
const nodeArguments = "VK_FIRKIN_TEST_NODE"

// TestNodeProcess is that process, see TestOneNodeForAStateDirectory.
func TestNodeProcess(t *testing.T) {
	args := os.Getenv(nodeArguments)
	if args == "" {
		return // only a process of its own does anything here
	}
	cmd := newRootCommand()
	cmd.SetArgs(strings.Fields(args))
	fmt.Println(cmd.ExecuteContext(t.Context()))
}

// TestOneNodeForAStateDirectory: a second node process is told who has its directory and
// what to do; commands that only look are not; and when the first is killed, the next one
// has the directory at once.
func TestOneNodeForAStateDirectory(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	// Reading this kubeconfig, which is the next thing after taking the directory, a node
	// waits until somebody writes.
	pipe := filepath.Join(dir, "kubeconfig")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	arguments := func(kubeconfig string) []string {
		return append(append([]string{"node"}, complete...), "--state-dir", state, "--cache-dir", filepath.Join(dir, "cache"), "--kubeconfig", kubeconfig)
	}
	run := func(ctx context.Context, args ...string) error {
		cmd := newRootCommand()
		cmd.SetArgs(args)
		cmd.SetOut(&bytes.Buffer{})
		return cmd.ExecuteContext(ctx)
	}

	first := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNodeProcess$") //nolint:gosec // this test's own binary
	first.Env = append(os.Environ(), nodeArguments+"="+strings.Join(arguments(pipe), " "))
	var said bytes.Buffer
	first.Stdout, first.Stderr = &said, &said
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- first.Wait() }()
	opened := make(chan *os.File, 1)
	go func() {
		f, err := os.OpenFile(pipe, os.O_WRONLY, 0) // when the first is there to read
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	select {
	case f := <-opened:
		defer f.Close()
	case err := <-ended:
		if f, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
			(<-opened).Close()
			f.Close()
		}
		t.Fatalf("the first node ended: %v\n%s", err, &said)
	}

	err := run(t.Context(), arguments(filepath.Join(dir, "nothing"))...)
	if !errors.Is(err, durable.ErrLocked) {
		t.Fatalf("the second node: %v", err)
	}
	want := fmt.Sprintf("set up directories: state directory %[1]s is in use by another process (process %[2]d): stop it (kill %[2]d; the machines go on), or give this node one of its own with --state-dir", state, first.Process.Pid)
	if err.Error() != want {
		t.Errorf("it says\n%s, want\n%s", err, want)
	}
	if err := run(t.Context(), "snapshot", "list", "--state-dir", state); err != nil {
		t.Errorf("to look at it: %v", err)
	}

	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	err = run(t.Context(), arguments(filepath.Join(dir, "nothing"))...)
	if err == nil || errors.Is(err, durable.ErrLocked) || !strings.HasPrefix(err.Error(), "set up cluster: ") {
		t.Errorf("after the first was killed: %v, want it to come as far as the cluster", err)
	}
	// That one gave it back by itself.
	lock, err := durable.LockDir(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
	if got := refusalOfLock(&durable.LockedError{Dir: "/s"}).Error(); !strings.Contains(got, "/s is in use by another process: stop it, or give") {
		t.Errorf("without a holder it says %q", got)
	}
}
