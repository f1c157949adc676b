// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The example of a web server runs as it is, but for the registry and the host's port. (The
// demo applies the other examples.)
func TestExampleWeb(t *testing.T) {
	ns := namespace(t)
	data, err := os.ReadFile("../../examples/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	manifest := strings.ReplaceAll(string(data), "REGISTRY/busybox:latest", served.Busybox)
	manifest = strings.Replace(manifest, "hostPort: 8080", fmt.Sprintf("hostPort: %d", port), 1)
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
