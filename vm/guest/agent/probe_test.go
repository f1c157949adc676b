// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestDecodeHealth(t *testing.T) {
	for _, test := range []struct {
		name string
		in   []byte
		want healthStatus
		ok   bool
	}{
		{"empty", nil, 0, true},
		{"serving", []byte{8, 1}, 1, true},
		{"the last counts", []byte{8, 1, 8, 2}, 2, true},
		{"unknown fields", append(protowire.AppendString([]byte{18}, "x"), 8, 1, 29, 0, 0, 0, 0), 1, true},
		{"another type", []byte{10, 1, 1}, 0, true},
		{"no tag", []byte{255}, 0, false},
		{"no number", []byte{8, 128}, 0, false},
		{"cut off", []byte{18, 5, 0}, 0, false},
	} {
		if got, err := decodeHealth(test.in); got != test.want || (err == nil) != test.ok {
			t.Errorf("%s: %v, %v", test.name, got, err)
		}
	}
}

func FuzzDecodeHealth(f *testing.F) {
	for _, b := range [][]byte{nil, {8, 1}, {18, 5, 0}, {16, 5, 8, 2}, {255}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeHealth(b); err != nil && s != 0 || s.String() == "" {
			t.Errorf("%v, %v", s, err)
		}
	})
}

// FuzzProbeAnswer gives probes over HTTP and gRPC whatever bytes for an answer: they must
// end, and what is kept of it is bounded.
func FuzzProbeAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\nbody"))
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: /\r\nConnection: close\r\n\r\n"))
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_ = conn.SetDeadline(time.Now().Add(time.Second))
				_, _ = conn.Read(make([]byte, 1<<10))
				_, _ = conn.Write(answer)
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<20))
				_ = conn.Close()
			}
		}()
		defer func() { _ = l.Close(); <-served }()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		status, note, err := probeHTTP(req)
		if len(note) > maxProbeBody+100 || err == nil && (status < 200 || status > 399) {
			t.Errorf("http: %d, %d bytes, %v", status, len(note), err)
		}
		if err := probeGRPC(ctx, l.Addr().String(), ""); err == nil {
			t.Log("an answer by chance") // which fuzzing may well find
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// A probe leaves no connection behind: a container is asked every few seconds, also one
// whose server accepts and never answers.
func TestProbeGRPCHangsUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	const probes = 20
	ended := make(chan struct{}, probes)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
				ended <- struct{}{}
			}()
		}
	}()
	for range probes {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := probeGRPC(ctx, l.Addr().String(), ""); err == nil {
			t.Error("nobody answered")
		}
		cancel()
	}
	timeout := time.After(5 * time.Second)
	for i := range probes {
		select {
		case <-ended:
		case <-timeout:
			t.Fatalf("%d of %d connections are still open", probes-i, probes)
		}
	}
}
