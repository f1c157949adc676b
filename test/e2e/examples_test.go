// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// example is a manifest of examples/ as it is, but for where its image comes from.
func example(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../examples", file))
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`image: busybox:1(\s)`)
	if !image.Match(data) {
		t.Fatalf("%s has not the image that the stories have", file)
	}
	return image.ReplaceAllString(string(data), "image: "+served.Busybox+"$1")
}

// applyExample applies a manifest of examples/ in a namespace.
func applyExample(t *testing.T, ns, manifest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := plane.Kubectl(ctx, "apply", "-n", ns, "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v: %s\n%s", err, out, manifest)
	}
}

// CI jobs run one by one in machines of a pool's template, each in one that nobody used before.
func TestExampleCIRunners(t *testing.T) {
	ns := poolNamespace(t)
	machines := func() (sum float64) {
		for _, path := range []string{"warm", "restore", "build"} {
			sum += checkouts(t, node, path)
		}
		return sum
	}
	before := machines()
	applyExample(t, ns, example(t, "ci-runners/runners.yaml"))
	// A template is built for the first of them.
	eventually(t, waitBuild, "the jobs are done", func() error {
		out := kubectl(t, "get", "job", "ci", "-n", ns, "-o", `jsonpath={.status.conditions[?(@.status=="True")].type}`)
		if strings.Contains(out, "Failed") {
			t.Fatalf("the job has failed: %s", kubectl(t, "describe", "job", "ci", "-n", ns))
		}
		if !strings.Contains(out, "Complete") {
			return fmt.Errorf("conditions are %q", out)
		}
		return nil
	})
	said := kubectl(t, "logs", "-n", ns, "-l", "app=ci-runner", "--tail=-1")
	for i := range 4 {
		if got := regexp.MustCompile(fmt.Sprintf(`(?m)^job %d on ci-%d finds all modules$`, i, i)).FindAllString(said, -1); len(got) != 1 {
			t.Errorf("job %d said %q; all: %s", i, got, said)
		}
	}
	if out := kubectl(t, "get", "job", "ci", "-n", ns, "-o", "jsonpath={.status.succeeded} {.status.failed} {.status.completedIndexes}"); out != "4  0-3" {
		t.Errorf("the job is %q", out)
	}
	if got := machines() - before; got != 4 {
		t.Errorf("%v machines for 4 jobs", got)
	}
	waitPool(t, ns, "ci-runner", "is full again", full(2))
}

// The horizontal pod autoscaler of kube-controller-manager fills a pool as a queue grows.
func TestExampleAutoscaledPool(t *testing.T) {
	needsEmbedded(t, "the metric is served by this host, which its API server may not reach")
	ns := poolNamespace(t)
	queue := serveQueue(t, ns)
	queue.Store(3)
	applyExample(t, ns, example(t, "autoscaled-pool/pool.yaml"))
	waitPool(t, ns, "worker", "has a machine for each job that waits", func(p *v1alpha1.WarmPool) bool { return *p.Spec.Replicas == 3 && full(3)(p) })
	out := kubectl(t, "get", "hpa", "worker", "-n", ns, "-o", `jsonpath={.status.desiredReplicas} {range .status.conditions[?(@.status=="True")]}{.type} {end}`)
	if !strings.HasPrefix(out, "3 ") || !strings.Contains(out, "AbleToScale") || !strings.Contains(out, "ScalingActive") {
		t.Errorf("the autoscaler says %q", out)
	}
	kubectl(t, "delete", "hpa", "worker", "-n", ns)
}

// serveQueue serves the length of a queue by the API of external metrics, as an adapter does.
func serveQueue(t *testing.T, ns string) *atomic.Int64 {
	t.Helper()
	const root = "/apis/external.metrics.k8s.io/v1beta1"
	length := &atomic.Int64{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+root, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"external.metrics.k8s.io/v1beta1","resources":[]}`)
	})
	mux.HandleFunc("GET "+root+"/namespaces/"+ns+"/ci_jobs_queued", func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("labelSelector"); got != "queue=default" {
			http.Error(w, "no queue "+got, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","metadata":{},"items":[{"metricName":"ci_jobs_queued","metricLabels":{"queue":"default"},"timestamp":%q,"value":"%d"}]}`,
			time.Now().UTC().Format(time.RFC3339), length.Load())
	})
	// An endpoint may not be on loopback, and the API server goes to endpoints.
	address := hostAddress(t)
	listener, err := net.Listen("tcp4", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}}
	server.StartTLS()
	t.Cleanup(server.Close)
	applyExample(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: queue}
spec: {ports: [{name: https, port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: queue, labels: {kubernetes.io/service-name: queue}}
addressType: IPv4
ports: [{name: https, port: %d}]
endpoints: [{addresses: [%q], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  group: external.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: queue, namespace: %s, port: 443}
`, listener.Addr().(*net.TCPAddr).Port, address, ns))
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := tryOutput("get", "apiservice/v1beta1.external.metrics.k8s.io", "-o", "jsonpath={.status}")
			hpa, _ := tryOutput("describe", "hpa", "-n", ns)
			t.Logf("the API service is %s\n%s", out, hpa)
		}
		_, _ = tryOutput("delete", "apiservice", "v1beta1.external.metrics.k8s.io")
	})
	kubectl(t, "wait", "--for=condition=Available", "--timeout=55s", "apiservice/v1beta1.external.metrics.k8s.io")
	return length
}

// The example of a web server runs as it is, but for the image's registry and the host's port. (The
// demo applies the other examples.)
func TestExampleWeb(t *testing.T) {
	ns := namespace(t)
	port := freePort(t)
	manifest := strings.Replace(example(t, "web.yaml"), "hostPort: 8080", fmt.Sprintf("hostPort: %d", port), 1)
	manifest = strings.Replace(manifest, "name: web\n", "name: web\n  namespace: "+ns+"\n", 1)
	apply(t, manifest)
	pod := waitPod(t, ns, "web", "is ready", func(p *corev1.Pod) bool { return podCondition(p, corev1.PodReady) == corev1.ConditionTrue })
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(fmt.Sprintf("http://%s:%d/", pod.Status.HostIP, port))
	if err != nil {
		t.Fatal(err) // it is ready, so it answers
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "served from web\n" {
		t.Errorf("it served %q, %v", body, err)
	}
	kubectl(t, "delete", "pod", "-n", ns, "web")
	waitGone(t, ns, "web")
}
