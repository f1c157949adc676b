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

// hijackWatcher tells when a hijacked connection cannot be read any more: the client
// is gone, or this side has closed it. The streaming libraries read all the time,
// and do not say when it ends.
type hijackWatcher struct {
	http.ResponseWriter
	lost func()
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
