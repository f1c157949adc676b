// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// interactive is podManifest's pod with a standard input.
func interactive(ns, name, fields string, command ...string) string {
	return strings.Replace(podManifest(ns, name, served.Busybox, command...), "- name: main\n", "- name: main\n    "+fields+"\n", 1)
}

// A user attaches to a container: what is typed reaches it, what it says comes back, its
// input ends with the user's; a terminal follows the window; kubectl run cleans up.
func TestAttach(t *testing.T) {
	ns := namespace(t)
	apply(t, interactive(ns, "plain", "stdin: true\n    stdinOnce: true", "sh", "-c", "cat; echo bye >&2; exit 3"))
	apply(t, interactive(ns, "tty", "stdin: true\n    tty: true", "sh"))
	waitRunning(t, ns, "plain")
	run := func(stdin string, args ...string) (stdout, stderr string, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := plane.Kubectl(ctx, args...)
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
		err = cmd.Run()
		return out.String(), errs.String(), err
	}
	long := strings.Repeat("0123456789abcde\n", 10_000)
	out, errs, err := run(long, "attach", "-n", ns, "plain", "-i")
	if err != nil || out != long || !strings.Contains(errs, "bye") {
		t.Errorf("attach gave back %d bytes of %d and %q: %v", len(out), len(long), errs, err)
	}
	pod := waitPod(t, ns, "plain", "has ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if code := pod.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != 3 {
		t.Errorf("exit code is %d, want 3", code)
	}
	if _, errs, err := run("", "attach", "-n", ns, "plain"); err == nil {
		t.Errorf("attach to a container that has ended: %q", errs)
	}

	waitRunning(t, ns, "tty")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	terminal := openTerminal(t)
	terminal.resize(t, 100, 30)
	terminal.attach(t, plane.Kubectl(ctx, "attach", "-n", ns, "tty", "-it"))
	terminal.send(t, "\necho $((40+2)); sleep 1; stty size\n")
	terminal.expect(t, "42")
	terminal.expect(t, "30 100")
	terminal.resize(t, 81, 41)
	terminal.send(t, "sleep 1; stty size\n")
	terminal.expect(t, "41 81")
	terminal.send(t, "exit 4\n")
	terminal.wait(t)
	pod = waitPod(t, ns, "tty", "has ended", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if code := pod.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != 4 {
		t.Errorf("the shell's exit code is %d, want 4", code)
	}

	out, errs, err = run("line\n", "run", "once", "-n", ns, "-i", "--rm", "--restart=Never", "--image="+served.Busybox, "--", "sh", "-c", "read x; echo got $x")
	if err != nil || !strings.Contains(out, "got line\n") {
		t.Errorf("kubectl run says %q and %q: %v", out, errs, err)
	}
	waitGone(t, ns, "once")
}

// forward runs kubectl port-forward and returns the local addresses in the ports' order.
func forward(t *testing.T, ns, pod string, ports ...string) (addresses []string, errs *syncBuffer, exited <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	args := []string{"port-forward", "-n", ns, "pod/" + pod}
	for _, p := range ports {
		args = append(args, ":"+p)
	}
	cmd := plane.Kubectl(ctx, args...)
	errs = &syncBuffer{}
	cmd.Stderr = errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case lines <- s.Text():
			default:
			}
		}
		_ = cmd.Wait()
	}()
	t.Cleanup(func() { cancel(); <-done })
	for _, p := range ports {
		for found := false; !found; {
			select {
			case line := <-lines:
				if address, ok := strings.CutSuffix(line, " -> "+p); ok && strings.Contains(address, "127.0.0.1") {
					addresses, found = append(addresses, strings.TrimPrefix(address, "Forwarding from ")), true
				}
			case <-done:
				t.Fatalf("kubectl port-forward ended: %s", errs)
			case <-time.After(waitShort):
				t.Fatalf("kubectl port-forward does not forward port %s: %s", p, errs)
			}
		}
	}
	return addresses, errs, done
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A user forwards ports to a pod: two at once, many connections, a large download; a
// closed port is an error, while others go on; the end of the pod ends it.
func TestPortForward(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "web", served.Busybox, "sh", "-c",
		"mkdir /a /b; echo one > /a/index.html; echo two > /b/index.html; yes 0123456789abcde | head -c 8388608 > /a/big; httpd -p 127.0.0.1:8080 -h /a; exec httpd -f -p 8081 -h /b"))
	waitRunning(t, ns, "web")
	get := func(url string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	eventually(t, waitShort, "both servers", func() error {
		_, err := tryKubectl(t, "exec", "-n", ns, "web", "--", "sh", "-c", "wget -q -O- 127.0.0.1:8080/ && wget -q -O- 127.0.0.1:8081/")
		return err
	})
	addresses, errs, exited := forward(t, ns, "web", "8080", "8081")
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if out, err := get("http://" + addresses[i%2] + "/"); err != nil || out != []string{"one\n", "two\n"}[i%2] {
				t.Errorf("port %d served %q, %v; kubectl says %s", i%2, out, err, errs)
			}
		})
	}
	all.Wait()
	if out, err := get("http://" + addresses[0] + "/big"); err != nil || len(out) != 8<<20 {
		t.Errorf("8 MiB: got %d bytes, %v", len(out), err)
	}
	closed, closedErrs, _ := forward(t, ns, "web", "9")
	if out, err := get("http://" + closed[0] + "/"); err == nil {
		t.Errorf("a closed port served %q", out)
	}
	eventually(t, waitShort, "kubectl's complaint", func() error {
		if text := closedErrs.String(); !strings.Contains(text, "connection refused") {
			return fmt.Errorf("kubectl says %q", text)
		}
		return nil
	})
	if out, err := get("http://" + addresses[1] + "/"); err != nil || out != "two\n" {
		t.Errorf("after the error of a closed port: %q, %v", out, err)
	}
	kubectl(t, "delete", "pod", "-n", ns, "web", "--grace-period=0", "--force")
	eventually(t, waitShort, "the end of port-forward with its pod", func() error {
		_, _ = get("http://" + addresses[1] + "/") // kubectl notices by a failed connection
		select {
		case <-exited:
			return nil
		default:
			return fmt.Errorf("kubectl goes on: %s", errs)
		}
	})
}

