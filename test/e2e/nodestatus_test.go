// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/images"
)

// echoImage is busybox with a program that speaks UDP.
func echoImage(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "udpecho")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./udpecho")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+runtime.GOARCH, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build udpecho: %v: %s", err, out)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := images.Layer(images.File("bin/udpecho", 0o755, string(content)))
	if err != nil {
		t.Fatal(err)
	}
	base, err := images.Busybox(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(base, layer)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := served.registries[0].Push("udpecho:1", image)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Ports of the host lead into the machine, TCP and UDP; a pod that wants one that is taken
// is refused with the kubelet's reason. The pod knows its addresses, and reaches others by UDP.
func TestHostPort(t *testing.T) {
	ns := namespace(t)
	tcp, udp := freePort(t), freePort(t)
	outside, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := outside.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = outside.WriteTo(bytes.ToUpper(buf[:n]), from)
		}
	}()
	image := echoImage(t)
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: %[1]s}
spec:
  nodeName: %[2]s
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: %[3]s
    command: [sh, -c, "mkdir /www; echo on $POD_IP of $HOST_IP > /www/index.html; exec httpd -f -p 8080 -h /www"]
    env:
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    ports: [{containerPort: 8080, hostPort: %[4]d}]
  - name: echo
    image: %[3]s
    command: [udpecho, listen, ":5353"]
    ports: [{containerPort: 5353, hostPort: %[5]d, hostIP: 127.0.0.1, protocol: UDP}]
