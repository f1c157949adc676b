// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// simulatedMac is a node whose driver is vz, over a simulated Mac: the product from the
// API server down to the seam below which Virtualization.framework would be.
type simulatedMac struct {
	*cluster.Node
	host string
}

// startSimulatedMac starts one for the story of a namespace. Pods come to it by name.
func startSimulatedMac(t *testing.T, ns, name string) *simulatedMac {
	t.Helper()
	host := nodeDir(t)
	m := &simulatedMac{host: host}
	// Clones have the machine identifier of their snapshot.
	m.change(t, func(h *simulator.Host) { h.RestoresIdentifierInUse = true })
	m.Node = startOwnNode(t, cluster.NodeOptions{
		Name:   name,
		Binary: filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin-vzsim"),
		// Its guests have the architecture of this host, as the stories' images do.
		Env:  []string{"FIRKIN_SIMULATED_HOST=" + host, "FIRKIN_SIMULATED_ARCH=" + runtime.GOARCH},
		Args: []string{"--driver", "vz"},
	})
	t.Cleanup(func() { // before the node is stopped: nobody would end its pods for most of a minute
		if t.Failed() {
			return // what there is, is shown
		}
		for _, kind := range []string{"warmpools", "pods"} {
			if out, err := tryOutput("delete", kind, "--all", "-n", ns, "--timeout=60s"); err != nil {
				t.Errorf("delete the story's %s: %v: %s", kind, err, out)
			}
		}
		m.empty(t)
	})
	waitPrepared(t, m.Node)
	return m
}

// change changes the Mac under its node and machines.
func (m *simulatedMac) change(t *testing.T, change func(*simulator.Host)) {
	t.Helper()
	if err := simulator.ChangeHost(m.host, change); err != nil {
		t.Fatal(err)
	}
}

// pod is a pod of one container that runs on this node.
func (m *simulatedMac) pod(ns, name string, command ...string) string {
	return strings.Replace(podManifest(ns, name, served.Busybox, command...), "spec:\n", "spec:\n  nodeName: "+m.Name+"\n", 1)
}

// selector brings pools and their pods to this node.
func (m *simulatedMac) selector() string {
	return "nodeSelector: {kubernetes.io/hostname: " + m.Name + "}"
}

// empty waits until machines have left nothing on the host.
func (m *simulatedMac) empty(t *testing.T) {
	t.Helper()
	eventually(t, waitShort, "machines leave nothing behind on "+m.Name, func() error {
		if left := m.Remnants(); len(left) > 0 {
			return fmt.Errorf("there are %q", left)
		}
		return nil
	})
}

// restart kills the node process and starts the next one.
func (m *simulatedMac) restart(t *testing.T, pause time.Duration) {
	t.Helper()
	m.Kill()
	time.Sleep(pause) // pods go on while nobody listens
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// snapshots are the directories of the whole snapshots on the node, and those that were
// put aside.
func (m *simulatedMac) snapshots() (whole, quarantined []string) {
	whole, _ = filepath.Glob(filepath.Join(m.StateDir, "snapshots", "*", "manifest.json"))
	quarantined, _ = filepath.Glob(filepath.Join(m.StateDir, "snapshots", ".quarantine", "*"))
	return whole, quarantined
}

// waitLogs waits for the whole output of a pod.
func waitLogs(t *testing.T, ns, name, want string) {
	t.Helper()
	eventually(t, waitShort, "output of "+name, func() error {
		if out := kubectl(t, "logs", "-n", ns, name); out != want {
			return fmt.Errorf("logs are %q, want %q", out, want)
		}
		return nil
	})
}

// privateBytes is the memory that nobody shares with a process.
func privateBytes(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for line := range strings.Lines(string(data)) {
		if key, rest, _ := strings.Cut(line, ":"); strings.HasPrefix(key, "Private_") {
			var kib int
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				total += kib
			}
		}
	}
	return fmt.Sprintf("%.1f MiB", float64(total)/1024)
}

