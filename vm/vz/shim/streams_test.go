// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// dial begins a stream as the control server does, in a bubble.
func dial(t *testing.T, m *machine) (client net.Conn, ended <-chan struct{}) {
	t.Helper()
	client, theirs := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	over := make(chan struct{})
	go func() {
		defer close(over)
		m.Dial(t.Context(), vm.AgentPort, theirs)
	}()
	return client, over
}

// guests hands out streams to a guest: each Connect gives one, whose guest's end is sent.
func guests(ends chan<- net.Conn) func(uint32) (net.Conn, error) {
	return func(uint32) (net.Conn, error) {
		host, guest := net.Pipe()
		ends <- guest
		return host, nil
	}
}

func read(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Errorf("read %q, %v, want %q", got, err, want)
	}
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Errorf("write %q: %v", text, err)
	}
}

// bubble runs a test in which every goroutine must end.
func bubble(t *testing.T, f func(t *testing.T)) {
	synctest.Test(t, f)
}

func wantEnded(t *testing.T, over <-chan struct{}) {
	t.Helper()
	synctest.Wait()
	select {
	case <-over:
	default:
		t.Error("the stream has not ended")
	}
}

// A dial before the guest listens succeeds when it does; what was said before is kept.
func TestDialBeforeGuestListens(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		ends := make(chan net.Conn, 1)
		tries := 0
		f.connect = func(port uint32) (net.Conn, error) {
			if tries++; tries < 10 {
				return nil, framework.ErrNoListener
			}
			if port != vm.AgentPort {
				t.Errorf("connect to port %d", port)
			}
			return guests(ends)(port)
		}
		began := time.Now()
		client, over := dial(t, bareMachine(t, f))
		write(t, client, "greeting")
		guest := <-ends
		// 10 ms doubled up to 500 ms: 10+20+40+80+160+320+500+500+500.
		if took := time.Since(began); took != 2130*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		read(t, guest, "greeting")
		write(t, guest, "answer")
		read(t, client, "answer")
		_ = client.Close()
		if _, err := guest.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the guest's end reads %v, want its end", err)
		}
		wantEnded(t, over)
	})
}

// A client that hangs up while nothing listens, and while the framework's call blocks.
func TestDialHangUpWhileConnecting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		client, over := dial(t, bareMachine(t, f))
		<-time.After(time.Minute)
		_ = client.Close()
		wantEnded(t, over)
	})
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		held := make(chan struct{})
		ends := make(chan net.Conn, 1)
		f.connect = func(port uint32) (net.Conn, error) {
			<-held
			return guests(ends)(port)
		}
		client, over := dial(t, bareMachine(t, f))
		synctest.Wait()
		_ = client.Close()
		wantEnded(t, over)
		// What the call brings late is closed.
		close(held)
		if _, err := (<-ends).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the guest's end reads %v, want its end", err)
		}
	})
}

// Where there is one stream at a time the next gets its turn however the one before ended.
func TestDialSingleTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		ends := make(chan net.Conn, 1)
		held := make(chan struct{})
		f.connect = func(port uint32) (net.Conn, error) {
			<-held
			return guests(ends)(port)
		}
		m := bareMachine(t, f)
		m.single = true
		first, firstOver := dial(t, m)
		synctest.Wait()
		second, secondOver := dial(t, m)
		impatient, impatientOver := dial(t, m)
		_ = impatient.Close()
		wantEnded(t, impatientOver)
		_ = first.Close() // in the middle of the framework's call, which holds the turn
		wantEnded(t, firstOver)
		select {
		case <-ends:
			t.Error("two streams at a time")
		default:
		}
		close(held)
		_ = (<-ends).Close() // that of the first
		guest := <-ends
		write(t, second, "second")
		read(t, guest, "second")
		third, thirdOver := dial(t, m)
		synctest.Wait()
		if len(ends) > 0 {
			t.Error("two streams at a time")
		}
		_ = guest.Close()
		wantEnded(t, secondOver)
		guest = <-ends
		write(t, third, "third")
		read(t, guest, "third")
		_ = third.Close()
		wantEnded(t, thirdOver)
	})
}

