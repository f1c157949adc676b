// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package guestport is a stream to a guest over a virtio-serial port of QEMU's, whose
// other end on the host is a unix socket.
//
// QEMU can lose such a stream (seen with 7.2): when the guest writes just as the host has
// closed an earlier one, QEMU notices the end inside the write, forgets that the port is
// throttled, and throttles it afterwards. The next stream is accepted and nothing comes
// out of the guest any more, until that one is closed as well. So a stream from which
// nothing was ever read is opened again after a while. What was written to it is lost,
// as it may be before a guest listens (see vm.Machine.DialGuest): protocols above repeat
// their greeting.
package guestport

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// firstWait is how long a new stream may be silent before it is opened again; each
	// further one may be twice as long, up to maxWait: a guest on a busy host is slow to
	// answer, and one that boots is silent for seconds.
	firstWait = time.Second
	maxWait   = 16 * time.Second
	// dialTimeout bounds an attempt. The socket is on this host.
	dialTimeout = 5 * time.Second
)

// Dial connects to the port's socket.
type Dial func(ctx context.Context) (net.Conn, error)

// Conn is a stream to a guest. It is a net.Conn: safe for one reader, one writer and any
// number of closers at once.
type Conn struct {
	dial Dial

	mu       sync.Mutex
	conn     net.Conn  // guarded by mu
	heard    bool      // guarded by mu; the guest has spoken: conn stays
	closed   bool      // guarded by mu
	deadline time.Time // guarded by mu; the reader's own
	write    time.Time // guarded by mu; the writer's own
	wait     time.Duration
	until    time.Time // when the silence of conn is over
}

// Open makes a stream.
func Open(ctx context.Context, dial Dial) (*Conn, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	return &Conn{dial: dial, conn: conn, wait: firstWait, until: time.Now().Add(firstWait)}, nil
}

// Read reads from the guest.
func (c *Conn) Read(b []byte) (int, error) {
	for {
		conn, quiet, err := c.listen()
		if err != nil {
			return 0, err
		}
		n, err := conn.Read(b)
		if n > 0 {
			c.hear()
		}
		if n > 0 || err == nil {
			return n, err
		}
		if !quiet || !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, c.ended(err)
		}
		if err := c.again(); err != nil {
			return 0, err
		}
	}
}

// ended is err, or that the stream was closed on this side.
func (c *Conn) ended(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return err
}

// listen sets the deadline of the next read. quiet: it is the end of the silence, if that
// comes before the reader's own.
func (c *Conn) listen() (conn net.Conn, quiet bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, net.ErrClosed
	}
	d := c.deadline
	if quiet = !c.heard && (d.IsZero() || c.until.Before(d)); quiet {
		d = c.until
	}
	_ = c.conn.SetReadDeadline(d) // of a stream that has ended: the read tells how
	return c.conn, quiet, nil
}

// hear ends the watch for silence.
func (c *Conn) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = true
}

// again opens the stream anew, unless the reader's deadline has passed: it may have been
// set while the read was under way.
func (c *Conn) again() error {
	c.mu.Lock()
	switch now := time.Now(); {
	case c.closed:
		c.mu.Unlock()
		return net.ErrClosed
	case !c.deadline.IsZero() && !now.Before(c.deadline):
		c.mu.Unlock()
		return os.ErrDeadlineExceeded
	case now.Before(c.until):
		c.mu.Unlock()
		return nil
	}
	old := c.conn
	c.mu.Unlock()
	_ = old.Close() // this is what QEMU needs to see
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close()
		return net.ErrClosed
	}
	c.conn = conn
	c.wait = min(2*c.wait, maxWait)
	c.until = time.Now().Add(c.wait)
	return conn.SetWriteDeadline(c.write)
}

// Write writes to the guest. What is written while the stream is opened anew is lost.
func (c *Conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	conn, heard, closed := c.conn, c.heard, c.closed
	c.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	n, err := conn.Write(b)
	if err == nil || heard || errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return n, net.ErrClosed
	}
	if c.conn != conn {
		return len(b), nil
	}
	// The reader finds out what became of the stream, and closes it for good or opens it
	// again.
	if errors.Is(err, net.ErrClosed) {
		return len(b), nil
	}
	return n, err
}

// Close ends the stream.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.conn.Close()
}

// LocalAddr is part of net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.current().LocalAddr() }

// RemoteAddr is part of net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.current().RemoteAddr() }

func (c *Conn) current() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// SetDeadline is part of net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline is part of net.Conn. It ends a read that is under way, if it has to.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if !c.heard && (t.IsZero() || c.until.Before(t)) {
		t = c.until
	}
	return c.conn.SetReadDeadline(t)
}

// SetWriteDeadline is part of net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return c.conn.SetWriteDeadline(t)
}
