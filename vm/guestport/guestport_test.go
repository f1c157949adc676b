// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guestport

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// socket is a port's socket: the guest's ends of the streams that were opened.
type socket struct {
	guests chan net.Conn
	fail   error
}

func (s *socket) dial(context.Context) (net.Conn, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	host, guest := net.Pipe()
	s.guests <- guest
	return host, nil
}

// open opens a stream and has a writer greet on it, as protocols do.
func open(t *testing.T) (*Conn, *socket) {
	t.Helper()
	s := &socket{guests: make(chan net.Conn, 100)}
	c, err := Open(t.Context(), s.dial)
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

// swallow reads what the host writes and says nothing: the port is throttled.
func swallow(guest net.Conn) (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, guest)
	}()
	return ended
}

func TestSilentStreamIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := open(t)
		defer c.Close()
		first := swallow(<-s.guests)
		began := time.Now()
		go func() {
			second := <-s.guests
			_, _ = second.Write([]byte("hello"))
		}()
		b := make([]byte, 16)
		n, err := c.Read(b)
		if err != nil || string(b[:n]) != "hello" {
			t.Fatalf("read %q, %v", b[:n], err)
		}
		if took := time.Since(began); took != firstWait {
			t.Errorf("opened again after %s, want %s", took, firstWait)
		}
		<-first // the old one was closed
		// A stream that has spoken stays, however silent it is.
		if err := c.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error is %v, want the deadline", err)
		}
		if len(s.guests) > 0 {
			t.Error("a stream that had spoken was opened again")
		}
	})
}

func TestWaitsGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := open(t)
		defer c.Close()
		swallow(<-s.guests)
		var at []time.Duration
		began := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 5 {
				swallow(<-s.guests)
				at = append(at, time.Since(began))
			}
			_ = c.Close()
		}()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("error is %v, want closed", err)
		}
		<-done
		want := []time.Duration{time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second, 31 * time.Second}
		for i, got := range at {
			if got != want[i] {
				t.Errorf("opened again after %v, want %v", at, want)
				break
			}
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := open(t)
		defer c.Close()
		swallow(<-s.guests)
		for _, after := range []time.Duration{firstWait / 2, 3 * firstWait} {
			began := time.Now()
			if err := c.SetDeadline(began.Add(after)); err != nil {
				t.Fatal(err)
			}
			go func() {
				for g := range s.guests {
					swallow(g)
				}
			}()
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("error is %v, want the deadline", err)
			}
			if took := time.Since(began); took != after {
				t.Errorf("the read ended after %s, want %s", took, after)
			}
		}
		// One that is set while a read is under way ends it.
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			ended <- err
		}()
		synctest.Wait()
		if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error is %v, want the deadline", err)
		}
		close(s.guests)
	})
}

func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := open(t)
		guest := <-s.guests
		_ = guest.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("after the hypervisor's end: %v, want EOF", err)
		}
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
		if _, err := c.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}

		gone, s := open(t)
		defer gone.Close()
		swallow(<-s.guests)
		s.fail = errors.New("no such socket")
		if _, err := gone.Read(make([]byte, 1)); !errors.Is(err, s.fail) {
			t.Errorf("the socket is gone: %v, want %v", err, s.fail)
		}
	})
}
