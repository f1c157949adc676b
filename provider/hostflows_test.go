// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// memorySocket is a UDP socket of one peer, in a bubble.
type memorySocket struct {
	net.PacketConn
	in     chan []byte
	out    chan string
	closed chan struct{}
	once   sync.Once
}

func (s *memorySocket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case data := <-s.in:
		return copy(b, data), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 7}, nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

func (s *memorySocket) WriteTo(b []byte, _ net.Addr) (int, error) {
	s.out <- string(b)
	return len(b), nil
}

func (s *memorySocket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// A flow lives as long as something goes through it, and for a while longer; a machine
// that does not read keeps a bounded number of bytes.
func TestFlowsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conns []*datagrams
		hang := make(chan struct{})
		dial := func(ctx context.Context, _ int, _ bool) (net.Conn, error) {
			d := &datagrams{answers: make(chan []byte, 8), closed: make(chan struct{})}
			conns = append(conns, d)
			if len(conns) == 3 {
				select {
				case <-hang:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return d, nil
		}
		f := newPortForwarder(portPod(corev1.ContainerPort{ContainerPort: 53, HostPort: 53, Protocol: corev1.ProtocolUDP}), "192.0.2.1", dial, slog.New(slog.DiscardHandler))
		s := &memorySocket{in: make(chan []byte), out: make(chan string, 8), closed: make(chan struct{})}
		f.wg.Go(func() { f.serveUDP(s, f.ports[0]) })
		ask := func(want int) {
			t.Helper()
			s.in <- []byte("x")
			synctest.Wait()
			if got := <-s.out; got != "re: x" || len(conns) != want {
				t.Fatalf("answer %q, %d flows, want %d", got, len(conns), want)
			}
		}
		ask(1)
		time.Sleep(flowIdle - time.Second)
		ask(1)
		time.Sleep(flowIdle - time.Second)
		ask(1)
		time.Sleep(flowIdle + time.Second)
		synctest.Wait()
		select {
		case <-conns[0].closed:
		default:
			t.Error("an idle flow goes on")
		}
		ask(2)
		time.Sleep(flowIdle + time.Second)
		for range 3 * flowQueue { // the machine does not answer: what is too much is dropped
			s.in <- make([]byte, maxDatagram)
		}
		synctest.Wait()
		// It is given up within its time, and the next datagram begins another flow.
		time.Sleep(portDialTimeout + time.Second)
		synctest.Wait()
		ask(4)
		_ = s.Close()
		f.close()
	})
}

// A datagram that comes while its flow ends is not counted for ever: else the port would be
// deaf in the end.
func TestEndedFlowsLeaveNothingQueued(t *testing.T) {
	dial := func(context.Context, int, bool) (net.Conn, error) { return nil, net.ErrClosed }
	f := newPortForwarder(portPod(corev1.ContainerPort{ContainerPort: 53, HostPort: 53, Protocol: corev1.ProtocolUDP}), "192.0.2.1", dial, slog.New(slog.DiscardHandler))
	defer f.close()
	u := &udpPort{f: f, port: f.ports[0], flows: map[netip.AddrPort]*flow{}}
	peer := netip.MustParseAddrPort("192.0.2.7:7")
	for range 100_000 {
		u.take(peer, []byte("x"))
	}
	u.work.Wait()
	if n := u.queued.Load(); n != 0 {
		t.Errorf("%d bytes are queued", n)
	}
}