// webServer serves text on the host's address that is not the loopback's: a machine's own
// network does not lead there.
func webServer(t *testing.T, text string) (url string) {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.To4() == nil || n.IP.IsLoopback() || n.IP.IsLinkLocalUnicast() {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(n.IP.String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintln(w, text)
		})}}
		s.Start()
		t.Cleanup(s.Close)
		return s.URL
	}
	t.Skip("this host has no address but the loopback's, which machines must not reach")
	return ""
}

// An ordinary pod on a Mac: restored from a snapshot, it prints, reaches the world, is
// entered, ends with its code, and leaves nothing.
func TestVZPod(t *testing.T) {
	ns := namespace(t)
	m := startSimulatedMac(t, ns, "vz-pod")
	url := webServer(t, "the world")
	restores := checkouts(t, m.Node, "restore")

	apply(t, m.pod(ns, "hello", "sh", "-c", "echo hello from $(hostname); exec sleep 3600"))
	waitRunning(t, ns, "hello")
	waitLogs(t, ns, "hello", "hello from hello\n")
	if got := checkouts(t, m.Node, "restore"); got != restores+1 {
		t.Errorf("%v checkouts by restore, want %v", got, restores+1)
	}
	pids := m.MachinePIDs()
	if len(pids) != 1 || m.Hypervisor(pids[0]) == 0 {
		t.Fatalf("machines are %v (%q), want one shim with a guest", pids, m.Remnants())
	}
	t.Logf("private memory: shim %s, its guest's QEMU %s", privateBytes(t, pids[0]), privateBytes(t, m.Hypervisor(pids[0])))
	if out := kubectl(t, "exec", "-n", ns, "hello", "--", "cat", "/proc/version"); !strings.HasPrefix(out, "Linux version") {
		t.Errorf("the guest's kernel says %q", out)
	}
	if _, err := tryKubectl(t, "exec", "-n", ns, "hello", "--", "sh", "-c", "exit 5"); err == nil || !strings.Contains(err.Error(), "exit code 5") {
		t.Errorf("exec of what exits with 5: %v", err)
	}
	// The machine's own network: out to the host's address, and to its nameserver, which asks
	// what the host asks. No name is known in every place that this runs in, but that one
	// (RFC 6761 section 6.4) which is nobody's.
	if out := kubectl(t, "exec", "-n", ns, "hello", "--", "wget", "-q", "-O", "-", url); out != "the world\n" {
		t.Errorf("the world says %q", out)
	}
	if out := kubectl(t, "exec", "-n", ns, "hello", "--", "sh", "-c", "nslookup story.invalid || true"); !strings.Contains(out, "10.0.2.3") || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("asked for a name that nobody has, the nameserver says %q", out)
	}
	// And not to the host's loopback, by none of its names.
	_, port, err := net.SplitHostPort(served.Address)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := tryKubectl(t, "exec", "-n", ns, "hello", "--", "timeout", "5", "wget", "-q", "-O", "-", "http://10.0.2.2:"+port+"/v2/"); err == nil {
		t.Errorf("the host's loopback answers a machine: %q", out)
	}

	apply(t, m.pod(ns, "broken", "sh", "-c", "echo last words >&2; exit 7"))
	pod := waitPod(t, ns, "broken", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if state := pod.Status.ContainerStatuses[0].State.Terminated; state == nil || state.ExitCode != 7 || state.Reason != "Error" {
		t.Errorf("terminated state is %+v, want exit code 7", state)
	}
	waitLogs(t, ns, "broken", "last words\n")
	for _, phase := range []string{"restore", "agent", "total"} {
		labels := []string{`phase="` + phase + `"`, `path="restore"`}
		t.Logf("phase %s by restore: %.0f ms in the mean", phase, 1000*
			metric(t, m.Node, "vk_firkin_pod_start_phase_seconds_sum", labels...)/metric(t, m.Node, "vk_firkin_pod_start_phase_seconds_count", labels...))
	}
}

