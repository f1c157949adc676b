// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestQuarantineCommand(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "quarantine")
	run := func(args ...string) (string, error) {
		cmd := newRootCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(append([]string{"quarantine", "--state-dir", root, "--cache-dir", root}, args...))
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	if out, err := run("list", "-o", "json"); err != nil || out != "[]\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run("remove", "pod-a"); err == nil || !strings.Contains(err.Error(), "vk-firkin quarantine list") {
		t.Errorf("remove of nothing: %v", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	written := filepath.Join(dir, "pod-a.json")
	if err := os.WriteFile(written, []byte(`{"machine":"pod-a","since":"2026-01-02T03:04:05Z","reason":"it runs, and no record speaks of it","podUID":"uid-1","budget":{"memoryBytes":268435456}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run("list")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MACHINE", "pod-a", "256", "uid-1", "no record speaks of it"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
	if out, err := run("list", "-o", "name"); err != nil || out != "pod-a\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run("list", "-o", "xml"); err == nil {
		t.Error("an unknown output")
	}
	// No node: the request stays for the next start.
	if out, err := run("remove", "pod-a", "--timeout", "0"); err != nil || !strings.Contains(out, "will be removed") {
		t.Errorf("%q, %v", out, err)
	}
	if !quarantineDir(root).AskedFor("pod-a") {
		t.Error("nobody will hear of it")
	}
	// A node that does it at once.
	var node sync.WaitGroup
	defer node.Wait()
	node.Go(func() {
		for !quarantineDir(root).AskedFor("pod-b") {
			if t.Context().Err() != nil {
				return
			}
		}
		_ = os.Remove(filepath.Join(dir, "pod-b.json"))
		_ = os.Remove(filepath.Join(dir, "pod-b.remove"))
	})
	if err := os.Rename(written, filepath.Join(dir, "pod-b.json")); err != nil {
		t.Fatal(err)
	}
	if out, err := run("remove", "pod-b", "--timeout", "1m"); err != nil || out != "pod-b removed\n" {
		t.Errorf("%q, %v", out, err)
	}
}
