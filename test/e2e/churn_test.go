// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// 50 pods come and go in turn, then 10 at once: nothing of them is left on the host.
func TestChurnLeavesNothing(t *testing.T) {
	ns := namespace(t)
	// One pod first, so that what is made once (connections, caches) exists.
	churn(t, ns, "first", 1)
	before := footprint(t)
	for i := range 50 {
		churn(t, ns, fmt.Sprintf("turn-%d", i), 1)
	}
	churn(t, ns, "together", 10)

	asBefore(t, before)
}

// asBefore waits until nothing has grown on the host since the footprint was taken.
func asBefore(t *testing.T, before map[string]float64) {
	t.Helper()
	eventually(t, waitShort, "the host is as it was before", func() error {
		after := footprint(t)
		var grown []string
		for _, what := range slices.Sorted(maps.Keys(after)) {
			// Goroutines and descriptors breathe with watches and keepalives; a leak
			// of one a pod would show as 60.
			slack := 0.0
			if what == "goroutines" || what == "descriptors" {
				slack = 15
			}
			if after[what] > before[what]+slack {
				grown = append(grown, fmt.Sprintf("%s: %v, before %v", what, after[what], before[what]))
			}
		}
		if len(grown) > 0 {
			return fmt.Errorf("left behind: %s", strings.Join(grown, "; "))
		}
		return nil
	})
}

// churn makes pods at once, waits for their output, deletes them and waits until
// they are gone.
func churn(t *testing.T, ns, prefix string, count int) {
	t.Helper()
	var manifests strings.Builder
	for i := range count {
		manifests.WriteString(podManifest(ns, fmt.Sprintf("%s-%d", prefix, i), served.Busybox, "sh", "-c", "echo here; exec sleep 3600"))
		manifests.WriteString("---\n")
	}
	apply(t, manifests.String())
	for i := range count {
		name := fmt.Sprintf("%s-%d", prefix, i)
		waitPod(t, ns, name, "is running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		eventually(t, waitShort, "output of "+name, func() error {
			out, err := tryKubectl(t, "logs", "-n", ns, name)
			if err == nil && out != "here\n" {
				err = fmt.Errorf("logs are %q", out)
			}
			return err
		})
	}
	kubectl(t, "delete", "pods", "--all", "-n", ns, "--grace-period=1", "--timeout=60s")
}

// footprint counts what the node holds on its host.
func footprint(t *testing.T) map[string]float64 {
	t.Helper()
	count := map[string]float64{
		"machines":    float64(len(node.MachinePIDs())),
		"goroutines":  metric(t, node, "go_goroutines"),
		"descriptors": metric(t, node, "process_open_fds"),
	}
	for _, folder := range []string{"machines", "pods"} {
		err := filepath.WalkDir(filepath.Join(node.StateDir, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				if os.IsNotExist(err) {
					return nil
				}
				return err
			}
			switch {
			case d.Type()&fs.ModeSocket != 0:
				count["sockets"]++
			case !d.IsDir():
				count["files in "+folder]++
			default:
				count["folders in "+folder]++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts") // a Mac has none, and mounts nothing
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	count["mounts"] = float64(strings.Count(string(mounts), node.StateDir))
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", node.PID(), node.PID()))
	if err == nil {
		count["child processes"] = float64(len(strings.Fields(string(children))))
	}
	return count
}

// Two pods of one name, one right after the other, never mix.
func TestSameNameTwice(t *testing.T) {
	ns := namespace(t)
	for i := range 3 {
		apply(t, podManifest(ns, "again", served.Busybox, "sh", "-c", fmt.Sprintf("echo life %d; exec sleep 3600", i)))
		waitRunning(t, ns, "again")
		want := fmt.Sprintf("life %d\n", i)
		eventually(t, 10*time.Second, "output of this life", func() error {
			if out := kubectl(t, "logs", "-n", ns, "again"); out != want {
				return fmt.Errorf("logs are %q, want %q", out, want)
			}
			return nil
		})
		kubectl(t, "delete", "pod", "-n", ns, "again", "--grace-period=0", "--force")
	}
}