// A template and a pool on a Mac: machines stand ready, pods check them out, the pool
// fills again; without the pool the template's snapshot is restored.
func TestVZPool(t *testing.T) {
	ns := poolNamespace(t)
	m := startSimulatedMac(t, ns, "vz-pool")
	apply(t, templateManifest(ns, "ready", simpleSetup, `start: {command: [httpd, -f, -p, "8181", -h, /opt]}`, `readiness: {httpGet: {port: 8181, path: /file}}`))
	apply(t, poolManifest(ns, "pool", "ready", 2, m.selector()))
	waitPool(t, ns, "pool", "is full", full(2))
	warm := checkouts(t, m.Node, "warm")
	for i := range 2 {
		apply(t, templatePod(ns, fmt.Sprintf("user-%d", i), "ready", m.selector()))
	}
	for i := range 2 {
		name := fmt.Sprintf("user-%d", i)
		waitRunning(t, ns, name)
		waitLogs(t, ns, name, "prepared\n")
		if out := kubectl(t, "exec", "-n", ns, name, "--", "wget", "-q", "-O", "-", "http://127.0.0.1:8181/file"); out != "prepared\n" {
			t.Errorf("%s: the process that was started in the template says %q", name, out)
		}
	}
	if got := checkouts(t, m.Node, "warm"); got != warm+2 {
		t.Errorf("%v warm checkouts, want %v", got, warm+2)
	}
	t.Logf("total by warm checkout: %.0f ms in the mean", 1000*
		metric(t, m.Node, "vk_firkin_pod_start_phase_seconds_sum", `phase="total"`, `path="warm"`)/metric(t, m.Node, "vk_firkin_pod_start_phase_seconds_count", `phase="total"`, `path="warm"`))
	waitPool(t, ns, "pool", "is full again, with two in use", func(p *v1alpha1.WarmPool) bool { return full(2)(p) && p.Status.Active == 2 })
	if pids := m.MachinePIDs(); len(pids) != 4 {
		t.Errorf("machines are %v, want two warm and two of pods", pids)
	}

	// With a locked screen what stands ready is still checked out; the pool is filled when the
	// screen is unlocked, from the snapshot that it was filled from before.
	whole, _ := m.snapshots()
	m.change(t, func(h *simulator.Host) { h.ScreenLocked = true })
	apply(t, templatePod(ns, "locked", "ready", m.selector()))
	waitRunning(t, ns, "locked")
	if got := checkouts(t, m.Node, "warm"); got != warm+3 {
		t.Errorf("%v warm checkouts with a locked screen, want %v", got, warm+3)
	}
	waitPool(t, ns, "pool", "says that it cannot be filled", func(p *v1alpha1.WarmPool) bool {
		return p.Status.Ready == 1 && len(p.Status.Nodes) == 1 && p.Status.Nodes[0].SkipReason == "Backoff"
	})
	m.change(t, func(h *simulator.Host) { h.ScreenLocked = false })
	waitPool(t, ns, "pool", "is full after the screen was unlocked", full(2))
	if now, aside := m.snapshots(); !slices.Equal(whole, now) || len(aside) != 0 {
		t.Errorf("snapshots are %q, put aside %q; before %q", now, aside, whole)
	}

	kubectl(t, "delete", "warmpool", "pool", "-n", ns)
	kubectl(t, "delete", "pods", "--all", "-n", ns, "--grace-period=1", "--timeout=60s")
	m.empty(t)
	restored := checkouts(t, m.Node, "restore")
	apply(t, templatePod(ns, "later", "ready", m.selector()))
	waitRunning(t, ns, "later")
	if got := checkouts(t, m.Node, "restore"); got != restored+1 {
		t.Errorf("%v checkouts by restore, want %v", got, restored+1)
	}
}

