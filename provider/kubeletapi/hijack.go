// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// hijackWatcher tells when a hijacked connection has ended: it cannot be read any
// more, or the streaming library has closed it, which it does when a client says
// goodbye. The libraries read all the time, and do not say when it ends.
type hijackWatcher struct {
	http.ResponseWriter
	lost func()

	mu   sync.Mutex
	conn *watchedConn // guarded by mu; nil until it is hijacked
}

// close closes the connection if it was hijacked.
func (h *hijackWatcher) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn != nil {
		_ = h.conn.Close()
	}
}

// Hijack implements http.Hijacker.
func (h *hijackWatcher) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over connection: %w", err)
	}
	// What the server has read already comes first.
	early := make([]byte, rw.Reader.Buffered())
	if _, err := io.ReadFull(rw.Reader, early); err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("take over connection: %w", err)
	}
	watched := &watchedConn{Conn: conn, lost: sync.OnceFunc(h.lost)}
	h.mu.Lock()
	h.conn = watched
	h.mu.Unlock()
	reader := bufio.NewReader(io.MultiReader(bytes.NewReader(early), watched))
	return watched, bufio.NewReadWriter(reader, rw.Writer), nil
}

type watchedConn struct {
	net.Conn
	lost func()
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.lost()
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.lost()
	return c.Conn.Close()
}
