// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The node process is killed while pods run and write: the pods go on, the next
// process adopts them, no line is lost or told twice, and a shell works.
func TestNodeKilled(t *testing.T) {
	ns := namespace(t)
	const pods = 3
	for i := range pods {
		apply(t, podManifest(ns, fmt.Sprintf("survivor-%d", i), served.Busybox, "sh", "-c",
			"i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done"))
	}
	started := map[string]string{}
	for i := range pods {
		name := fmt.Sprintf("survivor-%d", i)
		pod := waitRunning(t, ns, name)
		started[name] = pod.Status.ContainerStatuses[0].State.Running.StartedAt.String() + pod.Status.ContainerStatuses[0].ContainerID
	}
	machines := node.MachinePIDs()
	if len(machines) != pods {
		t.Fatalf("%d machines run, want %d", len(machines), pods)
	}

	for range 2 { // twice: adopting must leave everything fit to be adopted again
		node.Kill()
		time.Sleep(2 * time.Second) // the pods write while nobody listens
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := node.Start(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}

	after := node.MachinePIDs()
	slices.Sort(machines)
	slices.Sort(after)
	if !slices.Equal(machines, after) {
		t.Errorf("machines are %v, before the kill %v", after, machines)
	}
	for i := range pods {
		name := fmt.Sprintf("survivor-%d", i)
		pod := waitRunning(t, ns, name)
		status := pod.Status.ContainerStatuses[0]
		if got := status.State.Running.StartedAt.String() + status.ContainerID; got != started[name] || status.RestartCount != 0 {
			t.Errorf("%s: container is %s after the kill, was %s; restarts %d", name, got, started[name], status.RestartCount)
		}
		lines := strings.Split(strings.TrimSpace(kubectl(t, "logs", "-n", ns, name)), "\n")
		if len(lines) < 40 {
			t.Errorf("%s: only %d lines after two kills of more than two seconds each", name, len(lines))
		}
		for i, line := range lines {
			if want := fmt.Sprintf("line %d", i+1); line != want {
				t.Errorf("%s: line %d of the log is %q, want %q", name, i+1, line, want)
				break
			}
		}
		if out := kubectl(t, "exec", "-n", ns, name, "--", "echo", "still here"); out != "still here\n" {
			t.Errorf("%s: exec gave %q", name, out)
		}
	}
}

// Pods that were deleted while no node process ran are ended by the next one.
func TestDeletedWhileAway(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "orphan", served.Busybox, "sleep", "3600"))
	waitRunning(t, ns, "orphan")
	node.Kill()
	kubectl(t, "delete", "pod", "-n", ns, "orphan", "--grace-period=0", "--force")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitShort, "the machine of the deleted pod is gone", func() error {
		if pids := node.MachinePIDs(); len(pids) > 0 {
			return fmt.Errorf("machines %v run", pids)
		}
		return nil
	})
}
