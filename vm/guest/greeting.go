// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

const (
	markBytes  = 4
	nonceBytes = 16
	frameBytes = markBytes + nonceBytes

	markHello  = "FKH1"
	markAnswer = "FKA1"
	markStart  = "FKS1"

	// helloEvery is how often the host repeats its hello.
	helloEvery = 50 * time.Millisecond
	// helloBurst is how many equal hellos make one burst. A guest that still
	// believes in an earlier conversation takes this many in a row for a new one
	// (see Answer), so that one burst is enough to be heard.
	helloBurst = 3

	// maxStaleBytes bounds what a greeting drops: more than any earlier
	// conversation can have left in buffers, and a bound for a guest that sends
	// garbage forever.
	maxStaleBytes = 64 << 20
)

type frame [frameBytes]byte

func newFrame(mark string, nonce []byte) frame {
	var f frame
	copy(f[:], mark)
	copy(f[markBytes:], nonce)
	return f
}

func (f *frame) mark() string  { return string(f[:markBytes]) }
func (f *frame) nonce() []byte { return f[markBytes:] }

// errStale is a greeting drowned in bytes that are not of it.
var errStale = errors.New("too many bytes that belong to no greeting")

// Greet is the host's end of the greeting. On success the returned connection,
// which takes conn over, belongs to HTTP/2. On failure, by ctx, by an error of the
// stream or because the guest sends nothing but garbage, conn is closed and the
// error is vm.ErrUnavailable (and ctx.Err() when that was the reason). It blocks
// until the guest answers: ctx must have a deadline.
func Greet(ctx context.Context, conn net.Conn) (net.Conn, error) {
	nonce := make([]byte, nonceBytes)
	if _, err := rand.Read(nonce); err != nil {
		return nil, errors.Join(fmt.Errorf("greet guest: draw nonce: %w", err), conn.Close())
	}
	greeted, err := greet(ctx, conn, nonce)
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("greet guest: %w: %w", vm.ErrUnavailable, err)
	}
	return greeted, nil
}

func greet(ctx context.Context, conn net.Conn, nonce []byte) (net.Conn, error) {
	// Closing is the one way to end both directions on every kind of stream.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	answered := make(chan struct{})
	sent := make(chan error, 1)
	go func() { sent <- sendHellos(conn, nonce, answered) }()

	rest, readErr := awaitAnswer(conn, nonce)
	close(answered)
	if readErr != nil {
		// The sender may be blocked in a write that only a close ends.
		_ = conn.Close()
	}
	if err := <-sent; err != nil || readErr != nil {
		return nil, errors.Join(readErr, err)
	}
	start := newFrame(markStart, nonce)
	if _, err := conn.Write(start[:]); err != nil {
		return nil, fmt.Errorf("send start: %w", err)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return &pushbackConn{Conn: conn, rest: rest}, nil
}

// sendHellos repeats the hello until answered is closed.
func sendHellos(w io.Writer, nonce []byte, answered <-chan struct{}) error {
	hello := newFrame(markHello, nonce)
	burst := bytes.Repeat(hello[:], helloBurst)
	tick := time.NewTicker(helloEvery)
	defer tick.Stop()
	for {
		if _, err := w.Write(burst); err != nil {
			select {
			case <-answered:
				return nil
			default:
				return fmt.Errorf("send hello: %w", err)
			}
		}
		select {
		case <-answered:
			return nil
		case <-tick.C:
		}
	}
}

// awaitAnswer drops everything up to the answer to nonce and returns what followed it.
func awaitAnswer(r io.Reader, nonce []byte) ([]byte, error) {
	want := newFrame(markAnswer, nonce)
	buf := make([]byte, 0, 4096)
	dropped := 0
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if i := bytes.Index(buf, want[:]); i >= 0 {
			return bytes.Clone(buf[i+frameBytes:]), nil
		}
		if err != nil {
			return nil, fmt.Errorf("await answer: %w", err)
		}
		// Only the end can be the beginning of the answer.
		if over := len(buf) - (frameBytes - 1); over > 0 {
			dropped += over
			buf = buf[:copy(buf, buf[over:])]
		}
		if dropped > maxStaleBytes {
			return nil, errStale
		}
	}
}

// Answer is the guest's end of the greeting: it blocks until a host has greeted
// and returns the conversation on conn. Closing conn ends it. On failure conn has
// failed and is for the caller to close.
func Answer(conn net.Conn) (*Conversation, error) {
	return answer(conn, nil)
}