// kubeletGet asks the node's kubelet API itself: the API server's proxy refuses a node on
// loopback.
func kubeletGet(t *testing.T, token, path string) (int, string) {
	t.Helper()
	port := kubectl(t, "get", "node", node.Name, "-o", "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(node.IP, port)+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	// As metrics-server with --kubelet-insecure-tls: it is about whom the node trusts.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The cluster's monitoring reads what pods use with a service account's token, as
// metrics-server does for kubectl top; whoever has no right to it is refused.
func TestMonitoring(t *testing.T) {
	ns := namespace(t)
	apply(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: monitor, namespace: `+ns+`}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: `+ns+`}
rules: [{apiGroups: [""], resources: [nodes/metrics, nodes/stats], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: `+ns+`}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: `+ns+`}
subjects: [{kind: ServiceAccount, name: monitor, namespace: `+ns+`}]
`)
	t.Cleanup(func() { _, _ = tryOutput("delete", "clusterrole,clusterrolebinding", ns) })
	apply(t, strings.Replace(podManifest(ns, "busy", served.Busybox, "sh", "-c", "head -c 3000000 /dev/zero > /vol/x; while :; do :; done"),
		"- name: main\n", "- name: main\n    volumeMounts: [{name: v, mountPath: /vol}]\n", 1)+"  volumes: [{name: v, emptyDir: {}}]\n")
	waitRunning(t, ns, "busy")
	monitor := strings.TrimSpace(kubectl(t, "create", "token", "monitor", "-n", ns))
	other := strings.TrimSpace(kubectl(t, "create", "token", "default", "-n", ns))

	for _, c := range []struct {
		token, path string
		want        int
	}{
		{"", "/metrics/resource", 401}, {"", "/healthz", 401}, {"nonsense", "/stats/summary", 401},
		{other, "/metrics/resource", 403}, {other, "/stats/summary", 403}, {other, "/pods", 403},
		{monitor, "/pods", 403}, {monitor, "/containerLogs/" + ns + "/busy/main", 403}, {monitor, "/exec/" + ns + "/busy/main?command=id&output=1", 403},
		{monitor, "/metrics", 200}, {monitor, "/metrics/resource", 200}, {monitor, "/stats/summary", 200},
	} {
		if got, body := kubeletGet(t, c.token, c.path); got != c.want {
			t.Errorf("%s: got %d, want %d: %s", c.path, got, c.want, body)
		}
	}

	scrape := func() map[string]*dto.MetricFamily {
		parser := expfmt.NewTextParser(model.UTF8Validation)
		_, body := kubeletGet(t, monitor, "/metrics/resource")
		families, err := parser.TextToMetricFamilies(strings.NewReader(body))
		if err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return families
	}
	of := func(families map[string]*dto.MetricFamily, name, pod string) *dto.Metric {
		for _, m := range families[name].GetMetric() {
			if pod == "" {
				return m
			}
			for _, l := range m.GetLabel() {
				if l.GetName() == "pod" && l.GetValue() == pod {
					return m
				}
			}
		}
		return nil
	}
	first := scrape()
	eventually(t, waitShort, "the processor time of a busy container", func() error {
		second := scrape()
		for name, pod := range map[string]string{"container_cpu_usage_seconds_total": "busy", "pod_cpu_usage_seconds_total": "busy", "node_cpu_usage_seconds_total": ""} {
			a, b := of(first, name, pod), of(second, name, pod)
			if a == nil || b == nil {
				return fmt.Errorf("%s is missing", name)
			}
			took := float64(b.GetTimestampMs()-a.GetTimestampMs()) / 1000
			cores := (b.GetCounter().GetValue() - a.GetCounter().GetValue()) / took
			if took < 1 || cores < 0.05 || cores > 64 {
				return fmt.Errorf("%s: %.3f cores in %.1f s", name, cores, took)
			}
		}
		return nil
	})
	for name, pod := range map[string]string{"container_memory_working_set_bytes": "busy", "pod_memory_working_set_bytes": "busy", "node_memory_working_set_bytes": ""} {
		if m := of(first, name, pod); m.GetGauge().GetValue() < 100<<10 || m.GetTimestampMs() == 0 {
			t.Errorf("%s is %v", name, m)
		}
	}
	if m := of(first, "container_start_time_seconds", "busy"); time.Since(time.Unix(int64(m.GetGauge().GetValue()), 0)) > 10*time.Minute {
		t.Errorf("container_start_time_seconds is %v", m)
	}

	var summary statsv1alpha1.Summary
	_, body := kubeletGet(t, monitor, "/stats/summary")
	if err := json.Unmarshal([]byte(body), &summary); err != nil || summary.Node.NodeName != node.Name || summary.Node.Memory == nil || summary.Node.Fs == nil {
		t.Fatalf("summary of the node: %v: %s", err, body)
	}
	for _, p := range summary.Pods {
		if p.PodRef.Name != "busy" || p.PodRef.Namespace != ns {
			continue
		}
		if len(p.Containers) != 1 || *p.Containers[0].Memory.RSSBytes == 0 || *p.Containers[0].Memory.PageFaults == 0 || p.Network == nil || *p.Network.TxBytes == 0 ||
			*p.ProcessStats.ProcessCount != 1 || len(p.VolumeStats) == 0 || *p.EphemeralStorage.UsedBytes < 3_000_000 {
			t.Errorf("the pod's summary is incomplete: %s", body)
		}
		return
	}
	t.Errorf("the pod is not in the summary: %s", body)
}
