// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// FuzzTunneledProtocol: whatever a client offers, only what is served is chosen, and
// only when it was offered.
func FuzzTunneledProtocol(f *testing.F) {
	for _, seed := range []string{"SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io", "SPDY/3.1+", "SPDY/3.1+x.k8s.io,,", " , ,"} {
		f.Add(seed, "")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		got := tunneledProtocol(http.Header{wsstream.WebSocketProtocolHeader: {one, two}})
		if got != "" && (got != "portforward.k8s.io" || !strings.Contains(one+two, "SPDY/3.1+portforward.k8s.io")) {
			t.Errorf("chose %q of %q and %q", got, one, two)
		}
	})
}

// FuzzDecodeSizes: what a client sends as its terminal's sizes ends the stream at worst.
func FuzzDecodeSizes(f *testing.F) {
	for _, seed := range []string{`{"Width":80,"Height":24}`, `{"Width":1}{"Height":2}`, `{"Width":-1}`, `{"Width":70000}`, `[`, ``, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		sizes := make(chan terminalSize)
		go decodeSizes(t.Context(), bytes.NewReader(data), sizes)
		n := 0
		for range sizes {
			n++
		}
		if n > len(data) {
			t.Errorf("%d sizes of %d bytes", n, len(data))
		}
	})
}

// FuzzParseLogRequest: a query that is taken has values within their bounds.
func FuzzParseLogRequest(f *testing.F) {
	for _, seed := range []string{"tailLines=0&limitBytes=5&follow=true&timestamps=1", "sinceSeconds=9223372036854775807", "sinceTime=2026-01-02T03:04:05Z&stream=All", "tailLines=-1", "previous=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		r, err := parseLogRequest(q, time.Unix(1_700_000_000, 0))
		if err != nil {
			return
		}
		if r.Tail != nil && *r.Tail < 0 || r.LimitBytes != nil && *r.LimitBytes < 1 || r.Stream != "" && r.Tail != nil {
			t.Errorf("took %q as %+v", query, r)
		}
	})
}
