// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"errors"
	"net"
	"testing"
)

// scripted accepts what it is told to.
type scripted struct {
	results []error // nil accepts a connection
	closed  bool
}

func (l *scripted) Accept() (net.Conn, error) {
	err := l.results[0]
	l.results = l.results[1:]
	if err != nil {
		return nil, err
	}
	conn, _ := net.Pipe()
	return conn, nil
}

func (l *scripted) Close() error   { l.closed = true; return nil }
func (l *scripted) Addr() net.Addr { return &net.UnixAddr{Name: "scripted"} }

// TestRelisten: a listener that failed is closed and replaced, and only Close ends it.
func TestRelisten(t *testing.T) {
	reset := errors.New("reset")
	first, second := &scripted{results: []error{nil, reset}}, &scripted{results: []error{nil, net.ErrClosed}}
	opens := []func() (net.Listener, error){
		func() (net.Listener, error) { return first, nil },
		func() (net.Listener, error) { return nil, reset },
		func() (net.Listener, error) { return second, nil },
	}
	l, err := Relisten(func() (net.Listener, error) {
		open := opens[0]
		opens = opens[1:]
		return open()
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{nil, reset, reset, nil} {
		conn, err := l.Accept()
		if !errors.Is(err, want) || (conn == nil) == (want == nil) {
			t.Errorf("accept %d: %v %v, want %v", i, conn, err, want)
		}
	}
	if !first.closed {
		t.Error("the listener that failed is open")
	}
	if _, err := l.Accept(); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener that somebody else closed: %v", err)
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := Relisten(func() (net.Listener, error) { return nil, reset }); !errors.Is(err, reset) {
		t.Errorf("no first listener: %v", err)
	}
}

// TestRelistenClose: Close ends an Accept that waits, and it says so.
func TestRelistenClose(t *testing.T) {
	l, err := Relisten(func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}