func answer(conn net.Conn, buf []byte) (*Conversation, error) {
	var nonce []byte // of the hello that was answered last
	for {
		for len(buf) >= frameBytes {
			f := frame(buf[:frameBytes])
			switch {
			case f.mark() == markHello:
				buf = buf[frameBytes:]
				if bytes.Equal(nonce, f.nonce()) {
					continue
				}
				nonce = bytes.Clone(f.nonce())
				reply := newFrame(markAnswer, nonce)
				if _, err := conn.Write(reply[:]); err != nil {
					return nil, fmt.Errorf("answer the host: %w", err)
				}
			case f.mark() == markStart && bytes.Equal(nonce, f.nonce()):
				return &Conversation{Conn: conn, rest: bytes.Clone(buf[frameBytes:])}, nil
			default:
				// No frame of ours: go on at the next byte that could begin one.
				if i := bytes.IndexByte(buf[1:], markHello[0]); i >= 0 {
					buf = buf[1+i:]
				} else {
					buf = nil
				}
			}
		}
		next := make([]byte, len(buf), 4096)
		copy(next, buf)
		n, err := conn.Read(next[len(next):cap(next)])
		buf = next[:len(next)+n]
		if err != nil && n == 0 {
			return nil, fmt.Errorf("await a host: %w", err)
		}
	}
}

// ErrNewHost means that another host began a conversation on a stream that was in use.
var ErrNewHost = errors.New("a new host greets on this stream")

// Conversation is the guest's stream after the greeting.
//
// A stream may carry a new host's greeting in the middle of the conversation with
// the last one: the port did not say that the host went away, or the machine was
// restored. A burst of equal hellos ends the conversation: Read fails with
// [ErrNewHost].
//
// Closing a conversation leaves the stream open for the next one, see [Conversation.Again].
type Conversation struct {
	net.Conn

	closed  atomic.Bool
	writing sync.Mutex // held while a write is under way

	reading sync.Mutex // held while a read is under way; guards what follows
	rest    []byte     // read from the stream, not yet given to the reader
	tail    []byte     // end of what was read, if a burst may have begun in it
	err     error      // what ended the stream or the conversation
}

// Read reads as net.Conn does, for one reader at a time.
func (c *Conversation) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	var n int
	var err error
	if len(c.rest) > 0 {
		n = copy(p, c.rest)
		c.rest = c.rest[n:]
	} else if !c.closed.Load() {
		n, err = c.Conn.Read(p)
	}
	if c.closed.Load() {
		// The bytes are the next conversation's.
		c.rest = append(bytes.Clone(p[:n]), c.rest...)
		c.err = err
		return 0, net.ErrClosed
	}
	c.err = err
	if hello := c.watch(p[:n]); hello != nil {
		c.rest = append(hello, c.rest...)
		c.err = ErrNewHost
		return 0, ErrNewHost
	}
	return n, err
}

// watch looks for a burst of equal hellos in what was read and returns it.
func (c *Conversation) watch(p []byte) []byte {
	// Nearly all reads end here: no mark, and none begun earlier.
	if len(c.tail) == 0 && bytes.IndexByte(p, markHello[0]) < 0 {
		return nil
	}
	data := slices.Concat(c.tail, p)
	for {
		i := bytes.IndexByte(data, markHello[0])
		if i < 0 {
			c.tail = nil
			return nil
		}
		data = data[i:]
		if !isBurst(data) {
			data = data[1:]
			continue
		}
		if len(data) < helloBurst*frameBytes {
			c.tail = bytes.Clone(data)
			return nil
		}
		return bytes.Clone(data)
	}
}

// isBurst reports whether b begins with a burst of equal hellos, or is the
// beginning of one.
func isBurst(b []byte) bool {
	b = b[:min(len(b), helloBurst*frameBytes)]
	if n := min(len(b), markBytes); string(b[:n]) != markHello[:n] {
		return false
	}
	for i := frameBytes; i < len(b); i++ {
		if b[i] != b[i-frameBytes] {
			return false
		}
	}
	return true
}

// Write writes as net.Conn does.
func (c *Conversation) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// Close ends the conversation and leaves the stream open. A Read that is under way
// ends when the stream next carries something or is closed.
func (c *Conversation) Close() error {
	c.closed.Store(true)
	return nil
}

// Again closes the conversation and blocks until the next host has greeted on the
// same stream. It fails when the stream has ended.
func (c *Conversation) Again() (*Conversation, error) {
	_ = c.Close()
	c.writing.Lock()
	defer c.writing.Unlock()
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.err != nil && !errors.Is(c.err, ErrNewHost) {
		return nil, fmt.Errorf("await a host: %w", c.err)
	}
	if err := c.Conn.SetDeadline(time.Time{}); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return nil, fmt.Errorf("await a host: %w", err)
	}
	return answer(c.Conn, c.rest)
}

// pushbackConn gives back bytes that were read too early.
type pushbackConn struct {
	net.Conn
	rest []byte
}

func (c *pushbackConn) Read(p []byte) (int, error) {
	if len(c.rest) > 0 {
		n := copy(p, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
