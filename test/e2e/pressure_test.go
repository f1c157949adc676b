// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// nodeCondition is a condition of a node.
func nodeCondition(t *testing.T, name string, kind corev1.NodeConditionType) corev1.NodeCondition {
	t.Helper()
	for _, c := range getNode(t, name).Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func waitCondition(t *testing.T, name string, want corev1.ConditionStatus) corev1.NodeCondition {
	t.Helper()
	var c corev1.NodeCondition
	eventually(t, time.Minute, fmt.Sprintf("DiskPressure of %s is %s", name, want), func() error {
		if c = nodeCondition(t, name, corev1.NodeDiskPressure); c.Status != want {
			return fmt.Errorf("it is %s: %s", c.Status, c.Message)
		}
		return nil
	})
	return c
}

// The disk is filled to the last byte while one pod runs and writes, another one is started
// and a pool is being filled. The node says so and refuses work; no line, record or machine of
// the running pod is lost, also not by a node process that is killed meanwhile; and when there
// is room again all goes on. Then a pod fills it, and is ended for it, and nobody else.
func TestDiskPressure(t *testing.T) {
	ns := poolNamespace(t)
	dir := nodeDir(t)
	state := smallDisk(t, dir)
	other, err := startNode(t.Context(), dir, cluster.NodeOptions{Name: "pressed", StateDir: state, Args: []string{
		"--min-free-disk", "100Mi", "--refill-min-free-disk", "150Mi", "--eviction-hard", "nodefs.available<60Mi", "--eviction-pressure-transition-period", "3s",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the node:\n%s", lastLines(t, other.LogPath, 80))
		}
		other.Stop()
		forgetNode(t, other.Name)
	})
	waitPrepared(t, other)
	on := func(manifest string) string {
		return strings.Replace(manifest, "spec:\n", "spec:\n  nodeName: "+other.Name+"\n", 1)
	}
	scheduled := func(manifest string) string {
		return strings.Replace(manifest, "spec:\n", "spec:\n  nodeSelector: {kubernetes.io/hostname: "+other.Name+"}\n", 1)
	}
	apply(t, on(podManifest(ns, "writer", served.Busybox, "sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done")))
	began := waitRunning(t, ns, "writer").Status.ContainerStatuses[0]
	apply(t, templateManifest(ns, "kept", simpleSetup))
	apply(t, poolManifest(ns, "pool", "kept", 1, "nodeSelector: {kubernetes.io/hostname: "+other.Name+"}"))
	waitPool(t, ns, "pool", "is full", full(1))

	kubectl(t, "scale", "warmpool", "pool", "-n", ns, "--replicas=3") // a refill is under way
	apply(t, on(podManifest(ns, "caught", served.Busybox, "sleep", "3600")))
	filler := filepath.Join(state, "filler")
	fillDisk(t, filler)
	c := waitCondition(t, other.Name, corev1.ConditionTrue)
	t.Logf("condition: %s: %s", c.Reason, c.Message)
	fillDisk(t, filler+"2") // what the relief made free
	if got := metric(t, other, "vk_firkin_relief_steps_total", `resource="disk"`, `step="StopRefills"`); got < 1 {
		t.Errorf("refills were stopped %v times", got)
	}
	apply(t, on(podManifest(ns, "refused", served.Busybox, "sleep", "3600")))
	apply(t, scheduled(podManifest(ns, "waits", served.Busybox, "sleep", "3600")))
	p := waitPod(t, ns, "refused", "is refused", refused)
	if p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, "DiskPressure") {
		t.Errorf("the refused pod says %s: %s", p.Status.Reason, p.Status.Message)
	}
	// The control plane's taint for the condition takes the node from the pool.
	waitPool(t, ns, "pool", "says why it is not filled", func(p *v1alpha1.WarmPool) bool {
		return strings.Contains(condition(p.Status.Conditions, v1alpha1.ConditionDegraded), "NoEligibleNodes")
	})
	if out := kubectl(t, "exec", "-n", ns, "writer", "--", "echo", "lives"); out != "lives\n" {
		t.Errorf("the running pod says %q", out) // it holds less than what lacks: ending it would be in vain
	}
	waitPod(t, ns, "waits", "is kept from the node", func(p *corev1.Pod) bool {
		return p.Spec.NodeName == "" && podCondition(p, corev1.PodScheduled) == corev1.ConditionFalse
	})
	other.Kill() // on a disk without a byte
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitCondition(t, other.Name, corev1.ConditionTrue)

	for _, path := range []string{filler, filler + "2"} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	waitCondition(t, other.Name, corev1.ConditionFalse)
	waitRunning(t, ns, "waits")
	waitRunning(t, ns, "caught")
	waitPool(t, ns, "pool", "is full again", full(3))
	after := waitRunning(t, ns, "writer").Status.ContainerStatuses[0]
	if after.ContainerID != began.ContainerID || after.RestartCount != 0 {
		t.Errorf("the writer is %+v, was %+v", after, began)
	}
	last := wholeLog(t, ns, "writer")
	eventually(t, waitShort, "the log goes on", func() error {
		if n := wholeLog(t, ns, "writer"); n < last+20 {
			return fmt.Errorf("%d lines, %d before", n, last)
		}
		return nil
	})

	// Now by a pod: it is ended, and nobody else.
	kubectl(t, "delete", "warmpool", "pool", "-n", ns)
	apply(t, on(podManifest(ns, "greedy", served.Busybox, "sh", "-c", "dd if=/dev/urandom of=/x bs=1M count=600; exec sleep 3600")))
	p = waitPodFor(t, 2*time.Minute, ns, "greedy", "is ended", refused)
	if want := regexp.MustCompile(`^The node was low on resource: ephemeral-storage. Threshold quantity: 60Mi, available: \d+Ki. `); p.Status.Reason != "Evicted" || !want.MatchString(p.Status.Message) ||
		podCondition(p, corev1.DisruptionTarget) != corev1.ConditionTrue {
		t.Errorf("the greedy pod: %s: %s, %+v", p.Status.Reason, p.Status.Message, p.Status.Conditions)
	}
	waitCondition(t, other.Name, corev1.ConditionFalse)
	for _, name := range []string{"writer", "waits", "caught"} {
		if p, err := getPod(t, ns, name); err != nil || p.Status.Phase != corev1.PodRunning {
			t.Errorf("its neighbour %s: %v, %v", name, p, err)
		}
	}
}

// wholeLog checks that a log of numbered lines misses none, and counts them.
func wholeLog(t *testing.T, ns, name string) int {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(kubectl(t, "logs", "-n", ns, name)), "\n")
	for i, line := range lines {
		if want := "line " + strconv.Itoa(i+1); line != want {
			t.Fatalf("line %d of the log is %q, want %q", i+1, line, want)
		}
	}
	return len(lines)
}
