// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// healthImage is busybox with the program healthd, which answers probes as files say.
var healthImage = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "healthd-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "healthd"), "github.com/vk-firkin/vk-firkin/test/images/healthd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build healthd: %w: %s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "healthd"))
	if err != nil {
		return "", err
	}
	base, err := images.Busybox(ctx, dir)
	if err != nil {
		return "", err
	}
	layer, err := images.Layer(images.File("bin/healthd", 0o755, string(program)))
	if err != nil {
		return "", err
	}
	image, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return "", err
	}
	return served.registries[0].Push("healthd:1", image)
})

func podCondition(p *corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

func podReady(want corev1.ConditionStatus) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && podCondition(p, corev1.PodReady) == want && podCondition(p, corev1.ContainersReady) == want
	}
}

// All kinds of probes decide over one pod: it is ready when a command, a request, a
// connection and the gRPC health service agree.
func TestReadinessProbes(t *testing.T) {
	image, err := healthImage()
	if err != nil {
		t.Fatal(err)
	}
	ns := namespace(t)
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: http
    image: %[2]s
    command: [healthd]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /ready, port: web}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
    livenessProbe: {tcpSocket: {port: web}, periodSeconds: 10, timeoutSeconds: 10, failureThreshold: 6}
  - name: exec
    image: %[2]s
    command: [sleep, "3600"]
    env: [{name: FILE, value: /tmp/ready}]
    readinessProbe: {exec: {command: [cat, $(FILE)]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
  - name: grpc
    image: %[2]s
    command: [sleep, "3600"]
    readinessProbe: {grpc: {port: 9090, service: serving}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
`, ns, image))
	ready := func(want map[string]bool) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Running == nil || c.Ready != want[c.Name] {
					return false
				}
			}
			return len(p.Status.ContainerStatuses) == 3
		}
	}
	in := func(container, command string) {
		kubectl(t, "exec", "-n", ns, "web", "-c", container, "--", "sh", "-c", command)
	}
	waitPod(t, ns, "web", "runs, and nothing is ready", ready(nil))
	// Of the other two it may be told already: client-go lets 25 events of a pod through.
	waitEvent(t, ns, "web", "Unhealthy", "Readiness probe failed: cat: can't open '/tmp/ready': No such file")
	in("http", "touch /tmp/ready")
	waitPod(t, ns, "web", "is ready by HTTP", ready(map[string]bool{"http": true}))
	in("exec", "touch /tmp/ready")
	waitPod(t, ns, "web", "is ready by a command", ready(map[string]bool{"http": true, "exec": true}))
	in("http", "touch /tmp/serving")
	p := waitPod(t, ns, "web", "is ready by gRPC", podReady(corev1.ConditionTrue))
	if !ready(map[string]bool{"http": true, "exec": true, "grpc": true})(p) {
		t.Errorf("statuses %+v", p.Status.ContainerStatuses)
	}
	in("http", "rm /tmp/ready")
	waitPod(t, ns, "web", "is not ready any more", podReady(corev1.ConditionFalse))
	if p, err := getPod(t, ns, "web"); err != nil || p.Status.ContainerStatuses[1].RestartCount != 0 {
		t.Errorf("%v, %v", p, err)
	}
}

// A container is alive when its startup probe says that it has started and its liveness probe
// does not fail; one that fails is ended and runs again.
func TestLivenessProbe(t *testing.T) {
	image, err := healthImage()
	if err != nil {
		t.Fatal(err)
	}
	ns := namespace(t)
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: %[1]s}
spec:
  terminationGracePeriodSeconds: 3600
  readinessGates: [{conditionType: example.com/gate}]
  initContainers:
  - name: sidecar
    image: %[2]s
    restartPolicy: Always
    command: [sh, -c, "sleep 2; touch /tmp/up; exec sleep 3600"]
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
  containers:
  - name: main
    image: %[2]s
    command: [sh, -c, "trap '' TERM; healthd & wait; sleep 3600"]
    ports: [{name: web, containerPort: 8080}]
    startupProbe: {httpGet: {path: /started, port: web}, periodSeconds: 3, timeoutSeconds: 10, failureThreshold: 60}
    livenessProbe: {httpGet: {path: /live, port: web}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2, terminationGracePeriodSeconds: 1}
`, ns, image))
	in := func(command string) { kubectl(t, "exec", "-n", ns, "web", "-c", "main", "--", "sh", "-c", command) }
	p := waitPod(t, ns, "web", "runs and has not started", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	if st := p.Status.ContainerStatuses[0]; *st.Started || st.Ready {
		t.Errorf("before the startup probe: %+v", st)
	}
	if st := p.Status.InitContainerStatuses[0]; !*st.Started || st.State.Running == nil || p.Status.ContainerStatuses[0].State.Running.StartedAt.Before(&st.State.Running.StartedAt) {
		t.Errorf("the sidecar: %+v", st)
	}
	waitEvent(t, ns, "web", "Unhealthy", "Startup probe failed: ")
	in("touch /tmp/live /tmp/started")
	p = waitPod(t, ns, "web", "has started", func(p *corev1.Pod) bool { return podCondition(p, corev1.ContainersReady) == corev1.ConditionTrue })
	if got := podCondition(p, corev1.PodReady); got != corev1.ConditionFalse || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("before its gate the pod's Ready is %s, restarts %d", got, p.Status.ContainerStatuses[0].RestartCount)
	}
	kubectl(t, "patch", "pod", "-n", ns, "web", "--subresource=status", "-p", `{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}`)
	waitPod(t, ns, "web", "is ready", podReady(corev1.ConditionTrue))
	in("rm /tmp/live")
	p = waitPod(t, ns, "web", "was restarted", func(p *corev1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 137 || *p.Status.ContainerStatuses[0].Started {
		t.Errorf("after the restart: %+v", p.Status.ContainerStatuses[0])
	}
	if p.Status.InitContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the sidecar was restarted: %+v", p.Status.InitContainerStatuses[0])
	}
	waitEvent(t, ns, "web", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503")
	waitEvent(t, ns, "web", "Killing", "Container main failed liveness probe, will be restarted")
	kubectl(t, "delete", "pod", "-n", ns, "web", "--grace-period=1")
}

// A node process that comes back leaves a ready pod ready, and asks its probes again.
func TestProbesOutliveTheNode(t *testing.T) {
	image, err := healthImage()
	if err != nil {
		t.Fatal(err)
	}
	ns := namespace(t)
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %[2]s
    command: [sh, -c, "touch /tmp/ready; exec sleep 3600"]
    startupProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
`, ns, image))
	before := waitPod(t, ns, "web", "is ready", podReady(corev1.ConditionTrue))
	node.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitShort, "the machine is adopted", func() error {
		out, err := tryKubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name=web,reason=MachineAdopted", "-o", "name")
		if err == nil && out == "" {
			err = errors.New("no event")
		}
		return err
	})
	after, err := getPod(t, ns, "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range after.Status.Conditions {
		for _, b := range before.Status.Conditions {
			if b.Type == c.Type && (b.Status != c.Status || !b.LastTransitionTime.Equal(&c.LastTransitionTime)) {
				t.Errorf("condition %s was %+v, is %+v", c.Type, b, c)
			}
		}
	}
	kubectl(t, "exec", "-n", ns, "web", "--", "rm", "/tmp/ready")
	waitPod(t, ns, "web", "is not ready any more", podReady(corev1.ConditionFalse))
}