`, ns, node.Name, image, tcp, udp))
	pod := waitRunning(t, ns, "server")
	if pod.Status.PodIP != node.IP || len(pod.Status.PodIPs) != 1 || pod.Status.HostIP != node.IP || len(pod.Status.HostIPs) != 1 {
		t.Errorf("addresses are %+v %+v", pod.Status.PodIPs, pod.Status.HostIPs)
	}
	eventually(t, waitShort, "the web server at the host's port", func() error {
		client := http.Client{Timeout: 5 * time.Second}
		resp, err := client.Get(fmt.Sprintf("http://%s/", net.JoinHostPort(node.IP, strconv.Itoa(tcp))))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && string(body) != "on "+node.IP+" of "+node.IP+"\n" {
			err = fmt.Errorf("it served %q", body)
		}
		return err
	})
	eventually(t, waitShort, "the UDP server at the host's port", func() error {
		c, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", udp))
		if err != nil {
			return err
		}
		defer c.Close()
		for _, word := range []string{"one", "two"} { // one flow
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write([]byte(word)); err != nil {
				return err
			}
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err == nil && string(buf[:n]) != "you said "+word {
				err = fmt.Errorf("it answered %q", buf[:n])
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if out := kubectl(t, "exec", "-n", ns, "server", "-c", "echo", "--", "udpecho", "ask", strings.Replace(outside.LocalAddr().String(), "127.0.0.1", "10.0.2.2", 1), "loud"); out != "LOUD\n" {
		t.Errorf("the world answered %q by UDP", out)
	}

	manifest := strings.Replace(podManifest(ns, "second", served.Busybox, "true"), "spec:\n", "spec:\n  nodeName: "+node.Name+"\n", 1)
	apply(t, manifest+fmt.Sprintf("    ports: [{containerPort: 1, hostPort: %d}]\n", tcp))
	second := waitPod(t, ns, "second", "is refused", refused)
	if second.Status.Reason != "NodePorts" || !strings.Contains(second.Status.Message, fmt.Sprint(tcp)) {
		t.Errorf("status is %s: %s", second.Status.Reason, second.Status.Message)
	}
	kubectl(t, "delete", "pod", "-n", ns, "server", "second")
	if c, err := net.Dial("tcp4", net.JoinHostPort(node.IP, strconv.Itoa(tcp))); err == nil {
		_ = c.Close()
		t.Error("the port is open after its pod")
	}
}

func getNode(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n := &corev1.Node{}
	if err := json.Unmarshal([]byte(kubectl(t, "get", "node", name, "-o", "json")), n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The node tells what it is, what it has and how it is.
func TestNodeObject(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "image", served.Busybox, "true"))
	waitPod(t, ns, "image", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	n := getNode(t, node.Name)
	for kind, want := range map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady: corev1.ConditionTrue, corev1.NodeDiskPressure: corev1.ConditionFalse,
		corev1.NodeMemoryPressure: corev1.ConditionFalse, corev1.NodePIDPressure: corev1.ConditionFalse,
	} {
		i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == kind })
		if i < 0 || n.Status.Conditions[i].Status != want || n.Status.Conditions[i].Message == "" || n.Status.Conditions[i].Reason == "" {
			t.Errorf("condition %s is not %s with a reason and a message: %+v", kind, want, n.Status.Conditions)
		}
	}
	info := n.Status.NodeInfo
	if !strings.HasPrefix(info.KubeletVersion, "v1.") || !strings.HasPrefix(info.ContainerRuntimeVersion, "firkin://") || info.BootID == "" || info.KernelVersion == "" || info.OSImage == "" {
		t.Errorf("node info is %+v", info)
	}
	for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourcePods, corev1.ResourceEphemeralStorage} {
		if q := n.Status.Allocatable[resource]; q.Sign() <= 0 {
			t.Errorf("allocatable %s is %s", resource, q.String())
		}
	}
	eventually(t, waitShort, "the image in the node's status", func() error { // it is looked at every 10 s
		for _, i := range getNode(t, node.Name).Status.Images {
			if slices.Contains(i.Names, served.Busybox) && i.SizeBytes > 100_000 {
				return nil
			}
		}
		return fmt.Errorf("images are %+v", n.Status.Images)
	})
}

// The Node authorizer lets a node have what its pods name, one by one, and the node never
// asks for more. A DaemonSet's pod runs on it.
func TestSecretsOneByOne(t *testing.T) {
	ns := namespace(t)
	kubectl(t, "create", "secret", "generic", "used", "-n", ns, "--from-literal=word=hush")
	kubectl(t, "create", "secret", "generic", "unused", "-n", ns, "--from-literal=word=other")
	kubectl(t, "create", "configmap", "used", "-n", ns, "--from-literal=word=loud")
	apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: reader, namespace: %s}
spec:
  selector: {matchLabels: {app: reader}}
  template:
    metadata: {labels: {app: reader}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %s}
      terminationGracePeriodSeconds: 1
      volumes: [{name: map, configMap: {name: used}}]
      containers:
      - name: main
        image: %s
        command: [sh, -c, 'echo $WORD $(cat /map/word); exec sleep 3600']
        env: [{name: WORD, valueFrom: {secretKeyRef: {name: used, key: word}}}]
        volumeMounts: [{name: map, mountPath: /map}]
`, ns, node.Name, served.Busybox))
	eventually(t, time.Minute, "the DaemonSet is ready", func() error {
		out, err := tryKubectl(t, "get", "daemonset", "reader", "-n", ns, "-o", "jsonpath={.status.numberReady}")
		if err == nil && out != "1" {
			err = fmt.Errorf("%s pods are ready", out)
		}
		return err
	})
	eventually(t, waitShort, "its output", func() error {
		out, err := tryKubectl(t, "logs", "-n", ns, "daemonset/reader")
		if err == nil && out != "hush loud\n" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	can := func(args ...string) string {
		out, _ := tryKubectl(t, append(append([]string{"auth", "can-i"}, args...), "--as=system:node:"+node.Name, "--as-group=system:nodes")...)
		answer, _, _ := strings.Cut(strings.TrimSpace(out), " ") // a reason may follow
		return answer
	}
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"yes", []string{"get", "secret/used", "-n", ns}}, {"no", []string{"get", "secret/unused", "-n", ns}},
		{"no", []string{"list", "secrets", "-A"}}, {"no", []string{"list", "secrets", "-n", ns}}, {"no", []string{"watch", "secrets", "-A"}},
		{"no", []string{"list", "configmaps", "-A"}}, {"no", []string{"list", "configmaps", "-n", ns}},
	} {
		if got := can(tt.args...); got != tt.want {
			t.Errorf("node can %s: %s, want %s", strings.Join(tt.args, " "), got, tt.want)
		}
	}
	// A list that is refused is tried again for ever, and logged each time. A get may be
	// refused: of what a pod named that was deleted just then.
	log, err := os.ReadFile(node.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "forbidden") && (strings.Contains(line, "cannot list resource") || strings.Contains(line, "cannot watch resource")) {
			t.Errorf("the node asked for what it may not: %s", line)
		}
	}
	kubectl(t, "delete", "daemonset", "reader", "-n", ns)
}

