// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// A snapshot whose files were damaged on the disk is never used: it is put aside,
// said so, built again, and the pod runs.
func TestDamagedSnapshot(t *testing.T) {
	for name, damage := range map[string]func(path string, size int64) error{
		"truncated":   func(path string, size int64) error { return os.Truncate(path, size/2) },
		"bit-flipped": flipBit,
	} {
		t.Run(name, func(t *testing.T) {
			ns := namespace(t)
			dir := nodeDir(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			other, err := startNode(ctx, dir, cluster.NodeOptions{Name: "damaged-" + strings.ReplaceAll(name, "-", "")})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { other.Stop(); forgetNode(t, other.Name) })
			waitPrepared(t, other)

			// A running node has verified its snapshots; the next one has not.
			other.Kill()
			for _, path := range snapshotMembers(t, other) {
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := damage(path, info.Size()); err != nil {
					t.Fatal(err)
				}
			}
			if err := other.Start(ctx); err != nil {
				t.Fatal(err)
			}
			apply(t, strings.Replace(podManifest(ns, "after-damage", served.Busybox, "true"), "spec:\n", "spec:\n  nodeName: "+other.Name+"\n", 1))
			waitPod(t, ns, "after-damage", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
			aside, _ := filepath.Glob(filepath.Join(other.StateDir, "snapshots", ".quarantine", "*"))
			if len(aside) == 0 {
				t.Error("no snapshot was quarantined")
			}
			eventually(t, waitShort, "an event on the node", func() error {
				out, err := tryKubectl(t, "get", "events", "-A", "--field-selector", "reason=SnapshotQuarantined", "-o", "jsonpath={.items[*].message}")
				if err == nil && out == "" {
					err = fmt.Errorf("no event")
				}
				return err
			})
		})
	}
}

func flipBit(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	// Into data: a flipped bit of a hole would be found as well, but proves less.
	at := size / 3
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b, at)
	return err
}

// snapshotMembers are the paths that a snapshot's manifest lists, the largest kinds
// of them: memory and device state.
func snapshotMembers(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	manifests, _ := filepath.Glob(filepath.Join(n.StateDir, "snapshots", "*", "manifest.json"))
	if len(manifests) == 0 {
		t.Fatal("the node has no snapshot")
	}
	var paths []string
	for _, m := range manifests {
		b, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		var manifest struct {
			Members []struct {
				Name string `json:"name"`
			} `json:"members"`
		}
		if err := json.Unmarshal(b, &manifest); err != nil {
			t.Fatal(err)
		}
		for _, f := range manifest.Members {
			paths = append(paths, filepath.Join(filepath.Dir(m), f.Name))
		}
	}
	return paths
}

// A machine that dies takes its pod along, with a reason, and nothing else.
func TestDeadMachine(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "dead", served.Busybox, "sleep", "3600"))
	waitRunning(t, ns, "dead")
	pids := node.MachinePIDs()
	if len(pids) != 1 {
		t.Fatalf("machines are %v, want the one of the pod", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitPod(t, ns, "dead", "has failed", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed && p.Status.ContainerStatuses[0].State.Terminated != nil
	})
	stillServing(t, ns)
}

// A node on a full disk refuses work, says so, loses nothing, and goes on when
// there is room.
func TestFullDisk(t *testing.T) {
	ns := namespace(t)
	dir := nodeDir(t)
	state := smallDisk(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	other, err := startNode(ctx, dir, cluster.NodeOptions{Name: "fulldisk", StateDir: state, Args: []string{"--min-free-disk", "0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Stop(); forgetNode(t, other.Name) })
	waitPrepared(t, other)
	onNode := func(name string) string {
		return strings.Replace(podManifest(ns, name, served.Busybox, "sh", "-c", "echo ran; exec sleep 3600"), "spec:\n", "spec:\n  nodeName: "+other.Name+"\n", 1)
	}
	apply(t, onNode("before"))
	waitRunning(t, ns, "before")

	filler := filepath.Join(state, "filler")
	fillDisk(t, filler)
	apply(t, onNode("during"))
	waitPod(t, ns, "during", "is told of the full disk", func(p *corev1.Pod) bool {
		text := p.Status.Reason + p.Status.Message
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Waiting != nil {
				text += c.State.Waiting.Message
			}
		}
		return p.Status.Phase != corev1.PodRunning && (strings.Contains(text, "no space") || strings.Contains(text, "Disk"))
	})
	if out := kubectl(t, "exec", "-n", ns, "before", "--", "echo", "lives"); out != "lives\n" {
		t.Errorf("the pod that ran before says %q", out)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	apply(t, onNode("afterwards"))
	waitRunning(t, ns, "afterwards")
}

// smallDisk is a disk of 900 MiB that can be filled.
func smallDisk(t *testing.T, dir string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a disk that can be filled is mounted")
	}
	disk, err := cluster.MountDisk(t.Context(), dir, "900M")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return disk.Path
}

func fillDisk(t *testing.T, path string) {
	t.Helper()
	if err := cluster.FillDisk(path); err != nil {
		t.Fatal(err)
	}
}

// nodeDir is a short folder for a node of the story's own.
func nodeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "fk-n-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the node's files are kept in %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	return dir
}

func forgetNode(t *testing.T, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := plane.Output(ctx, "delete", "node", name, "--ignore-not-found"); err != nil {
		t.Errorf("delete node: %v", err)
	}
}

// waitPrepared waits until the node has the base snapshot of its smallest shape.
func waitPrepared(t *testing.T, n *cluster.Node) {
	t.Helper()
	eventually(t, 2*time.Minute, "base snapshot on "+n.Name, func() error {
		if found, _ := filepath.Glob(filepath.Join(n.StateDir, "snapshots", "*", "manifest.json")); len(found) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
}
