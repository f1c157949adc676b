// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"net"
	"sync"
	"time"
)

const (
	// connectFirst and connectMax bound the pause between attempts to reach a port of the
	// guest that nothing listens on yet.
	connectFirst = 10 * time.Millisecond
	connectMax   = 500 * time.Millisecond
	// chunkBytes times chunks is what a stream keeps of what was written to it before the
	// guest listens: greetings, which are repeated.
	chunkBytes = 16 << 10
	chunks     = 8
	// linger is how long what one end of a stream sent before it ended may take to reach
	// the other.
	linger = time.Second
)

// streams are the open streams to a guest.
type streams struct {
	mu     sync.Mutex
	open   map[net.Conn]context.CancelFunc // guarded by mu
	closed bool                            // guarded by mu
	all    sync.WaitGroup
	// turn holds a token while a stream may be opened, where there is one at a time.
	turn chan struct{}
}

func (s *streams) init() {
	s.open = map[net.Conn]context.CancelFunc{}
	s.turn = make(chan struct{}, 1)
	s.turn <- struct{}{}
}

// add takes a stream on. false: the machine is ending.
func (s *streams) add(c net.Conn, cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[c] = cancel
	s.all.Add(1)
	return true
}

func (s *streams) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	s.all.Done()
}

// close ends all streams and waits for them.
func (s *streams) close() {
	s.mu.Lock()
	s.closed = true
	for c, cancel := range s.open {
		cancel()
		_ = c.Close()
	}
	s.mu.Unlock()
	s.all.Wait()
}

// Dial is part of control.Machine. It connects as soon as the guest listens on the port,
// however long that takes, and gives up when the client does.
func (m *machine) Dial(ctx context.Context, port uint32, client net.Conn) {
	defer client.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !m.streams.add(client, cancel) {
		return
	}
	defer m.streams.remove(client)

	present, gone := context.WithCancel(ctx) // the client
	from := make(chan []byte, chunks)
	go func() {
		defer close(from)
		defer gone() // there is nobody to connect for
		receive(ctx, client, from)
	}()
	guest, release := m.connect(present, port)
	if guest == nil {
		return
	}
	defer release()
	stop := context.AfterFunc(ctx, func() { _ = guest.Close() })
	defer stop()
	carry(ctx, client, guest, from, present.Done())
}

// receive reads what the client sends until it has gone or ctx ends.
func receive(ctx context.Context, client net.Conn, from chan<- []byte) {
	for {
		b := make([]byte, chunkBytes)
		n, err := client.Read(b)
		if n > 0 {
			select {
			case from <- b[:n]:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// carry moves bytes both ways until either end has ended, and what that end had sent
// before is with the other one, or has been refused, or was not taken for a while. from is
// closed when the client has sent its last, clientGone at the same time.
func carry(ctx context.Context, client, guest net.Conn, from <-chan []byte, clientGone <-chan struct{}) {
	sent := make(chan error, 1) // nil: all that the client had to say
	go func() {
		for b := range from {
			if _, err := guest.Write(b); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	answered := make(chan error, 1) // nil: all that the guest had to say
	go func() {
		b := make([]byte, chunkBytes)
		for {
			n, err := guest.Read(b)
			if n > 0 {
				if _, werr := client.Write(b[:n]); werr != nil {
					answered <- werr
					return
				}
			}
			if err != nil {
				answered <- nil
				return
			}
		}
	}()
	late := time.NewTimer(linger)
	defer late.Stop()
	late.Stop()
	for {
		select {
		case err := <-sent:
			if err == nil {
				return
			}
			late.Reset(linger) // the guest takes no more; it may have said why
		case err := <-answered:
			if err == nil {
				return
			}
			late.Reset(linger)
		case <-clientGone:
			clientGone = nil
			late.Reset(linger)
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// connect reaches a port of the guest. nil: ctx has ended before. release is to be called
// when the stream is no longer used; it closes it.
func (m *machine) connect(ctx context.Context, port uint32) (guest net.Conn, release func()) {
	next := func() {}
	if m.single {
		select {
		case <-m.streams.turn:
			next = sync.OnceFunc(func() { m.streams.turn <- struct{}{} })
		case <-ctx.Done():
			return nil, nil
		}
	}
	type result struct {
		conn net.Conn
		err  error
	}
	for wait := connectFirst; ; wait = min(2*wait, connectMax) {
		if p, v := m.current(); p == phaseUp {
			connected := make(chan result, 1)
			go func() {
				c, err := v.Connect(port)
				connected <- result{c, err}
			}()
			select {
			case r := <-connected:
				if r.err == nil {
					return r.conn, func() { _ = r.conn.Close(); next() }
				}
			case <-ctx.Done():
				// The call cannot be cancelled: whoever waits for it closes what it brings.
				go func() {
					if r := <-connected; r.err == nil {
						_ = r.conn.Close()
					}
					next()
				}()
				return nil, nil
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			next()
			return nil, nil
		}
	}
}
