// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// tcpPort listens on an address and serves each connection, which serve need not
// close, until the test ends.
func tcpPort(t *testing.T, address string, serve func(*net.TCPConn)) int {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	work.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			work.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		lis.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		work.Wait()
	})
	return lis.Addr().(*net.TCPAddr).Port
}

func dialPort(t *testing.T, c *guest.Client, port int, udp bool) *guest.PortConn {
	t.Helper()
	conn, err := guest.DialPort(t.Context(), c.Agent, port, udp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*guest.PortConn)
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// within fails the test when f takes too long.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s takes too long", what)
	}
}

// TestForwardBothWays: 10 MB each way at once, and then each side tells by its
// half-close that it has no more.
func TestForwardBothWays(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	there, back := noise(10<<20), noise(10<<20 + 1)[1:]
	port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		var sending sync.WaitGroup
		sending.Go(func() { conn.Write(back) })
		sum := sha256.New()
		io.Copy(sum, conn) // ends with the caller's half-close
		sending.Wait()
		conn.Write(sum.Sum(nil))
	})
	conn := dialPort(t, c, port, false)
	within(t, "carrying 20 MB", func() {
		var sending sync.WaitGroup
		sending.Go(func() {
			if n, err := conn.Write(there); err != nil || n != len(there) {
				t.Errorf("wrote %d: %v", n, err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Errorf("close write: %v", err)
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write after CloseWrite: %v", err)
			}
		})
		got, err := io.ReadAll(conn)
		sending.Wait()
		sum := sha256.Sum256(there)
		if err != nil || !bytes.Equal(got, append(bytes.Clone(back), sum[:]...)) {
			t.Errorf("read %d bytes, want %d and a digest: %v", len(got), len(back), err)
		}
	})
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// TestForwardCloseDelivers: what was written before Close reaches the port, and then the
// connection ends there.
func TestForwardCloseDelivers(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	got := make(chan int64, 1)
	port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		n, _ := io.Copy(io.Discard, conn)
		got <- n
	})
	conn := dialPort(t, c, port, false)
	if _, err := conn.Write(noise(3 << 20)); err != nil {
		t.Fatal(err)
	}
	within(t, "close", func() { conn.Close() })
	within(t, "the port's end", func() {
		if n := <-got; n != 3<<20 {
			t.Errorf("the port got %d bytes", n)
		}
	})
}

func TestForwardManyAtOnce(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	within(t, "50 forwards", func() {
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				conn, err := guest.DialPort(t.Context(), c.Agent, port, false)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				want := bytes.Repeat(fmt.Appendf(nil, "forward %d ", i), 20_000)
				var sending sync.WaitGroup
				sending.Go(func() { conn.Write(want); conn.(*guest.PortConn).CloseWrite() })
				got, err := io.ReadAll(conn)
				sending.Wait()
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("forward %d: %d bytes of %d: %v", i, len(got), len(want), err)
				}
			})
		}
		all.Wait()
	})
}

// TestForwardStalled: connections that nobody reads, on either side, do not keep other
// calls waiting.
func TestForwardStalled(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	much := make([]byte, 16<<20)
	silent := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		conn.SetReadBuffer(4 << 10)
		<-t.Context().Done()
	})
	talking := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) { conn.Write(much) })
	var writers sync.WaitGroup
	var sent atomic.Int64
	var stalled []*guest.PortConn
	for range 40 {
		dialPort(t, c, talking, false)
		conn := dialPort(t, c, silent, false)
		stalled = append(stalled, conn)
		writers.Go(func() {
			for {
				n, err := conn.Write(much[:64<<10])
				if sent.Add(int64(n)); err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("write to a port that does not read: %v", err)
					}
					return
				}
			}
		})
	}
	within(t, "the stall", func() {
		for last := int64(-1); last != sent.Load(); {
			last = sent.Load()
			<-time.After(200 * time.Millisecond)
		}
	})
	echo := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	within(t, "another call", func() {
		if err := c.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		conn := dialPort(t, c, echo, false)
		go conn.Write(noise(2 << 20))
		if n, err := io.CopyN(io.Discard, conn, 2<<20); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	})
	for _, conn := range stalled {
		conn.SetWriteDeadline(time.Now())
	}
	within(t, "missing the deadlines", writers.Wait)
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestForwardRefused(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := lis.Addr().(*net.TCPAddr).Port
	lis.Close()
	if _, err := guest.DialPort(t.Context(), c.Agent, port, false); !errors.Is(err, guest.ErrRefused) || errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := guest.DialPort(t.Context(), c.Agent, 0, false); err == nil {
		t.Error("port 0 can be dialed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := guest.DialPort(ctx, c.Agent, port, false); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestForwardIPv6(t *testing.T) {
	if lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "[::1]:0"); err != nil {
		t.Skipf("no IPv6 on this machine: %v", err)
	} else {
		lis.Close()
	}
	_, c := boot(t, guesttest.Options{})
	port := tcpPort(t, "[::1]:0", func(conn *net.TCPConn) { io.WriteString(conn, "six") })
	if got, err := io.ReadAll(dialPort(t, c, port, false)); string(got) != "six" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestForwardReset(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, 1))
		conn.SetLinger(0)
	})
	conn := dialPort(t, c, port, false)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	within(t, "the end", func() {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		if _, err := conn.Write([]byte("x")); err == nil {
			t.Error("a broken connection can be written")
		}
	})
}

