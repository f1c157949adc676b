// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestAttributes: what the API server is asked about each route, in the kubelet's words.
func TestAttributes(t *testing.T) {
	for _, c := range []struct{ method, path, verb, subresources string }{
		{"GET", "/healthz", "get", "healthz proxy"},
		{"GET", "/healthz/ping", "get", "healthz proxy"},
		{"GET", "/healthzz", "get", "proxy"},
		{"GET", "/pods", "get", "pods proxy"},
		{"GET", "/pods/", "get", "pods proxy"},
		{"GET", "/runningpods/", "get", "pods proxy"},
		{"GET", "/configz", "get", "configz proxy"},
		{"GET", "/stats/summary", "get", "stats"},
		{"GET", "/stats/", "get", "stats"},
		{"POST", "/stats/container", "create", "stats"},
		{"GET", "/metrics", "get", "metrics"},
		{"GET", "/metrics/resource", "get", "metrics"},
		{"GET", "/metrics/probes", "get", "metrics"},
		{"GET", "/metrics/cadvisor", "get", "metrics"},
		{"GET", "/metricsx", "get", "proxy"},
		{"GET", "/logs/messages", "get", "log"},
		{"POST", "/checkpoint/ns/p/c", "create", "checkpoint"},
		{"GET", "/statusz", "get", "statusz"},
		{"GET", "/flagz", "get", "configz"},
		{"GET", "/containerLogs/ns/p/c", "get", "proxy"},
		{"HEAD", "/containerLogs/ns/p/c", "get", "proxy"},
		{"GET", "/exec/ns/p/c", "create", "proxy"},
		{"POST", "/exec/ns/p/c", "create", "proxy"},
		{"GET", "/attach/ns/p/c", "create", "proxy"},
		{"GET", "/portForward/ns/p", "create", "proxy"},
		{"POST", "/portForward/ns/p", "create", "proxy"},
		{"PUT", "/pods", "update", "pods proxy"},
		{"PATCH", "/pods", "patch", "pods proxy"},
		{"DELETE", "/pods", "delete", "pods proxy"},
		{"OPTIONS", "/pods", "", "pods proxy"},
		{"GET", "/", "get", "proxy"},
		{"GET", "//metrics", "get", "proxy"},
		{"GET", "/debug/pprof/", "get", "proxy"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, "http://node"+c.path, http.NoBody)
		if got := verbOf(r); got != c.verb {
			t.Errorf("%s %s: verb is %q, want %q", c.method, c.path, got, c.verb)
		}
		if got := strings.Join(subresourcesOf(r.URL.Path), " "); got != c.subresources {
			t.Errorf("%s %s: subresources are %q, want %q", c.method, c.path, got, c.subresources)
		}
	}
}