// The machine's end ends its streams in every phase of them, and takes no new one.
func TestDialMachineEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		ends := make(chan net.Conn, 1)
		held := make(chan struct{})
		calls := 0
		f.connect = func(port uint32) (net.Conn, error) {
			switch calls++; calls {
			case 1:
				return guests(ends)(port)
			case 2:
				<-held
			}
			return nil, framework.ErrNoListener
		}
		m := bareMachine(t, f)
		open, over := dial(t, m)
		guest := <-ends
		_, stalledOver := dial(t, m)
		synctest.Wait()
		_, waitingOver := dial(t, m)
		synctest.Wait()
		// A client that nobody reads from, and that nobody reads to.
		go func() { _, _ = io.WriteString(open, strings.Repeat("x", 10*chunks*chunkBytes)) }()
		go func() { _, _ = io.WriteString(guest, strings.Repeat("x", 10*chunks*chunkBytes)) }()
		synctest.Wait()
		m.end(vm.Exit{Reason: vm.ExitStopped})
		for _, over := range []<-chan struct{}{over, stalledOver, waitingOver} {
			wantEnded(t, over)
		}
		late, lateOver := dial(t, m)
		wantEnded(t, lateOver)
		if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a stream of an ended machine reads %v, want its end", err)
		}
		close(held)
	})
}

// What an end of a stream has sent before it ended reaches the other.
func TestDialDelivers(t *testing.T) {
	text := strings.Repeat("0123456789", 8_000)
	for name, cut := range map[string]func(client, guest net.Conn) (from, to net.Conn){
		"the client's": func(client, guest net.Conn) (net.Conn, net.Conn) { return client, guest },
		"the guest's":  func(client, guest net.Conn) (net.Conn, net.Conn) { return guest, client },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFakeFramework()
				ends := make(chan net.Conn, 1)
				f.connect = guests(ends)
				client, over := dial(t, bareMachine(t, f))
				guest := <-ends
				defer guest.Close()
				synctest.Wait() // until they are connected: before, a client that goes takes all along
				from, to := cut(client, guest)
				go func() {
					write(t, from, text)
					_ = from.Close()
				}()
				// The other end is slower, so that there is something on the way.
				synctest.Wait()
				if got, err := io.ReadAll(to); err != nil || string(got) != text {
					t.Errorf("read %d bytes, %v, want %d", len(got), err, len(text))
				}
				wantEnded(t, over)
			})
		})
	}
}

// A guest that takes nothing does not keep the stream of a client that has gone, and the
// other way round.
func TestDialEndIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		ends := make(chan net.Conn, 1)
		f.connect = guests(ends)
		client, over := dial(t, bareMachine(t, f))
		guest := <-ends
		defer guest.Close()
		synctest.Wait()
		write(t, client, "nobody reads this")
		_ = client.Close()
		began := time.Now()
		<-over
		if took := time.Since(began); took != linger {
			t.Errorf("it took %s, want %s", took, linger)
		}
	})
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		f.connect = func(uint32) (net.Conn, error) { return deaf{make(chan struct{})}, nil }
		client, over := dial(t, bareMachine(t, f))
		synctest.Wait()
		write(t, client, "refused")
		began := time.Now()
		<-over
		if took := time.Since(began); took != linger {
			t.Errorf("it took %s, want %s", took, linger)
		}
	})
}

// deaf takes nothing and says nothing.
type deaf struct{ closed chan struct{} }

func (d deaf) Read([]byte) (int, error)         { <-d.closed; return 0, net.ErrClosed }
func (d deaf) Write([]byte) (int, error)        { return 0, io.ErrClosedPipe }
func (d deaf) LocalAddr() net.Addr              { return nil }
func (d deaf) RemoteAddr() net.Addr             { return nil }
func (d deaf) SetDeadline(time.Time) error      { return nil }
func (d deaf) SetReadDeadline(time.Time) error  { return nil }
func (d deaf) SetWriteDeadline(time.Time) error { return nil }
func (d deaf) Close() error {
	select {
	case <-d.closed:
	default:
		close(d.closed)
	}
	return nil
}

// A ctx that has ended begins nothing.
func TestDialCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFakeFramework()
		client, theirs := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		bareMachine(t, f).Dial(ctx, 1, theirs)
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the client reads %v, want its end", err)
		}
	})
}