// The node process is killed: its shims and their machines go on, and the next process
// takes over pods and warm machines. Then shims are killed: each takes its own machine
// along, and nothing else.
func TestVZProcessesKilled(t *testing.T) {
	ns := poolNamespace(t)
	m := startSimulatedMac(t, ns, "vz-kill")
	apply(t, templateManifest(ns, "kept", simpleSetup))
	apply(t, poolManifest(ns, "pool", "kept", 1, m.selector()))
	always := strings.Replace(m.pod(ns, "returns", "sh", "-c", "echo here; exec sleep 3600"), "restartPolicy: Never", "restartPolicy: Always", 1)
	apply(t, m.pod(ns, "writer", "sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done")+"---\n"+always)
	returns := waitRunning(t, ns, "returns")
	// Which of the machines is whose: the one that came last.
	writer := waitRunning(t, ns, "writer")
	waitPool(t, ns, "pool", "is full", full(1))
	eventually(t, waitBuild, "three machines", func() error {
		if ready, made := metric(t, m.Node, "vk_firkin_pool_entries", `state="ready"`), len(m.MachinePIDs()); ready != 1 || made != 3 {
			return fmt.Errorf("%v entries are ready, of %d machines", ready, made)
		}
		return nil
	})
	before := m.MachinePIDs()

	for range 2 { // twice: what was adopted must be fit to be adopted again
		m.restart(t, 2*time.Second)
		eventually(t, time.Minute, "the next process knows the warm machine", func() error {
			if ready := metric(t, m.Node, "vk_firkin_pool_entries", `state="ready"`); ready != 1 {
				return fmt.Errorf("%v entries are ready", ready)
			}
			return nil
		})
	}
	if after := m.MachinePIDs(); !slices.Equal(before, after) {
		t.Errorf("machines are processes %v, before the kills %v", after, before)
	}
	for _, was := range []*corev1.Pod{writer, returns} {
		is, then := waitRunning(t, ns, was.Name).Status.ContainerStatuses[0], was.Status.ContainerStatuses[0]
		if is.ContainerID != then.ContainerID || is.RestartCount != then.RestartCount || !is.State.Running.StartedAt.Equal(&then.State.Running.StartedAt) {
			t.Errorf("%s: container is %+v after the kills, was %+v", was.Name, is, then)
		}
		if out := kubectl(t, "exec", "-n", ns, was.Name, "--", "echo", "still here"); out != "still here\n" {
			t.Errorf("%s: exec gave %q", was.Name, out)
		}
	}
	countedLines(t, ns, "writer", 40)
	warm := checkouts(t, m.Node, "warm")
	apply(t, templatePod(ns, "checks-out", "kept", m.selector()))
	waitRunning(t, ns, "checks-out")
	waitLogs(t, ns, "checks-out", "prepared\n")
	if got := checkouts(t, m.Node, "warm"); got != warm+1 {
		t.Errorf("%v warm checkouts after the kills, want %v", got, warm+1)
	}
	kubectl(t, "delete", "warmpool", "pool", "-n", ns)

	// Never: the pod fails, and says why.
	apply(t, m.pod(ns, "ends", "sleep", "3600"))
	waitRunning(t, ns, "ends")
	m.killShim(t, ns, "ends")
	ends := waitPod(t, ns, "ends", "has failed", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed && p.Status.ContainerStatuses[0].State.Terminated != nil
	})
	if text := ends.Status.Message + ends.Status.ContainerStatuses[0].State.Terminated.Message; !strings.Contains(text, "shim") || !strings.Contains(text, "killed") {
		t.Errorf("the pod says %q, want that its shim was killed; status %+v", text, ends.Status)
	}
	// Always: it runs again, in another machine.
	m.killShim(t, ns, "returns")
	again := waitPod(t, ns, "returns", "runs again", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses[0]
		return p.Status.Phase == corev1.PodRunning && s.State.Running != nil && s.RestartCount == 1
	})
	if last := again.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || !strings.Contains(last.Message, "shim") {
		t.Errorf("the last run ended with %+v, want that its shim was killed", last)
	}
	// Nobody else noticed.
	countedLines(t, ns, "writer", 60)
	for _, name := range []string{"writer", "checks-out"} {
		if p := waitRunning(t, ns, name); p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s: restarted", name)
		}
	}
}

// killShim kills the shim of a pod's machine as the kernel would, and waits until the
// guest has gone with it.
func (m *simulatedMac) killShim(t *testing.T, ns, pod string) {
	t.Helper()
	shim := m.MachinePID(machineOf(t, ns, pod))
	guest := m.Hypervisor(shim)
	if shim == 0 || guest == 0 {
		t.Fatalf("pod %s has no shim and guest among %q", pod, m.Remnants())
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitShort, "the guest ends with its shim", func() error {
		if err := syscall.Kill(guest, 0); err == nil {
			return fmt.Errorf("process %d runs", guest)
		}
		return nil
	})
}