// TestForwardHostDisappears: the port's connection is closed when the host goes away, and
// the host's when the machine does.
func TestForwardHostDisappears(t *testing.T) {
	for name, end := range map[string]func(*guesttest.Agent, *guest.Client){
		"the host":    func(_ *guesttest.Agent, c *guest.Client) { c.Close() },
		"the machine": func(a *guesttest.Agent, _ *guest.Client) { a.Die() },
	} {
		t.Run(name, func(t *testing.T) {
			a, c := boot(t, guesttest.Options{})
			ended := make(chan struct{})
			port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) {
				conn.Write([]byte("x"))
				io.Copy(io.Discard, conn)
				close(ended)
			})
			conn := dialPort(t, c, port, false)
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			end(a, c)
			within(t, "the end", func() {
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, vm.ErrUnavailable) {
					t.Errorf("read: %v", err)
				}
				if _, err := conn.Write([]byte("x")); err == nil {
					t.Error("write succeeds")
				}
				conn.Close()
				<-ended
			})
			if _, err := guest.DialPort(t.Context(), c.Agent, port, false); !errors.Is(err, vm.ErrUnavailable) {
				t.Errorf("dial: %v", err)
			}
		})
	}
}

func TestForwardDeadlines(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	conn := dialPort(t, c, port, false)
	b := make([]byte, 1)
	within(t, "deadlines", func() {
		for _, d := range []time.Duration{-time.Second, 20 * time.Millisecond} {
			conn.SetReadDeadline(time.Now().Add(d))
			if _, err := conn.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read with deadline in %v: %v", d, err)
			}
		}
		conn.SetDeadline(time.Time{})
		if _, err := conn.Write([]byte("y")); err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(b); err != nil || b[0] != 'y' {
			t.Errorf("after the deadline was taken back: %q, %v", b, err)
		}
		// A deadline that is set while a Read waits.
		time.AfterFunc(10*time.Millisecond, func() { conn.SetReadDeadline(time.Now()) })
		if _, err := conn.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		conn.SetReadDeadline(time.Time{})
		time.AfterFunc(10*time.Millisecond, func() { conn.Close() })
		if _, err := conn.Read(b); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read while it is closed: %v", err)
		}
	})
}

func TestForwardUDP(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	lis, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := lis.ReadFromUDP(buf)
			if err != nil {
				return
			}
			lis.WriteToUDP(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	conn := dialPort(t, c, lis.LocalAddr().(*net.UDPAddr).Port, true)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 64<<10)
	for _, want := range []string{"one", "", string(noise(60_000)), "last"} {
		if _, err := conn.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "re:"+want {
			t.Fatalf("got %d bytes, want %d: %v", n, len(want)+3, err)
		}
	}
	if _, err := conn.Write(make([]byte, 65<<10)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("datagram of 65 KiB: %v", err)
	}
	// The rest of a datagram that has no room is dropped.
	conn.Write([]byte("long"))
	if n, _ := conn.Read(buf[:2]); n != 2 {
		t.Errorf("read %d bytes", n)
	}
	conn.Write([]byte("next"))
	if n, _ := conn.Read(buf); string(buf[:n]) != "re:next" {
		t.Errorf("got %q", buf[:n])
	}
}

// TestForwardBounds: there are so many and no more, and one that ends makes room.
func TestForwardBounds(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	var last *guest.PortConn
	for range 256 {
		last = dialPort(t, c, port, false)
	}
	if _, err := guest.DialPort(t.Context(), c.Agent, port, false); !errors.Is(err, guest.ErrTooManyForwards) {
		t.Fatalf("got %v", err)
	}
	last.Close()
	dialPort(t, c, port, false)
}

// TestForwardBroken: what is no forward is refused or ended.
func TestForwardBroken(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	port := tcpPort(t, "127.0.0.1:0", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	begin := func(port int) *agentv1.ForwardRequest {
		return &agentv1.ForwardRequest{Event: &agentv1.ForwardRequest_Start{Start: &agentv1.ForwardStart{Port: int32(port)}}}
	}
	data := func(n int) *agentv1.ForwardRequest {
		return &agentv1.ForwardRequest{Event: &agentv1.ForwardRequest_Data{Data: make([]byte, n)}}
	}
	for name, messages := range map[string][]*agentv1.ForwardRequest{
		"no start":   {data(1)},
		"no port":    {begin(0)},
		"high port":  {begin(65536)},
		"two starts": {begin(port), begin(port)},
		"long data":  {begin(port), data(64<<10 + 1)},
		"empty":      {begin(port), {}},
	} {
		t.Run(name, func(t *testing.T) {
			stream := c.Agent.Forward(t.Context())
			for _, m := range messages {
				stream.Send(m)
			}
			within(t, "the end", func() {
				for {
					if _, err := stream.Receive(); err != nil {
						if len(messages) == 1 && connect.CodeOf(err) != connect.CodeInvalidArgument {
							t.Errorf("got %v", err)
						}
						return
					}
				}
			})
			stream.CloseResponse()
		})
	}
}
