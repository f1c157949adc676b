// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A user applies an ordinary pod; it runs in a restored machine, prints, is read,
// is entered, and goes.
func TestFirstPod(t *testing.T) {
	ns := namespace(t)
	waitPrepared(t, node) // before that it would be a boot, for a reason
	builds := metric(t, node, "vk_firkin_pod_start_phase_seconds_count", `phase="restore"`, `path="build"`)
	restores := metric(t, node, "vk_firkin_pod_start_phase_seconds_count", `phase="restore"`, `path="restore"`)

	apply(t, podManifest(ns, "hello", served.Busybox, "sh", "-c", "echo hello from $(hostname); exec sleep 3600"))
	pod := waitRunning(t, ns, "hello")

	status := pod.Status.ContainerStatuses[0]
	if status.State.Running == nil || status.State.Running.StartedAt.IsZero() {
		t.Errorf("container state is %+v, want running since a time", status.State)
	}
	if !strings.HasPrefix(status.ContainerID, "firkin://") || !strings.Contains(status.ImageID, "sha256:") {
		t.Errorf("container id %q, image id %q: want firkin:// and a digest", status.ContainerID, status.ImageID)
	}
	if pod.Status.HostIP != node.IP || pod.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("hostIP %q, qosClass %q", pod.Status.HostIP, pod.Status.QOSClass)
	}

	// Running is when the process was started; it needs a moment to speak.
	eventually(t, waitShort, "the greeting in the logs", func() error {
		if out := kubectl(t, "logs", "-n", ns, "hello"); out != "hello from hello\n" {
			return fmt.Errorf("logs are %q", out)
		}
		return nil
	})
	if out := kubectl(t, "exec", "-n", ns, "hello", "--", "cat", "/proc/version"); !strings.HasPrefix(out, "Linux version") {
		t.Errorf("the guest's kernel says %q", out)
	}

	kubectl(t, "delete", "pod", "-n", ns, "hello")
	waitGone(t, ns, "hello")

	// The base snapshot existed since the node was prepared: nothing booted.
	if got := metric(t, node, "vk_firkin_pod_start_phase_seconds_count", `phase="restore"`, `path="build"`); got != builds {
		t.Errorf("%v pods started by path build, want %v: a kernel booted for the pod", got, builds)
	}
	if got := metric(t, node, "vk_firkin_pod_start_phase_seconds_count", `phase="restore"`, `path="restore"`); got != restores+1 {
		t.Errorf("%v pods started by path restore, want %v", got, restores+1)
	}
}

// A container that ends tells how, and its pod's phase follows.
func TestExitCodes(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "fine", served.Busybox, "true"))
	apply(t, podManifest(ns, "broken", served.Busybox, "sh", "-c", "echo last words >&2; exit 7"))

	for _, want := range []struct {
		pod    string
		phase  corev1.PodPhase
		code   int32
		reason string
	}{
		{"fine", corev1.PodSucceeded, 0, "Completed"},
		{"broken", corev1.PodFailed, 7, "Error"},
	} {
		pod := waitPod(t, ns, want.pod, "has ended", func(p *corev1.Pod) bool { return p.Status.Phase == want.phase })
		state := pod.Status.ContainerStatuses[0].State.Terminated
		if state == nil || state.ExitCode != want.code || state.Reason != want.reason || state.FinishedAt.Before(&state.StartedAt) {
			t.Errorf("%s: terminated state is %+v, want exit code %d, reason %s", want.pod, state, want.code, want.reason)
		}
	}
	if out := kubectl(t, "logs", "-n", ns, "broken"); out != "last words\n" {
		t.Errorf("logs of the ended container are %q", out)
	}
}

// Two containers share the pod's network; each has its own root and processes.
func TestTwoContainers(t *testing.T) {
	ns := namespace(t)
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: pair, namespace: `+ns+`}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: shared, emptyDir: {}}, {name: fast, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
  containers:
  - name: server
    image: `+served.Busybox+`
    command: [sh, -c, "mkdir /www; echo from the other container > /www/index.html; echo data > /shared/file; exec httpd -f -p 8080 -h /www"]
    volumeMounts: [{name: shared, mountPath: /shared}, {name: fast, mountPath: /fast}]
  - name: client
    image: `+served.Busybox+`
    env:
    - {name: GREETING, value: "hi $(WHO)"}
    - {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    command: [sleep, "3600"]
    volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
`)
	waitRunning(t, ns, "pair")
	in := func(container string, command ...string) string {
		return kubectl(t, append([]string{"exec", "-n", ns, "pair", "-c", container, "--"}, command...)...)
	}
	eventually(t, waitShort, "the server answers its neighbour", func() error {
		_, err := tryKubectl(t, "exec", "-n", ns, "pair", "-c", "client", "--", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/")
		return err
	})
	if out := in("client", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/"); out != "from the other container\n" {
		t.Errorf("the neighbour served %q", out)
	}
	if out := in("client", "cat", "/shared/file"); out != "data\n" {
		t.Errorf("the shared volume has %q", out)
	}
	if _, err := tryKubectl(t, "exec", "-n", ns, "pair", "-c", "client", "--", "touch", "/shared/no"); err == nil {
		t.Error("a read-only mount was written to")
	}
	if out := in("server", "sh", "-c", "dd if=/dev/zero of=/fast/x bs=1M count=16 2>&1 | grep -c 'No space'"); strings.TrimSpace(out) != "1" {
		t.Errorf("a memory volume of 8 MiB took 16 MiB (%q)", out)
	}
	if out := in("client", "ls", "/"); strings.Contains(out, "www") {
		t.Errorf("the containers share a root: %q", out)
	}
	if out := in("client", "ps"); strings.Contains(out, "httpd") {
		t.Errorf("the containers share processes: %q", out)
	}
	// WHO is declared after GREETING, so the reference is not expanded: Kubernetes expands backwards only.
	if out := in("client", "sh", "-c", "echo $GREETING, $WHO"); out != "hi $(WHO), pair\n" {
		t.Errorf("environment is %q", out)
	}
	if out := in("client", "sh", "-c", "test -s /var/run/secrets/kubernetes.io/serviceaccount/token && test -s /var/run/secrets/kubernetes.io/serviceaccount/ca.crt && cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"); out != ns {
		t.Errorf("service account volume says namespace %q, want %q", out, ns)
	}
}
