// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A container may put a pipe in the place of a directory that is about to be opened:
// nobody writes to it, and measuring must not wait.
func TestOpenDirectoryDoesNotBlock(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "d"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	opened := make(chan error, 1)
	go func() {
		f, err := openDirectory(root, "d")
		if err == nil {
			_ = f.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		if err == nil {
			t.Error("a pipe is taken for a directory")
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for one who writes to the pipe")
	}
}

// To open a directory costs as much as it is deep: a container that nests them must not keep
// the agent busy with the square of their number.
func TestDiskUsageOfDeepDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", 1000)), 0o755); err != nil {
		t.Fatal(err)
	}
	_, inodes := DiskUsage(dir, maxUsageWalk)
	if inodes > 800 || inodes < 500 {
		t.Errorf("%d of 1000 were counted", inodes)
	}
}

// Whoever gave up asks again: what was begun for them must not go on beside it.
func TestStatsEndWithTheirCaller(t *testing.T) {
	vs := newVolumes(t.TempDir(), nil)
	for _, name := range []string{"a", "b"} {
		vs.table[name] = &volume{volumeSpec: volumeSpec{dir: t.TempDir()}}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if n := len(vs.stats(ctx)); n != 2 {
		t.Errorf("%d of 2 volumes", n)
	}
	cancel()
	if n := len(vs.stats(ctx)); n != 0 {
		t.Errorf("%d volumes were measured for nobody", n)
	}
}
