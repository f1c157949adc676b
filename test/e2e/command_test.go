// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// vkFirkin runs the command as a user of the node's host would.
func vkFirkin(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"), args...).CombinedOutput()
	return string(out), err
}

// An operator looks at the snapshots of a host while its node runs.
func TestSnapshotCommands(t *testing.T) {
	waitPrepared(t, node)
	out, err := vkFirkin(t, "snapshot", "ls", "--state-dir", node.StateDir, "-o", "json")
	if err != nil {
		t.Fatalf("snapshot ls: %v: %s", err, out)
	}
	if !json.Valid([]byte(out)) || !strings.Contains(out, "base") {
		t.Errorf("snapshot ls -o json says %q", out)
	}
	if out, err := vkFirkin(t, "snapshot", "verify", "--state-dir", node.StateDir); err != nil {
		t.Errorf("snapshot verify: %v: %s", err, out)
	}
	// What a running node uses cannot be taken away from under it.
	names, err := vkFirkin(t, "snapshot", "ls", "--state-dir", node.StateDir, "-o", "name")
	if err != nil {
		t.Fatalf("snapshot ls -o name: %v: %s", err, names)
	}
	if out, err := vkFirkin(t, append([]string{"snapshot", "rm", "--state-dir", node.StateDir}, strings.Fields(names)...)...); err == nil {
		t.Errorf("snapshot rm beside a running node: accepted: %s", out)
	}
	if len(snapshotMembers(t, node)) == 0 {
		t.Error("the snapshot is gone")
	}
}

// An operator asks what a host can do.
func TestDoctor(t *testing.T) {
	out, err := vkFirkin(t, "doctor", "--state-dir", node.StateDir, "--cache-dir", node.CacheDir,
		"--guest-kit", filepath.Join(os.Getenv("FIRKIN_KIT_DIR"), runtime.GOARCH))
	if err != nil {
		t.Errorf("doctor on a host that runs a node: %v: %s", err, out)
	}
	out, err = vkFirkin(t, "doctor", "--state-dir", node.StateDir, "--cache-dir", node.CacheDir, "--guest-kit", t.TempDir())
	if err == nil || !strings.Contains(out, "make guest") {
		t.Errorf("doctor without a guest kit: %v: want the remedy in %s", err, out)
	}
}