// A node is drained, as far as disruption budgets let it; then told to stop it ends its
// pods, the critical ones last, and the API server knows why.
func TestDrainAndShutdown(t *testing.T) {
	ns := namespace(t)
	n := startOwnNode(t, cluster.NodeOptions{Name: "mac-drain", Args: []string{
		"--drain-on-shutdown", "--shutdown-grace-period", "8s", "--shutdown-grace-period-critical-pods", "4s", "--node-labels", "node.kubernetes.io/instance-type=mac2"}})
	if got := getNode(t, n.Name).Labels[corev1.LabelInstanceTypeStable]; got != "mac2" {
		t.Errorf("instance type is %q", got)
	}
	apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: service, namespace: %[1]s}
spec:
  selector: {matchLabels: {app: service}}
  template:
    metadata: {labels: {app: service}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %[2]s}
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: %[3]s, command: [sleep, "3600"]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: budget, namespace: %[1]s}
spec: {minAvailable: 1, selector: {matchLabels: {app: service}}}
`, ns, n.Name, served.Busybox))
	eventually(t, time.Minute, "the budget counts the pod", func() error {
		out, err := tryKubectl(t, "get", "pdb", "budget", "-n", ns, "-o", "jsonpath={.status.currentHealthy}")
		if err == nil && out != "1" {
			err = fmt.Errorf("%q pods are healthy", out)
		}
		return err
	})
	if out, err := tryKubectl(t, "drain", n.Name, "--ignore-daemonsets", "--timeout=2s"); err == nil || !strings.Contains(err.Error(), "disruption budget") {
		t.Errorf("drained against the budget: %s, %v", out, err)
	}
	kubectl(t, "delete", "pdb", "budget", "-n", ns)
	kubectl(t, "drain", n.Name, "--ignore-daemonsets", "--timeout=30s")
	if pids := n.MachinePIDs(); len(pids) != 0 {
		t.Errorf("machines %v run on a drained node", pids)
	}
	kubectl(t, "delete", "deployment", "service", "-n", ns)
	kubectl(t, "uncordon", n.Name)

	on := func(manifest, spec string) string {
		manifest = strings.Replace(manifest, "terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: 20", 1)
		return strings.Replace(manifest, "spec:\n", "spec:\n  nodeName: "+n.Name+"\n"+spec, 1)
	}
	last := `trap 'echo told; sleep 1; exit 0' TERM; while true; do sleep 0.1; done`
	apply(t, on(podManifest(ns, "plain", served.Busybox, "sh", "-c", last), ""))
	apply(t, on(podManifest(ns, "vital", served.Busybox, "sh", "-c", last), "  priorityClassName: system-node-critical\n"))
	waitRunning(t, ns, "plain")
	waitRunning(t, ns, "vital")
	if err := syscall.Kill(n.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var ended []time.Time
	for _, name := range []string{"plain", "vital"} {
		pod := waitPod(t, ns, name, "is ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if pod.Status.Reason != "Terminated" || pod.Status.Message != "Pod was terminated in response to imminent node shutdown." {
			t.Errorf("%s: %s: %s", name, pod.Status.Reason, pod.Status.Message)
		}
		state := pod.Status.ContainerStatuses[0].State.Terminated
		if state == nil || state.ExitCode != 0 {
			t.Fatalf("%s: it did not end by itself: %+v", name, pod.Status.ContainerStatuses[0].State)
		}
		ended = append(ended, state.FinishedAt.Time)
	}
	if ended[1].Before(ended[0].Add(time.Second)) { // it was told after the other had ended, and takes a second
		t.Errorf("the critical pod ended at %s, the other at %s", ended[1], ended[0])
	}
	ready := func() string {
		for _, c := range getNode(t, n.Name).Status.Conditions {
			if c.Type == corev1.NodeReady {
				return string(c.Status) + " " + c.Message
			}
		}
		return ""
	}
	if got := ready(); got != "False node is shutting down" {
		t.Errorf("ready is %q", got)
	}
	eventually(t, waitShort, "nothing runs any more", func() error {
		if err := syscall.Kill(n.PID(), 0); err == nil {
			return fmt.Errorf("the node process runs")
		}
		if pids := n.MachinePIDs(); len(pids) != 0 {
			return fmt.Errorf("machines %v run", pids)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.Start(ctx); err != nil { // and it may come back
		t.Fatal(err)
	}
}
