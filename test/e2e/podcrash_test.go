// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A node that was updated back finds a machine's own record to be of a newer version: the
// machine and its pod run on and are not started a second time, the pod's events say what to
// do, and when that is done the pod goes on as if nothing had been.
func TestMachineRecordOfAnotherVersion(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "newer", served.Busybox, "sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done"))
	before := waitRunning(t, ns, "newer")
	machines := node.MachinePIDs()
	node.Kill()
	records, err := filepath.Glob(filepath.Join(node.StateDir, "machines", "*", "machine.json"))
	if err != nil || len(records) != 1 {
		t.Fatalf("records %q, %v", records, err)
	}
	whole, err := os.ReadFile(records[0])
	if err != nil {
		t.Fatal(err)
	}
	newer := regexp.MustCompile(`"version": *[0-9]+`).ReplaceAll(whole, []byte(`"version": 99`))
	if string(newer) == string(whole) {
		t.Fatalf("no version in %s", whole)
	}
	if err := os.WriteFile(records[0], newer, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitShort, "an event of the pod", func() error {
		out := kubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name=newer", "-o", "custom-columns=R:.reason,M:.message")
		if !strings.Contains(out, "MachineNotAnswering") || !strings.Contains(out, "written by a newer vk-firkin") {
			return fmt.Errorf("events are\n%s", out)
		}
		return nil
	})
	time.Sleep(3 * time.Second) // it is asked again meanwhile
	same := func(pod *corev1.Pod) {
		t.Helper()
		was, is := before.Status.ContainerStatuses[0], pod.Status.ContainerStatuses[0]
		if is.ContainerID != was.ContainerID || is.RestartCount != 0 || is.State.Running == nil {
			t.Errorf("it says %+v, said %+v", is, was)
		}
		if after := node.MachinePIDs(); !slices.Equal(after, machines) {
			t.Errorf("machines are %v, were %v", after, machines)
		}
	}
	same(waitRunning(t, ns, "newer"))
	if err := os.WriteFile(records[0], whole, 0o600); err != nil { // the version that reads it is here again
		t.Fatal(err)
	}
	eventually(t, waitShort, "a shell in it", func() error {
		out, err := tryKubectl(t, "exec", "-n", ns, "newer", "--", "echo", "still here")
		if err != nil || out != "still here\n" {
			return fmt.Errorf("exec gave %q, %w", out, err)
		}
		return nil
	})
	same(waitRunning(t, ns, "newer"))
	lines := strings.Split(strings.TrimSpace(kubectl(t, "logs", "-n", ns, "newer")), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", i+1); line != want {
			t.Errorf("line %d of the log is %q, want %q", i+1, line, want)
			break
		}
	}
}
