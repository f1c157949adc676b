// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// port is a stream as a virtio-serial port is one: it stays when a host goes, keeps
// what nobody read, and can lose what a host writes.
type port struct {
	net.Conn // the guest's end
	host     net.Conn
}

func newPort() *port {
	guestEnd, hostEnd := net.Pipe()
	return &port{Conn: guestEnd, host: hostEnd}
}

func TestGreeting(t *testing.T) {
	for _, test := range []struct {
		name string
		// before is on the wire towards the guest, and towards the host.
		toGuest, toHost []byte
	}{
		{name: "clean"},
		{name: "stale bytes", toGuest: []byte("PRI * HTTP/2.0"), toHost: bytes.Repeat([]byte("FKA1"), 5000)},
		{name: "stale greetings", toGuest: append(bytes.Repeat([]byte("FKH1aaaaaaaaaaaaaaaa"), 3), "FKS1bbbbbbbbbbbbbbbb"...), toHost: []byte("FKA1aaaaaaaaaaaaaaaaFKA1bbbb")},
		{name: "torn hello", toGuest: []byte("FKH1aaaaaaa"), toHost: []byte("FK")},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPort()
				var work sync.WaitGroup
				work.Go(func() {
					// The guest sees what is stale first, then the host.
					talk, err := Answer(&staleConn{Conn: p.Conn, stale: bytes.NewReader(test.toGuest)})
					if err != nil {
						t.Errorf("answer: %v", err)
						return
					}
					buf := make([]byte, 5)
					if _, err := io.ReadFull(talk, buf); err != nil || string(buf) != "hello" {
						t.Errorf("guest read %q, %v", buf, err)
					}
					if _, err := talk.Write([]byte("world")); err != nil {
						t.Error(err)
					}
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				conn, err := Greet(ctx, &staleConn{Conn: p.host, stale: bytes.NewReader(test.toHost)})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 5)
				if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "world" {
					t.Errorf("host read %q, %v", buf, err)
				}
				work.Wait()
				_ = conn.Close()
			})
		})
	}
}

// staleConn reads what an earlier conversation left before the rest.
type staleConn struct {
	net.Conn
	stale *bytes.Reader
}

func (c *staleConn) Read(p []byte) (int, error) {
	if c.stale.Len() > 0 {
		return c.stale.Read(p)
	}
	return c.Conn.Read(p)
}

// lossyConn loses the first writes.
type lossyConn struct {
	net.Conn
	lose int
}

func (c *lossyConn) Write(p []byte) (int, error) {
	if c.lose > 0 {
		c.lose--
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func TestGreetingLostHellos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPort()
		go func() { _, _ = Answer(p.Conn) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := time.Now()
		conn, err := Greet(ctx, &lossyConn{Conn: p.host, lose: 3})
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(before); d != 3*helloEvery {
			t.Errorf("it took %v, want three hellos lost: %v", d, 3*helloEvery)
		}
		_ = conn.Close()
	})
}

func TestGreetGivesUp(t *testing.T) {
	for _, test := range []struct {
		name  string
		guest func(net.Conn)
		cause error
	}{
		{name: "silent guest", guest: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, cause: context.DeadlineExceeded},
		{name: "guest that reads nothing", guest: func(net.Conn) {}, cause: context.DeadlineExceeded},
		{name: "guest gone", guest: func(c net.Conn) { _ = c.Close() }},
		{name: "garbage forever", guest: func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			garbage := bytes.Repeat([]byte("FKA1"), 4096)
			for {
				if _, err := c.Write(garbage); err != nil {
					return
				}
			}
		}, cause: errStale},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				guestEnd, hostEnd := net.Pipe()
				go test.guest(guestEnd)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := Greet(ctx, hostEnd)
				if !errors.Is(err, vm.ErrUnavailable) || test.cause != nil && !errors.Is(err, test.cause) {
					t.Errorf("error %v, want unavailable and %v", err, test.cause)
				}
				if _, err := hostEnd.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the stream is left open: %v", err)
				}
				_ = guestEnd.Close()
			})
		})
	}
}

