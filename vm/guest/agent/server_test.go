// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// flakyListener fails some times, then gives one stream, then waits.
type flakyListener struct {
	failures int
	conn     net.Conn
	closed   chan struct{}
}

var errFlaky = errors.New("no such device")

func (l *flakyListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, errFlaky
	}
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *flakyListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *flakyListener) Addr() net.Addr { return nil }

// serving is a server that only accepts.
func serving(t *testing.T) *Server {
	t.Helper()
	s, err := NewServer(Options{System: &stillSystem{dir: t.TempDir()}, Runtime: noRuntime{}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServeSurvivesAFailingListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inside, host := net.Pipe()
		l := &flakyListener{failures: 20, conn: inside, closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		s := serving(t)
		go func() { done <- s.Serve(ctx, l) }()
		greeting, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		if _, err := guest.Greet(greeting, host); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func TestServeGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &flakyListener{failures: 1 << 30, closed: make(chan struct{})}
		before := time.Now()
		if err := serving(t).Serve(t.Context(), l); !errors.Is(err, errFlaky) {
			t.Errorf("serve: %v", err)
		}
		if d := time.Since(before); d != acceptPatience {
			t.Errorf("it gave up after %v", d)
		}
	})
}

type stillSystem struct {
	System
	dir string
}

func (s *stillSystem) ScratchDir() string { return s.dir }

type noRuntime struct{ Runtime }
