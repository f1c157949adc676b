// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// witness is told by each program that it starts.
type witness struct {
	address string

	mu   sync.Mutex
	seen map[string]int // guarded by mu
}

func startWitness(t *testing.T) *witness {
	t.Helper()
	w := &witness{seen: map[string]int{}}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen[strings.TrimPrefix(r.URL.Path, "/")]++
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	// In a machine's own network this is the host's loopback.
	w.address = "http://10.0.2.2:" + u.Port() + "/"
	return w
}

// url is what the program of a pod asks for when it starts.
func (w *witness) url(pod string) string { return w.address + pod }

// starts is how often a pod's program began.
func (w *witness) starts(pod string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[pod]
}

// total is how many starts were seen.
func (w *witness) total() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, s := range w.seen {
		n += s
	}
	return n
}
