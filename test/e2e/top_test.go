// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// `kubectl top` shows what a pod and its node use: the real metrics-server, with the rights that it has
// in every cluster and no more, scrapes the node.
func TestTop(t *testing.T) {
	program := os.Getenv("FIRKIN_METRICS_SERVER")
	if program == "" {
		t.Skip("metrics-server takes minutes to build: `make test-top` does so and runs this story")
	}
	ns := namespace(t)
	apply(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: metrics-server, namespace: `+ns+`}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: `+ns+`}
rules:
- {apiGroups: [""], resources: [nodes/metrics], verbs: [get]}
- {apiGroups: [""], resources: [pods, nodes], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: `+ns+`}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: `+ns+`}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: `+ns+`}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: `+ns+`-delegator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: `+ns+`}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: `+ns+`, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: `+ns+`}]
`)
	// An endpoint may not be on loopback, and the API server goes to endpoints.
	address := hostAddress(t)
	port := strconv.Itoa(serveMetrics(t, program, ns, address))
	apply(t, `
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: `+ns+`}
spec: {ports: [{name: https, port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: metrics-server, namespace: `+ns+`, labels: {kubernetes.io/service-name: metrics-server}}
addressType: IPv4
ports: [{name: https, port: `+port+`}]
endpoints: [{addresses: ["`+address+`"], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: metrics-server, namespace: `+ns+`, port: 443}
`)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := tryOutput("get", "apiservice", "v1beta1.metrics.k8s.io", "-o", "jsonpath={.status}")
			t.Logf("the API service is %s, %v", out, err)
		}
		_, _ = tryOutput("delete", "apiservice", "v1beta1.metrics.k8s.io")
		_, _ = tryOutput("delete", "clusterrole,clusterrolebinding", ns, ns+"-delegator")
		_, _ = tryOutput("delete", "rolebinding", "-n", "kube-system", ns)
	})
	apply(t, podManifest(ns, "busy", served.Busybox, "sh", "-c", "while :; do :; done"))
	waitPod(t, ns, "busy", "is running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })

	// It wants two scrapes of a pod, 10 s apart, the least that it allows.
	eventually(t, 2*time.Minute, "kubectl top", func() error {
		pods, err := tryKubectl(t, "top", "pod", "-n", ns, "busy", "--containers", "--no-headers")
		if err != nil {
			return err
		}
		if fields := strings.Fields(pods); len(fields) != 4 || fields[1] != "main" || amount(fields[2], "m") < 50 || amount(fields[3], "Mi") < 0 {
			return fmt.Errorf("the pod's line is %q, want at least 50m of a busy loop", pods)
		}
		nodes, err := tryKubectl(t, "top", "node", node.Name, "--no-headers")
		if err != nil {
			return err
		}
		if fields := strings.Fields(nodes); len(fields) != 5 || amount(fields[1], "m") < 50 || amount(fields[3], "Mi") < 50 {
			return fmt.Errorf("the node's line is %q", nodes)
		}
		return nil
	})
}

// serveMetrics runs metrics-server for the story and returns its port.
func serveMetrics(t *testing.T, program, ns, address string) int {
	t.Helper()
	dir := t.TempDir()
	kubeconfig, err := plane.AccountKubeconfig(t.Context(), ns, "metrics-server", filepath.Join(dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	log, err := os.Create(filepath.Join(dir, "metrics-server.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program,
		"--kubeconfig", kubeconfig, "--authentication-kubeconfig", kubeconfig, "--authorization-kubeconfig", kubeconfig,
		"--secure-port", strconv.Itoa(port), "--bind-address", address, "--cert-dir", filepath.Join(dir, "certificates"),
		"--metric-resolution", "10s", "--kubelet-request-timeout", "9s", "--kubelet-preferred-address-types", "InternalIP", "--kubelet-use-node-status-port", "--kubelet-insecure-tls")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			if said, err := os.ReadFile(log.Name()); err == nil {
				t.Logf("metrics-server said:\n%s", said)
			}
		}
	})
	return port
}

// hostAddress is the address that this host sends from.
func hostAddress(t *testing.T) string {
	t.Helper()
	conn, err := net.Dial("udp4", "192.0.2.1:9") // sends nothing
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// amount is the number before a unit, -1 when there is none.
func amount(s, unit string) int {
	n, err := strconv.Atoi(strings.TrimSuffix(s, unit))
	if err != nil || !strings.HasSuffix(s, unit) {
		return -1
	}
	return n
}
