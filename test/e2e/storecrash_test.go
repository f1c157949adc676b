// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The records of machines in their own folders cannot be read any more, one since it is
// damaged, one since another version wrote it: their pods go on, nobody gets a second
// machine, people are told, and each way out works: to delete the pod, to bring back the
// record, to ask for the removal.
func TestUnreadableMachine(t *testing.T) {
	ns := namespace(t)
	machine, pid := map[string]string{}, map[string]int{}
	for _, name := range []string{"deleted", "kept"} {
		before := node.Machines()
		apply(t, podManifest(ns, name, served.Busybox, "sh", "-c", "echo begun; exec sleep 3600"))
		waitRunning(t, ns, name)
		for id, p := range node.Machines() {
			if _, there := before[id]; !there {
				machine[name], pid[name] = id, p
			}
		}
	}
	record := func(name string) string {
		return filepath.Join(node.StateDir, "machines", machine[name], "machine.json")
	}
	restart := func(change func()) {
		t.Helper()
		node.Kill()
		change()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := node.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(record("kept"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(record(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newer := bytes.Replace(whole, []byte(`"version": 1`), []byte(`"version": 99`), 1)
	if bytes.Equal(newer, whole) {
		t.Fatalf("the record says no version: %s", whole)
	}
	listed := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		eventually(t, waitShort, fmt.Sprintf("%q are in quarantine", want), func() error {
			out, err := vkFirkin(t, "quarantine", "list", "--state-dir", node.StateDir, "-o", "name")
			if got := strings.Fields(out); err != nil || !slices.Equal(got, want) {
				return fmt.Errorf("it lists %q: %w", got, err)
			}
			return nil
		})
	}
	ended := func(name string) {
		t.Helper()
		eventually(t, waitShort, "the machine has ended", func() error {
			if node.Machines()[machine[name]] != 0 {
				return fmt.Errorf("process %d runs", pid[name])
			}
			return nil
		})
	}

	restart(func() { write("deleted", whole[:len(whole)/2]); write("kept", newer) })
	listed(machine["deleted"], machine["kept"])
	if out, err := vkFirkin(t, "quarantine", "list", "--state-dir", node.StateDir); err != nil || !strings.Contains(out, "written by a newer vk-firkin") {
		t.Errorf("quarantine list: %v: %s", err, out)
	}
	for name, want := range pid {
		if got := node.Machines()[machine[name]]; got != want {
			t.Errorf("%s: the process is %d, was %d", name, got, want)
		}
	}
	if n := len(node.Machines()); n != len(machine) {
		t.Errorf("%d machines run, want %d", n, len(machine))
	}

	kubectl(t, "delete", "pod", "-n", ns, "deleted", "--wait=false")
	ended("deleted")
	listed(machine["kept"])

	restart(func() { write("kept", whole) })
	listed()
	if out := kubectl(t, "exec", "-n", ns, "kept", "--", "echo", "still here"); out != "still here\n" {
		t.Errorf("exec gave %q", out)
	}
	if got := node.Machines()[machine["kept"]]; got != pid["kept"] {
		t.Errorf("the process is %d, was %d", got, pid["kept"])
	}

	restart(func() { write("kept", newer) })
	listed(machine["kept"])
	if out, err := vkFirkin(t, "quarantine", "remove", machine["kept"], "--state-dir", node.StateDir); err != nil || !strings.Contains(out, "removed") {
		t.Errorf("quarantine remove: %v: %s", err, out)
	}
	ended("kept")
	// By its policy, which is Never, the pod has failed with its machine.
	eventually(t, waitShort, "the pod has failed", func() error {
		if out := kubectl(t, "get", "pod", "-n", ns, "kept", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.reason}"); out != "Failed MachineDied" {
			return fmt.Errorf("it is %q", out)
		}
		return nil
	})
}