// machineOf is the id of the machine that a pod has said that it runs in.
func machineOf(t *testing.T, ns, pod string) string {
	t.Helper()
	out := kubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name="+pod+",reason=MachineRestored", "-o", "jsonpath={.items[0].message}")
	var id string
	if _, err := fmt.Sscanf(out, "Machine %s of", &id); err != nil {
		t.Fatalf("event %q: %v", out, err)
	}
	return id
}

// countedLines checks that a pod's log is "line 1" to the last line, none lost and none
// twice.
func countedLines(t *testing.T, ns, pod string, least int) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(kubectl(t, "logs", "-n", ns, pod)), "\n")
	if len(lines) < least {
		t.Errorf("%s: only %d lines, want at least %d", pod, len(lines), least)
	}
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", i+1); line != want {
			t.Errorf("%s: line %d of the log is %q, want %q", pod, i+1, line, want)
			return
		}
	}
}

// The screen of the Mac is locked, as macOS does by itself: nothing can be restored, the
// pod's machine is booted and the pod says why, and the snapshot, which is whole, is kept
// and restored when the screen is unlocked. Then the Mac gets
// another macOS: its snapshots are of no use any more, and are made anew by themselves.
func TestVZScreenAndUpgrade(t *testing.T) {
	ns := namespace(t)
	m := startSimulatedMac(t, ns, "vz-host")
	apply(t, m.pod(ns, "before", "sleep", "3600"))
	waitRunning(t, ns, "before")
	old, _ := m.snapshots()

	m.change(t, func(h *simulator.Host) { h.ScreenLocked = true })
	booted, restored := checkouts(t, m.Node, "cold"), checkouts(t, m.Node, "restore")
	locked := []string{"locked-0", "locked-1"} // a snapshot that failed twice without a cause would be put aside
	for _, name := range locked {
		apply(t, m.pod(ns, name, "echo", "ran"))
	}
	for _, name := range locked {
		waitPod(t, ns, name, "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		waitLogs(t, ns, name, "ran\n")
		waitEvent(t, ns, name, "HostNotReady", "screen is locked")
	}
	if got := checkouts(t, m.Node, "cold"); got != booted+2 {
		t.Errorf("%v machines were booted with a locked screen, want %v", got, booted+2)
	}
	if out := kubectl(t, "exec", "-n", ns, "before", "--", "echo", "lives"); out != "lives\n" {
		t.Errorf("the pod that ran before says %q", out)
	}
	m.change(t, func(h *simulator.Host) { h.ScreenLocked = false })
	apply(t, m.pod(ns, "unlocked", "echo", "ran"))
	waitPod(t, ns, "unlocked", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if got := checkouts(t, m.Node, "restore"); got != restored+1 {
		t.Errorf("%v checkouts by restore, want %v: the screen is unlocked", got, restored+1)
	}
	if whole, aside := m.snapshots(); !slices.Equal(whole, old) || len(aside) != 0 {
		t.Errorf("snapshots are %q, put aside %q; before %q", whole, aside, old)
	}

	m.Kill()
	m.change(t, func(h *simulator.Host) { h.OSVersion, h.OSBuild = "15.6", "24G84" })
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, m.pod(ns, "after", "echo", "ran on the new build"))
	waitPod(t, ns, "after", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	waitLogs(t, ns, "after", "ran on the new build\n")
	eventually(t, waitShort, "a snapshot of the new build", func() error {
		whole, _ := m.snapshots()
		if !slices.ContainsFunc(whole, func(s string) bool { return !slices.Contains(old, s) }) {
			return fmt.Errorf("snapshots are %q", whole)
		}
		return nil
	})
	// The machines that ran go on, for the simulator as for an update that waits for a restart.
	if out := kubectl(t, "exec", "-n", ns, "before", "--", "echo", "lives"); out != "lives\n" {
		t.Errorf("the pod that ran before says %q", out)
	}
}
