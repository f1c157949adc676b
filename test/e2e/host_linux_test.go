// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// The host loses its power three times: while a base snapshot is built, while pods start and a template
// is built, and while pods end, start warm and a pool is filled. What the disk did not have by then is
// gone. Each time the next process has a node that is Ready, no machine of before and no record that it
// cannot read; every snapshot that is there is whole; and every pod runs again, or has failed and does not.
func TestPowerLoss(t *testing.T) {
	ns := poolNamespace(t)
	dir := nodeDir(t)
	mount := smallDisk(t, dir)
	const onNode = "nodeSelector: {kubernetes.io/hostname: powerless}"
	n, err := startNode(t.Context(), dir, cluster.NodeOptions{Name: "powerless", StateDir: filepath.Join(mount, "s"), Args: []string{
		"--cache-dir", filepath.Join(mount, "cache"), "--min-free-disk", "50Mi", "--refill-min-free-disk", "60Mi", "--eviction-hard", "", "--shapes", "1x256Mi",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the node:\n%s", lastLines(t, n.LogPath, 120))
		}
		n.Stop()
		forgetNode(t, n.Name)
	})
	pod := func(name, policy string, command ...string) {
		t.Helper()
		manifest := strings.Replace(podManifest(ns, name, served.Busybox, command...), "restartPolicy: Never", "nodeName: powerless\n  restartPolicy: "+policy, 1)
		apply(t, manifest)
	}
	building := func() error {
		if found, _ := filepath.Glob(filepath.Join(n.StateDir, "snapshots", ".building-*")); len(found) == 0 {
			return errors.New("nothing is being built")
		}
		return nil
	}

	lost := false // what nobody had synced, at one of the losses at least
	pod("always", "Always", "sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done")
	eventually(t, time.Minute, "a base snapshot is being built", building)
	lost = losePower(t, n, mount) || lost
	restartAfterPowerLoss(t, n)

	pod("never", "Never", "sleep", "3600")
	apply(t, templateManifest(ns, "kept", simpleSetup))
	apply(t, poolManifest(ns, "pool", "kept", 2, onNode))
	waitRunning(t, ns, "always")
	waitRunning(t, ns, "never")
	waitPool(t, ns, "pool", "is full", full(2))
	apply(t, templateManifest(ns, "cut", `setup: [{command: [sh, -c, "mkdir /opt && echo prepared > /opt/file; dd if=/dev/zero of=/opt/more bs=1M count=20"]}]`))
	apply(t, poolManifest(ns, "cut", "cut", 1, onNode))
	eventually(t, time.Minute, "a template is being built", building)
	before := len(n.MachinePIDs())
	for i := range 3 {
		pod(fmt.Sprintf("starts-%d", i), []string{"Always", "Never", "Always"}[i], "sleep", "3600")
	}
	eventually(t, time.Minute, "pods get their machines", func() error {
		if now := len(n.MachinePIDs()); now <= before {
			return fmt.Errorf("%d machines run, before %d", now, before)
		}
		return nil
	})
	lost = losePower(t, n, mount) || lost
	restartAfterPowerLoss(t, n)

	runsAgain := waitPod(t, ns, "always", "runs again", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount > 0 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	if x := runsAgain.Status.ContainerStatuses[0].LastTerminationState.Terminated; x == nil || x.Reason != "MachineDied" {
		t.Errorf("the pod that runs again says of its former life %+v", runsAgain.Status.ContainerStatuses[0].LastTerminationState)
	}
	ended := waitPod(t, ns, "never", "has failed", refused)
	if x := ended.Status.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "MachineDied" {
		t.Errorf("the pod that must not run twice says %+v", ended.Status.ContainerStatuses[0].State)
	}
	waitRunning(t, ns, "starts-0")
	waitRunning(t, ns, "starts-2")
	waitPod(t, ns, "starts-1", "runs for the first time, or has failed", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodRunning && p.Status.ContainerStatuses[0].RestartCount == 0
	})
	waitPool(t, ns, "pool", "is full again", full(2))
	waitPool(t, ns, "cut", "is full", full(1))

	kubectl(t, "delete", "pod", "starts-0", "starts-1", "-n", ns, "--wait=false")
	kubectl(t, "scale", "warmpool", "pool", "-n", ns, "--replicas=3")
	apply(t, templatePod(ns, "warm", "kept", onNode))
	lost = losePower(t, n, mount) || lost
	restartAfterPowerLoss(t, n)

	waitGone(t, ns, "starts-0")
	waitGone(t, ns, "starts-1")
	waitPod(t, ns, "warm", "runs, or has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning || refused(p) })
	for _, template := range []string{"kept", "cut"} {
		apply(t, templatePod(ns, "proof-"+template, template, onNode))
	}
	for _, template := range []string{"kept", "cut"} {
		waitRunning(t, ns, "proof-"+template)
		waitLogs(t, ns, "proof-"+template, "prepared\n")
	}
	waitRunning(t, ns, "always")
	waitRunning(t, ns, "starts-2")

	if !lost {
		t.Error("what nobody synced was there each time: this was no loss of power")
	}
	kubectl(t, "delete", "warmpool", "pool", "cut", "-n", ns)
	kubectl(t, "delete", "pods", "--all", "-n", ns, "--grace-period=1", "--timeout=60s")
	eventually(t, time.Minute, "nothing is left, and all room is free", func() error {
		if left := n.Remnants(); len(left) > 0 {
			return fmt.Errorf("there are %q", left)
		}
		for _, state := range []string{"active", "warm"} {
			if held := metric(t, n, "vk_firkin_ledger_memory_bytes", fmt.Sprintf("state=%q", state)); held != 0 {
				return fmt.Errorf("%s machines hold %v bytes", state, held)
			}
		}
		return nil
	})
}

// losePower ends the node and all its machines at one moment, and gives their disk back as it was
// then: what was written to files and not to the disk is lost, and its journal is replayed. It tells
// whether something was lost so; a host that is busy may have written everything by itself.
func losePower(t *testing.T, n *cluster.Node, mount string) (lost bool) {
	t.Helper()
	// The node first: then nobody is told anything that happens after this moment.
	if err := syscall.Kill(n.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	machines := n.MachinePIDs()
	for _, pid := range machines {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // it may just have ended
	}
	image, left := mount+".ext4", mount+".left"
	device := strings.TrimSpace(command(t, "findmnt", "-n", "-o", "SOURCE", mount))
	// The kernel may be writing back. A copy is of one moment when nothing was written meanwhile.
	unsynced := filepath.Join(mount, "unsynced")
	eventually(t, time.Minute, "a copy of the disk at one moment", func() error {
		// Proof that it is more than a kill: nobody syncs this, and it is as young as can be.
		if err := errors.Join(os.RemoveAll(unsynced), os.WriteFile(unsynced, bytes.Repeat([]byte("x"), 1<<20), 0o600)); err != nil {
			return err
		}
		before := diskWrites(t, device)
		command(t, "cp", "--sparse=always", image, left)
		if after := diskWrites(t, device); after != before || !strings.HasSuffix(after, " 0") {
			return fmt.Errorf("writes %s, before %s", after, before)
		}
		return nil
	})
	n.Kill()
	for _, pid := range machines {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	eventually(t, waitShort, "the old disk is free", func() error {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			return fmt.Errorf("umount: %w: %s", err, out)
		}
		return nil
	})
	if err := os.Rename(left, image); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", "-o", "loop", image, mount)
	info, err := os.Stat(unsynced)
	lost = err != nil || info.Size() == 0
	t.Logf("power was lost under %d machines; what nobody had synced is lost: %v", len(machines), lost)
	return lost
}

// diskWrites is how many writes and discards a loop device has done, and how many of its requests are
// under way (the kernel's Documentation/block/stat.rst).
func diskWrites(t *testing.T, device string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data))
	if len(f) < 12 {
		t.Fatalf("statistics of %s are %q", device, data)
	}
	return strings.Join([]string{f[4], f[11], f[8]}, " ")
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// restartAfterPowerLoss starts the node's process again, and checks what is to hold after any loss of power.
func restartAfterPowerLoss(t *testing.T, n *cluster.Node) {
	t.Helper()
	if pids := n.MachinePIDs(); len(pids) > 0 {
		t.Fatalf("machines %v survived", pids)
	}
	// What was published is whole on the disk before anybody uses it.
	if out, err := vkFirkin(t, "snapshot", "verify", "--state-dir", n.StateDir); err != nil {
		t.Errorf("snapshots after the loss of power: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if aside, _ := filepath.Glob(filepath.Join(n.StateDir, "snapshots", ".quarantine", "*")); len(aside) > 0 {
		t.Errorf("snapshots were put aside: %q", aside)
	}
	if unclear := metric(t, n, "vk_firkin_quarantined_machines"); unclear != 0 {
		t.Errorf("of %v machines it is not clear whose they are", unclear)
	}
	log, err := os.ReadFile(n.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if bad := regexp.MustCompile(`.*(cannot be read|could not be read|unreadable).*`).Find(log); bad != nil {
		t.Errorf("the node could not read something: %s", bad)
	}
}

// hog takes and gives back this host's memory, so that as much is available as it is told.
type hog struct {
	mu     sync.Mutex
	target int64 // guarded by mu; 0: as much as there is
	stop   chan struct{}
	done   sync.WaitGroup
	chunks [][]byte // of its goroutine
}

// hogChunk is the step of a hog, and hogMost how much it takes at most.
const (
	hogChunk = 32 << 20
	hogMost  = 4 << 30
)

func newHog(t *testing.T) *hog {
	h := &hog{stop: make(chan struct{})}
	h.done.Go(func() {
		for {
			h.regulate()
			select {
			case <-h.stop:
				h.shrink(0)
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() {
		close(h.stop)
		h.done.Wait()
	})
	return h
}

func (h *hog) leave(bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.target = bytes
}

func (h *hog) regulate() {
	h.mu.Lock()
	target := h.target
	h.mu.Unlock()
	if target == 0 {
		h.shrink(0)
		return
	}
	for available() > target+hogChunk && len(h.chunks) < hogMost/hogChunk {
		b, err := unix.Mmap(-1, 0, hogChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		h.chunks = append(h.chunks, b)
	}
	for available() < target-hogChunk && len(h.chunks) > 0 {
		h.shrink(len(h.chunks) - 1)
	}
}

func (h *hog) shrink(to int) {
	for len(h.chunks) > to {
		last := len(h.chunks) - 1
		_ = unix.Munmap(h.chunks[last])
		h.chunks = h.chunks[:last]
	}
}

// available is the memory that this host can give without swapping.
func available() int64 {
	data, _ := os.ReadFile("/proc/meminfo")
	_, rest, _ := strings.Cut(string(data), "MemAvailable:")
	kib, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
	return kib << 10
}

// The host's memory really runs short: something that is no pod takes it. The node says so, gives up its warm
// machines, refuses a pod that did not say what it needs, and then ends the one pod that holds what lacks; its
// neighbour goes on. When there is memory again, so does the node.
func TestMemoryPressure(t *testing.T) {
	ns := poolNamespace(t)
	dir := nodeDir(t)
	const onNode = "nodeSelector: {kubernetes.io/hostname: short}"
	start := func(args ...string) *cluster.Node {
		t.Helper()
		n, err := startNode(t.Context(), dir, cluster.NodeOptions{Name: "short", Args: append(args, "--shapes", "1x1Gi", "--eviction-pressure-transition-period", "3s")})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the node:\n%s", lastLines(t, n.LogPath, 80))
		}
		n.Stop()
		forgetNode(t, n.Name)
	})
	on := func(name string, command ...string) string {
		return strings.Replace(podManifest(ns, name, served.Busybox, command...), "spec:\n", "spec:\n  nodeName: short\n", 1)
	}
	apply(t, strings.Replace(templateManifest(ns, "kept", simpleSetup), "256Mi", "1Gi", 1))
	apply(t, poolManifest(ns, "pool", "kept", 2, onNode))
	apply(t, on("neighbour", "sleep", "3600"))
	greedy := strings.Replace(on("greedy", "sh", "-c", "dd if=/dev/zero of=/m/x bs=1M count=600 && exec sleep 3600"), "  containers:", "  volumes: [{name: m, emptyDir: {medium: Memory}}]\n  containers:", 1) +
		"    volumeMounts: [{name: m, mountPath: /m}]\n"
	apply(t, greedy)
	waitRunning(t, ns, "neighbour")
	waitRunning(t, ns, "greedy")
	eventually(t, time.Minute, "the greedy pod has its memory", func() error {
		out, err := tryKubectl(t, "exec", "-n", ns, "greedy", "--", "stat", "-c", "%s", "/m/x")
		if err == nil && out != "629145600\n" {
			err = fmt.Errorf("it has %q", out)
		}
		return err
	})
	waitPool(t, ns, "pool", "is full", full(2))

	// Just below what is available, but for the margin by which a node must have more until it
	// says that it has enough again. Above it pools are not filled, so that they had to be before.
	n.Kill()
	threshold := (available() - 512<<20) * 10 / 11
	const lack = 250 << 20
	n = start("--eviction-hard", fmt.Sprintf("memory.available<%d", threshold))
	waitMemory(t, n, corev1.ConditionFalse)
	h := newHog(t)
	h.leave(threshold - lack)
	pressed := waitMemory(t, n, corev1.ConditionTrue)
	t.Logf("condition: %s: %s", pressed.Reason, pressed.Message)
	apply(t, on("refused", "sleep", "3600"))
	evicted := waitPodFor(t, 3*time.Minute, ns, "greedy", "is ended", refused)
	if want := regexp.MustCompile(`^The node was low on resource: memory. Threshold quantity: \d+[KMG]i, available: \d+[KMG]i. `); evicted.Status.Reason != "Evicted" || !want.MatchString(evicted.Status.Message) || podCondition(evicted, corev1.DisruptionTarget) != corev1.ConditionTrue {
		t.Errorf("the greedy pod: %s: %s, %+v", evicted.Status.Reason, evicted.Status.Message, evicted.Status.Conditions)
	}
	if p := waitPod(t, ns, "refused", "is refused", refused); p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, "MemoryPressure") {
		t.Errorf("the refused pod says %s: %s", p.Status.Reason, p.Status.Message)
	}
	steps := reliefSteps(t, n)
	if want := []string{"StopRefills", "EvictWarm", "EvictWarm", "RefusePods", "EvictPod"}; !slices.Equal(steps, want) {
		t.Errorf("the host was relieved by %q, want %q", steps, want)
	}
	if p, err := getPod(t, ns, "neighbour"); err != nil || p.Status.Phase != corev1.PodRunning || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the neighbour: %v, %v", p, err)
	}
	waitPool(t, ns, "pool", "says why it is empty", func(p *v1alpha1.WarmPool) bool { return p.Status.Ready == 0 })

	h.leave(0)
	waitMemory(t, n, corev1.ConditionFalse)
	apply(t, on("afterwards", "sleep", "3600"))
	waitRunning(t, ns, "afterwards")
	if out := kubectl(t, "exec", "-n", ns, "neighbour", "--", "echo", "lives"); out != "lives\n" {
		t.Errorf("the neighbour says %q", out)
	}
}

// waitMemory waits for the condition of a node's memory.
func waitMemory(t *testing.T, n *cluster.Node, want corev1.ConditionStatus) (c corev1.NodeCondition) {
	t.Helper()
	eventually(t, 2*time.Minute, fmt.Sprintf("MemoryPressure of %s is %s", n.Name, want), func() error {
		if c = nodeCondition(t, n.Name, corev1.NodeMemoryPressure); c.Status != want {
			return fmt.Errorf("it is %s: %s", c.Status, c.Message)
		}
		return nil
	})
	return c
}

// reliefSteps are the steps that a node says it has taken for its memory, in their order.
func reliefSteps(t *testing.T, n *cluster.Node) (steps []string) {
	t.Helper()
	data, err := os.ReadFile(n.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)Relieving the host.* step=(\w+) resource=memory|Ending a pod for the node's sake`).FindAllStringSubmatch(string(data), -1) {
		if m[1] == "" {
			m[1] = "EvictPod"
		}
		steps = append(steps, m[1])
	}
	return steps
}
