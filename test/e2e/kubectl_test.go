// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// tryKubectl runs kubectl for at most a minute.
func tryKubectl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return plane.Output(ctx, args...)
}

// kubectl runs kubectl and fails the story when it fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryKubectl(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies a manifest.
func apply(t *testing.T, manifest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := plane.Kubectl(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v: %s\n%s", err, out, manifest)
	}
}

// namespace makes a namespace for one story. After the story its pods are deleted
// and must be gone; a story that failed shows what the cluster knows first.
func namespace(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("_", "-", "/", "-").Replace(strings.TrimPrefix(t.Name(), "Test")))
	kubectl(t, "create", "namespace", name)
	// Pods are refused until the namespace has its service account.
	eventually(t, time.Minute, "default service account in "+name, func() error {
		_, err := tryKubectl(t, "get", "serviceaccount", "default", "-n", name)
		return err
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() {
			for _, args := range [][]string{{"get", "pods", "-o", "wide"}, {"describe", "pods"}, {"get", "events", "--sort-by=.lastTimestamp"}} {
				out, _ := plane.Output(ctx, append(args, "-n", name)...)
				t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
			}
		}
		if _, err := plane.Output(ctx, "delete", "pods", "--all", "-n", name, "--grace-period=1", "--timeout=90s"); err != nil {
			t.Errorf("delete the story's pods: %v", err)
		}
		if _, err := plane.Output(ctx, "delete", "namespace", name, "--wait=false"); err != nil {
			t.Errorf("delete namespace: %v", err)
		}
	})
	return name
}

func getPod(t *testing.T, ns, name string) (*corev1.Pod, error) {
	t.Helper()
	out, err := tryKubectl(t, "get", "pod", name, "-n", ns, "-o", "json")
	if err != nil {
		return nil, err
	}
	pod := &corev1.Pod{}
	return pod, json.Unmarshal([]byte(out), pod)
}

// waitPod waits until the pod satisfies the condition and returns it.
func waitPod(t *testing.T, ns, name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	return waitPodFor(t, 2*time.Minute, ns, name, what, ok)
}

// waitPodFor is waitPod with a limit of its own.
func waitPodFor(t *testing.T, limit time.Duration, ns, name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	eventually(t, limit, fmt.Sprintf("pod %s/%s %s", ns, name, what), func() error {
		p, err := getPod(t, ns, name)
		if err != nil {
			return err
		}
		pod = p
		if !ok(p) {
			status, _ := json.Marshal(p.Status)
			return fmt.Errorf("status is %s", status)
		}
		return nil
	})
	return pod
}

func waitRunning(t *testing.T, ns, name string) *corev1.Pod {
	t.Helper()
	return waitPod(t, ns, name, "is running and ready", func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				return p.Status.Phase == corev1.PodRunning && c.Status == corev1.ConditionTrue
			}
		}
		return false
	})
}

func waitGone(t *testing.T, ns, name string) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("pod %s/%s is gone", ns, name), func() error {
		_, err := tryKubectl(t, "get", "pod", name, "-n", ns)
		if err == nil {
			return fmt.Errorf("it is still there")
		}
		if !strings.Contains(err.Error(), "not found") {
			return err
		}
		return nil
	})
}

// waitEvent waits for an event on a pod with this reason whose message contains text.
func waitEvent(t *testing.T, ns, pod, reason, text string) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("event %s with %q on %s/%s", reason, text, ns, pod), func() error {
		out, err := tryKubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name="+pod+",reason="+reason,
			"-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
		if err != nil {
			return err
		}
		if !strings.Contains(out, text) {
			return fmt.Errorf("events are %q", out)
		}
		return nil
	})
}

// eventually asks until it gets nil. What it waits for happens in other processes,
// so there is no signal to wait on.
func eventually(t *testing.T, limit time.Duration, what string, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(250 * time.Millisecond) // each question is a process, and costs the host what the machines need
	}
}

// podManifest is a pod of one container.
func podManifest(ns, name, image string, command ...string) string {
	args, _ := json.Marshal(command)
	if command == nil {
		args = []byte("null")
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  tolerations: [{key: firkin.dev/machine, operator: Exists}]
  containers:
  - name: main
    image: %q
    command: %s
`, name, ns, image, args)
}

// tryApply applies a manifest that may be refused.
func tryApply(t *testing.T, manifest string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := plane.Kubectl(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// refused: the node will not run the pod.
func refused(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed }
