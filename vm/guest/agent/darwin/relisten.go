// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"errors"
	"fmt"
	"net"
	"sync"
)

// Relisten makes a listener that opens another one when the one it has fails: the restore
// of a machine resets its vsock connections, and nobody has seen yet what becomes of a
// socket that listens. The end of the listener would be the end of the agent, and with it
// of the seal in its memory.
func Relisten(open func() (net.Listener, error)) (net.Listener, error) {
	l, err := open()
	if err != nil {
		return nil, err
	}
	return &relistener{open: open, current: l, addr: l.Addr()}, nil
}

type relistener struct {
	open func() (net.Listener, error)
	addr net.Addr

	mu      sync.Mutex
	current net.Listener // guarded by mu; nil when the last one failed
	closed  bool         // guarded by mu
}

func (r *relistener) Addr() net.Addr { return r.addr }

// Accept returns the error of a listener that failed; the next call is on another one.
func (r *relistener) Accept() (net.Conn, error) {
	l, err := r.listener()
	if err != nil {
		return nil, err
	}
	conn, err := l.Accept()
	if err == nil {
		return conn, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("accept on %s: %w", r.addr, net.ErrClosed)
	}
	if r.current == l {
		_ = l.Close()
		r.current = nil
	}
	if errors.Is(err, net.ErrClosed) {
		// Not by us: whoever sees this error gives up.
		err = errors.New("the listener was closed")
	}
	return nil, err
}

func (r *relistener) listener() (net.Listener, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("accept on %s: %w", r.addr, net.ErrClosed)
	}
	if r.current == nil {
		l, err := r.open()
		if err != nil {
			return nil, err
		}
		r.current = l
	}
	return r.current, nil
}

func (r *relistener) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.current == nil {
		return nil
	}
	return r.current.Close()
}