// TestNewHostInTheMiddle kills hosts at every point of what they write and lets the next
// one come on the same stream.
func TestNewHostInTheMiddle(t *testing.T) {
	// What an earlier host may have written: its greeting, and some of a large frame.
	var before []byte
	old := newFrame(markHello, bytes.Repeat([]byte("F"), nonceBytes))
	start := newFrame(markStart, old.nonce())
	before = append(before, bytes.Repeat(old[:], helloBurst)...)
	before = append(before, start[:]...)
	before = append(before, bytes.Repeat([]byte("FKH1"), 20)...)
	for cut := range before {
		synctest.Test(t, func(t *testing.T) {
			p := newPort()
			conversations := make(chan *Conversation, 10)
			var work sync.WaitGroup
			work.Go(func() {
				talk, err := Answer(p.Conn)
				for err == nil {
					conversations <- talk
					// The server reads until the conversation ends.
					var got []byte
					buf := make([]byte, 7)
					for err == nil {
						var n int
						n, err = talk.Read(buf)
						got = append(got, buf[:n]...)
						if bytes.HasSuffix(got, []byte("new host")) {
							_, _ = talk.Write([]byte("ok"))
						}
					}
					talk, err = talk.Again()
				}
				_ = p.Conn.Close()
			})
			work.Go(func() { _, _ = p.host.Write(before[:cut]) })
			synctest.Wait() // the old host comes before the new one
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			conn, err := Greet(ctx, p.host)
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			if _, err := conn.Write([]byte("new host")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 2)
			if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "ok" {
				t.Fatalf("cut at %d: read %q, %v", cut, buf, err)
			}
			_ = conn.Close()
			work.Wait()
		})
	}
}

// FuzzAwaitAnswer is the host's decoder of what a guest sends before HTTP/2.
func FuzzAwaitAnswer(f *testing.F) {
	nonce := []byte("0123456789abcdef")
	f.Add([]byte("FKA10123456789abcdefrest"), 3)
	f.Add([]byte("FKA1FKA10123456789abcdef"), 1)
	f.Add([]byte("FKH10123456789abcdef"), 20)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		if chunk < 1 || chunk > 8192 {
			t.Skip("not a size of a read")
		}
		rest, err := awaitAnswer(&chunked{data: data, size: chunk}, nonce)
		answer := newFrame(markAnswer, nonce)
		_, after, found := bytes.Cut(data, answer[:])
		if found != (err == nil) {
			t.Fatalf("answer there: %v, error %v", found, err)
		}
		if found && !bytes.HasPrefix(after, rest) {
			t.Fatalf("rest %q is not what follows: %q", rest, after)
		}
	})
}

// FuzzAnswer is the guest's: whatever came before, a host that greets is heard.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("FKH1aaaaaaaaaaaaaaaaFKS1aaaaaaaaaaaaaaaaFKH1"), 7)
	f.Add(bytes.Repeat([]byte("F"), 100), 1)
	f.Fuzz(func(t *testing.T, before []byte, chunk int) {
		if chunk < 1 || chunk > 8192 {
			t.Skip("not a size of a read")
		}
		nonce := []byte("0123456789abcdef")
		hello, start := newFrame(markHello, nonce), newFrame(markStart, nonce)
		data := append(bytes.Clone(before), bytes.Repeat(hello[:], 2*helloBurst)...)
		data = append(data, start[:]...)
		data = append(data, "after"...)
		c := &chunked{data: data, size: chunk}
		talk, err := Answer(c)
		for err == nil {
			var got []byte
			if got, err = io.ReadAll(talk); err == nil && string(got) == "after" {
				return
			}
			talk, err = talk.Again()
		}
		t.Fatalf("the host was not heard: %v", err)
	})
}

// chunked is a stream that gives size bytes at a time.
type chunked struct {
	net.Conn
	data []byte
	size int
}

func (c *chunked) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.data)
	c.data = c.data[n:]
	return n, nil
}

func (c *chunked) Write(p []byte) (int, error) { return len(p), nil }
func (c *chunked) SetDeadline(time.Time) error { return nil }
func (c *chunked) Close() error                { return nil }
