// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/systemd"
)

// A host's administrator installs the node as a service of a real systemd, looks at it,
// upgrades it under a running pod, sees it crash and come back, and removes it. The pod
// notices nothing, and nothing of it is anybody else's to read.
func TestServiceStory(t *testing.T) {
	ns := namespace(t)
	m := systemd.Start(t)
	dir := nodeDir(t)
	n, err := plane.PrepareNode(t.Context(), storyOptions(dir, cluster.NodeOptions{Name: "mac-service", Args: []string{"--shapes", "1x256Mi", "--prepare", "none"}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.Output(t.Context(), "systemctl", "status", "--no-pager", "-l", "vk-firkin")
			t.Logf("%s\n%s", out, lastLines(t, n.LogPath, 60))
		}
		for _, pid := range n.MachinePIDs() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		forgetNode(t, n.Name)
	})
	binary := filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin")
	run := func(args ...string) (string, error) {
		return m.Output(t.Context(), append([]string{binary}, args...)...)
	}

	// This systemd has no journal: the node logs to its file.
	install := append([]string{"install", "--system", "--run-as", "root", "--log-file", n.LogPath}, n.Args()[1:]...)
	if out, err := run(install...); err != nil || !strings.Contains(out, "Node mac-service runs") {
		t.Fatalf("install: %v\n%s", err, out)
	}
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	onNode := func(manifest string) string {
		return strings.Replace(manifest, "  containers:", "  nodeSelector: {kubernetes.io/hostname: mac-service}\n  containers:", 1)
	}
	apply(t, onNode(podManifest(ns, "survivor", served.Busybox, "sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done")))
	tooBig := strings.Replace(podManifest(ns, "big", served.Busybox, "true"), "  containers:", "  nodeName: mac-service\n  containers:", 1)
	tooBig = strings.Replace(tooBig, "- name: main", "- resources: {requests: {memory: 1Ti}}\n    name: main", 1)
	apply(t, tooBig)
	pod := waitRunning(t, ns, "survivor")
	machines := n.MachinePIDs()
	if len(machines) != 1 {
		t.Fatalf("machines are %v", machines)
	}

	var seen status.Report
	eventually(t, waitShort, "the status has the pod, and the one that was refused", func() error {
		seen = statusOf(t, n)
		has := slices.ContainsFunc(seen.Machines, func(m status.Machine) bool { return m.Pod == ns+"/survivor" && m.State == "active" })
		refused := slices.ContainsFunc(seen.Refusals, func(r status.Refusal) bool { return r.Pod == ns+"/big" && r.Reason != "" && r.Message != "" })
		if !has || !refused || !seen.Running || seen.Node.Name != "mac-service" || seen.Ledger == nil || seen.Ledger.Active.MemoryBytes != 256<<20 {
			return fmt.Errorf("it is %+v", seen)
		}
		return nil
	})
	if out, err := run("status", "--state-dir", n.StateDir); err != nil || !strings.Contains(out, "survivor") || !strings.Contains(out, "REFUSED") {
		t.Errorf("status: %v\n%s", err, out)
	}
	private(t, n.StateDir)
	private(t, n.CacheDir)

	// The same as the node goes: an upgrade, which is told nothing again, then a crash.
	for _, how := range []struct {
		name string
		argv []string
	}{
		{"upgrade", []string{binary, "install", "--system", "--run-as", "root"}},
		{"crash", []string{"systemctl", "kill", "--kill-who=main", "-s", "KILL", "vk-firkin"}},
	} {
		before := statusOf(t, n)
		if out, err := m.Output(t.Context(), how.argv...); err != nil {
			t.Fatalf("%s: %v\n%s", how.name, err, out)
		}
		eventually(t, waitShort, "another process of the node after "+how.name, func() error {
			now := statusOf(t, n)
			if !now.Running || now.Node.PID == before.Node.PID {
				return fmt.Errorf("it is %+v", now.Node)
			}
			if !slices.ContainsFunc(now.Machines, func(m status.Machine) bool { return m.Pod == ns+"/survivor" && m.State == "active" }) {
				return fmt.Errorf("machines are %+v", now.Machines)
			}
			return nil
		})
		if now := n.MachinePIDs(); !slices.Equal(now, machines) {
			t.Fatalf("machines are %v after %s, were %v", now, how.name, machines)
		}
	}
	after := waitRunning(t, ns, "survivor")
	was, is := pod.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]
	if is.ContainerID != was.ContainerID || is.RestartCount != 0 || !is.State.Running.StartedAt.Equal(&was.State.Running.StartedAt) {
		t.Errorf("the container is %+v, was %+v", is, was)
	}
	eventually(t, waitShort, "the pod's log", func() error {
		out, err := tryKubectl(t, "logs", "-n", ns, "survivor")
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		for i, line := range lines {
			if want := fmt.Sprintf("line %d", i+1); line != want {
				t.Fatalf("line %d of the log is %q, want %q", i+1, line, want)
			}
		}
		if len(lines) < 20 {
			return fmt.Errorf("%d lines", len(lines))
		}
		return nil
	})

	// Not while a pod would be left behind.
	if out, err := run("uninstall", "--system"); err == nil || !strings.Contains(out, "survivor") || !strings.Contains(out, "kubectl drain") {
		t.Errorf("uninstall under a pod: %v\n%s", err, out)
	}
	kubectl(t, "delete", "pods", "--all", "-n", ns, "--grace-period=1", "--timeout=60s")
	var left string
	eventually(t, waitShort, "the service can be removed", func() (err error) {
		left, err = run("uninstall", "--system")
		return err
	})
	if _, err := os.Stat(filepath.Join(m.UnitDir, "vk-firkin.service")); err == nil || !strings.Contains(left, n.StateDir) {
		t.Errorf("the unit is there: %s", left)
	}
	if left := n.Remnants(); len(left) > 0 {
		t.Errorf("left of machines: %v", left)
	}
	if r := statusOf(t, n); r.Running || r.Problem == "" || r.Remedy == "" {
		t.Errorf("after it was removed: %+v", r)
	}
}

// statusOf is what vk-firkin status says of a node, whatever its exit code.
func statusOf(t *testing.T, n *cluster.Node) (r status.Report) {
	t.Helper()
	cmd := exec.Command(filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"), "status", "-o", "json", "--state-dir", n.StateDir, "--cache-dir", n.CacheDir)
	out, err := cmd.Output()
	if len(out) == 0 {
		t.Fatalf("status: %v", err)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("status: %v: %s", err, out)
	}
	if time.Since(r.Time) > time.Minute {
		t.Errorf("the status is of %s", r.Time)
	}
	return r
}

// private fails for everything below a folder that others may open.
func private(t *testing.T, root string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.Type()&fs.ModeSymlink != 0 {
			return nil // it came and went
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		files++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", path, info.Mode())
		}
		return nil
	})
	if err != nil || files < 5 {
		t.Errorf("%d files in %s, %v", files, root, err)
	}
}
