// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The record of a running pod cannot be read after a restart: its machine is kept, the cluster
// says so, and when the record can be read again the pod goes on as if nothing had been.
func TestQuarantineInTheCluster(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "odd", served.Busybox, "sleep", "3600"))
	before := waitRunning(t, ns, "odd")
	machines := node.MachinePIDs()
	record := filepath.Join(node.StateDir, "pods", string(before.UID), "pod.json")
	kept, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	restart := func(content []byte) {
		t.Helper()
		node.Kill()
		if err := os.WriteFile(record, content, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := node.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	ledger := func(path string) string {
		out, err := tryKubectl(t, "get", "nodeledger", node.Name, "-o", "jsonpath="+path)
		if err != nil {
			return err.Error()
		}
		return out
	}
	restart([]byte("{}\n"))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("ledger: %s", ledger("{.status}"))
		}
	})
	eventually(t, waitShort, "the ledger tells of the machine", func() error {
		got := ledger(`{.status.quarantinedMachines} {.status.quarantined[0].podUID} {.status.conditions[?(@.type=="Degraded")].reason}`)
		if want := fmt.Sprintf("1 %s MachinesQuarantined", before.UID); got != want {
			return fmt.Errorf("it says %q, want %q", got, want)
		}
		return nil
	})
	id := ledger("{.status.quarantined[0].machine}")
	if out := kubectl(t, "get", "nodeledgers"); !strings.Contains(out, "QUARANTINED") {
		t.Errorf("kubectl get nodeledgers:\n%s", out)
	}
	if out, err := vkFirkin(t, "quarantine", "list", "-o", "name", "--state-dir", node.StateDir); err != nil || strings.TrimSpace(out) != id {
		t.Errorf("on the node: %q, %v, in the cluster %q", out, err, id)
	}
	restart(kept)
	eventually(t, waitShort, "it is out of quarantine", func() error {
		if got := ledger(`{.status.quarantinedMachines} {.status.conditions[?(@.type=="Degraded")].status}`); got != "0 False" {
			return fmt.Errorf("the ledger says %q", got)
		}
		return nil
	})
	after := waitRunning(t, ns, "odd")
	a, b := after.Status.ContainerStatuses[0], before.Status.ContainerStatuses[0]
	now := node.MachinePIDs()
	slices.Sort(now)
	slices.Sort(machines)
	if a.ContainerID != b.ContainerID || a.RestartCount != 0 || !slices.Equal(now, machines) {
		t.Errorf("the pod is %+v in machines %v, was %+v in %v", a, now, b, machines)
	}
	if out := kubectl(t, "exec", "-n", ns, "odd", "--", "echo", "goes on"); out != "goes on\n" {
		t.Errorf("exec says %q", out)
	}
}
