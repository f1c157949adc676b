// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// witness is told by each program that it starts, and that it is still there.
type witness struct {
	*sightings
	address string
}

func startWitness(t *testing.T) *witness {
	t.Helper()
	w := &witness{sightings: newSightings()}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		pod, run, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		w.see(pod, run)
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

// url is what the program of a pod asks for, with the name of its run behind it.
func (w *witness) url(pod string) string { return w.address + pod }
