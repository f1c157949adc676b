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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// standstill is a cluster of its own, whose parts are stopped.
type standstill struct {
	*cluster.ControlPlane
	node *cluster.Node
}

// Machines stand still, then the API server, and the node process with it: the machines that
// do not answer for longer than they may are replaced or fail, with a reason, and nothing else
// changes.
func TestStandstills(t *testing.T) {
	needsEmbedded(t, "the story stops the API server, of a control plane of its own")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir := nodeDir(t)
	plane, err := cluster.StartControlPlane(ctx, os.Getenv("FIRKIN_CONTROLPLANE"), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plane.Stop)
	// 15 s: a bystander on a host that emulates machines is late by seconds.
	n, err := plane.StartNode(ctx, cluster.NodeOptions{
		Name: "still", Dir: dir, Binary: filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"), Kits: os.Getenv("FIRKIN_KIT_DIR"),
		InsecureRegistries: served.Addresses(), Args: []string{"--no-taint", "--min-free-disk", "2Gi", "--refill-min-free-disk", "3Gi", "--machine-stuck-timeout", "15s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	s := &standstill{plane, n}
	s.out(t, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
	waitPrepared(t, n)

	s.run(t, "Always", "bystander", "while true; do date +%s; sleep 1; done", "always", "exec sleep 3600")
	s.run(t, "Never", "never", "exec sleep 3600")
	first := s.pod(t, "bystander")
	bystander, always, never := s.machine(t, "bystander"), s.machine(t, "always"), s.machine(t, "never")
	t.Run("Machines", func(t *testing.T) {
		for _, pid := range []int{never, always} {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		s.run(t, "Never", "newcomer", "true") // the node has time for others meanwhile
		pod := s.await(t, "never", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if x := pod.Status.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "MachineStuck" || !strings.Contains(x.Message, "has not answered for") || !strings.Contains(x.Message, "hypervisor does not answer either") {
			t.Errorf("the pod that is not restarted says %+v", pod.Status.ContainerStatuses[0].State)
		}
		pod = s.await(t, "always", "runs again", func(p *corev1.Pod) bool {
			return p.Status.Phase == corev1.PodRunning && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
		})
		if x := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; x == nil || x.Reason != "MachineStuck" {
			t.Errorf("the pod that is restarted says %+v", pod.Status.ContainerStatuses[0].LastTerminationState)
		}
		eventually(t, time.Minute, "the stopped processes have been ended", func() error {
			if pids := n.MachinePIDs(); slices.Contains(pids, never) || slices.Contains(pids, always) || len(pids) != 2 {
				return fmt.Errorf("machines %v run", pids)
			}
			return nil
		})
		for _, reason := range []string{"MachineNotAnswering", "MachineStuck"} {
			if events := s.out(t, "get", "events", "--field-selector", "reason="+reason, "-o", "jsonpath={.items[*].involvedObject.name}"); !strings.Contains(events, "never") || !strings.Contains(events, "always") || strings.Contains(events, "bystander") {
				t.Errorf("events %s are about %q", reason, events)
			}
		}
		s.untouched(t, first, bystander, 2)
	})
	t.Run("APIServerAndNodeProcess", func(t *testing.T) {
		s.run(t, "Never", "ends", "sleep 12; exit 3")
		s.run(t, "Always", "restarts", "test -e /keep/once && exec sleep 3600; touch /keep/once; sleep 12; exit 1")
		resume := s.Freeze(t)
		eventually(t, time.Minute, "the node knows of a pod that failed", func() error {
			if failed := metric(t, n, "vk_firkin_pods", `phase="Failed"`); failed != 2 { // with the one that was stuck
				return fmt.Errorf("%v pods have failed", failed)
			}
			return nil
		})
		known := time.Now()
		// Now the node process, too: as a Mac that sleeps, but that machines go on.
		if err := syscall.Kill(n.PID(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(17 * time.Second) // longer than any machine may be silent
		if err := syscall.Kill(n.PID(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * time.Second) // half of what a silent machine would have
		machines := n.MachinePIDs()
		resume()
		pod := s.await(t, "ends", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if x := pod.Status.ContainerStatuses[0].State.Terminated; x == nil || x.ExitCode != 3 || x.Reason != "Error" || x.FinishedAt.After(known) {
			t.Errorf("the pod that ended meanwhile, before %v, says %+v", known, x)
		}
		s.await(t, "restarts", "was restarted once", func(p *corev1.Pod) bool {
			c := p.Status.ContainerStatuses[0]
			return c.RestartCount == 1 && c.State.Running != nil && c.LastTerminationState.Terminated != nil && c.LastTerminationState.Terminated.ExitCode == 1
		})
		if !slices.Contains(machines, bystander) {
			t.Errorf("machines are %v, the bystander's was %d", machines, bystander)
		}
		s.untouched(t, first, bystander, 2)
	})
}

// Freeze stops the control plane's processes, and returns what lets them go on: connections
// stay open and nobody answers on them, which is worse than a server that is gone.
func (s *standstill) Freeze(t *testing.T) (resume func()) {
	t.Helper()
	pids := s.Components()
	if len(pids) == 0 {
		t.Fatal("the control plane has no components")
	}
	signal := func(sig syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil {
				t.Errorf("%s to a component of the control plane: %v", sig, err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	frozen := true
	resume = func() {
		if frozen {
			frozen = false
			signal(syscall.SIGCONT)
		}
	}
	t.Cleanup(resume)
	return resume
}

func (s *standstill) out(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	out, err := s.Output(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *standstill) pod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := json.Unmarshal([]byte(s.out(t, "get", "pod", name, "-o", "json")), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func (s *standstill) await(t *testing.T, name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	eventually(t, 2*time.Minute, "pod "+name+" "+what, func() error {
		if pod = s.pod(t, name); !ok(pod) {
			status, _ := json.Marshal(pod.Status)
			return fmt.Errorf("status is %s", status)
		}
		return nil
	})
	return pod
}

// run starts pods of one restart policy, each a name and a script, and waits until they have
// begun to run.
func (s *standstill) run(t *testing.T, policy string, podsAndScripts ...string) {
	t.Helper()
	var text strings.Builder
	for pod := range slices.Chunk(podsAndScripts, 2) {
		fmt.Fprintf(&text, `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: %s
  terminationGracePeriodSeconds: 1
  volumes: [{name: keep, emptyDir: {}}]
  containers:
  - {name: main, image: %q, command: [sh, -c, %q], volumeMounts: [{name: keep, mountPath: /keep}]}
---
`, pod[0], policy, served.Busybox, pod[1])
	}
	manifest := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(manifest, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s.out(t, "apply", "-f", manifest)
	for pod := range slices.Chunk(podsAndScripts, 2) {
		s.await(t, pod[0], "has begun", func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodPending })
	}
}

// machine is the process of the machine of a pod, by the node's record of the pod.
func (s *standstill) machine(t *testing.T, name string) int {
	t.Helper()
	record, err := os.ReadFile(filepath.Join(s.node.StateDir, "pods", string(s.pod(t, name).UID), "pod.json"))
	if err != nil {
		t.Fatal(err)
	}
	for id, pid := range s.node.Machines() {
		if strings.Contains(string(record), strconv.Quote(id)) {
			return pid
		}
	}
	t.Fatalf("pod %s runs in none of the machines %v", name, s.node.Machines())
	return 0
}

// untouched checks a pod that had nothing to do with it, and how many machines were stuck.
func (s *standstill) untouched(t *testing.T, was *corev1.Pod, machine int, stuck float64) {
	t.Helper()
	pod := s.pod(t, was.Name)
	if a, b := was.Status.ContainerStatuses[0], pod.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || b.RestartCount != 0 || b.State.Running == nil || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("the pod that had nothing to do with it was %+v and is %+v", a, b)
	}
	if pids := s.node.MachinePIDs(); !slices.Contains(pids, machine) {
		t.Errorf("machines are %v, the bystander's was %d", pids, machine)
	}
	if out := s.out(t, "exec", was.Name, "--", "echo", "here"); out != "here\n" {
		t.Errorf("the bystander says %q", out)
	}
	if got := metric(t, s.node, "vk_firkin_machine_health_total", `health="stuck"`); got != stuck {
		t.Errorf("%v machines were stuck, want %v", got, stuck)
	}
}
