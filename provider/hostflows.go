// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/clock"
)

const (
	// maxFlows bounds the flows through one UDP port of the host. A further one takes the
	// place of that which is idle the longest.
	maxFlows = 256
	// flowIdle is how long a flow lives without a datagram; that of Linux' connection
	// tracking for a flow that was answered.
	flowIdle = 2 * time.Minute
	// maxDatagram is what a UDP datagram holds at most.
	maxDatagram = 65507
	// flowQueue datagrams wait for the machine, of all flows of a port maxQueued bytes.
	flowQueue = 32
	maxQueued = 4 << 20
)

// udpPort forwards the datagrams of one port of the host. Each peer is a flow with a
// connection of its own into the machine.
type udpPort struct {
	f    *portForwarder
	conn net.PacketConn
	port hostPort

	queued atomic.Int64 // bytes
	work   sync.WaitGroup
	mu     sync.Mutex
	flows  map[netip.AddrPort]*flow // guarded by mu
}

type flow struct {
	peer netip.AddrPort
	in   chan []byte
	gone chan struct{}
	once sync.Once
	idle *clock.Idle // since the last datagram went through
}

func (x *flow) end() { x.once.Do(func() { close(x.gone) }) }

// serveUDP receives until the socket is closed, and then waits for the flows, which end
// with the forwarder.
func (f *portForwarder) serveUDP(conn net.PacketConn, p hostPort) {
	u := &udpPort{f: f, conn: conn, port: p, flows: map[netip.AddrPort]*flow{}}
	defer func() {
		u.mu.Lock()
		for _, x := range u.flows { // nothing can be answered any more
			x.end()
		}
		u.mu.Unlock()
		u.work.Wait()
	}()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		addr, ok := from.(*net.UDPAddr)
		if err != nil || !ok { // an ICMP error of an earlier answer, for one
			if !sleep(f.ctx, time.Millisecond) {
				return
			}
			continue
		}
		u.take(addr.AddrPort(), buf[:n])
	}
}

// take gives a datagram to its flow. It is dropped when the machine does not keep up, as
// any network does.
func (u *udpPort) take(peer netip.AddrPort, data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock() // to the end: the flow does not end in between
	x := u.flow(peer)
	x.idle.Touch()
	if u.queued.Add(int64(len(data))) > maxQueued {
		u.queued.Add(-int64(len(data)))
		return
	}
	select {
	case x.in <- append([]byte(nil), data...):
	default:
		u.queued.Add(-int64(len(data)))
	}
}

// flow finds the peer's flow, or begins one; u.mu is held.
func (u *udpPort) flow(peer netip.AddrPort) *flow {
	if x := u.flows[peer]; x != nil {
		return x
	}
	if len(u.flows) >= maxFlows {
		var oldest *flow
		for _, x := range u.flows {
			if oldest == nil || x.idle.For() > oldest.idle.For() {
				oldest = x
			}
		}
		delete(u.flows, oldest.peer)
		oldest.end()
	}
	x := &flow{peer: peer, in: make(chan []byte, flowQueue), gone: make(chan struct{}), idle: clock.NewIdle()}
	x.idle.Touch()
	u.flows[peer] = x
	u.work.Go(func() { u.carry(x) })
	return x
}

// carry is the life of a flow.
func (u *udpPort) carry(x *flow) {
	defer func() {
		u.mu.Lock()
		if u.flows[x.peer] == x {
			delete(u.flows, x.peer)
		}
		u.mu.Unlock()
		for { // nobody puts anything in any more
			select {
			case data := <-x.in:
				u.queued.Add(-int64(len(data)))
			default:
				return
			}
		}
	}()
	inside, err := u.f.dialMachine(u.port)
	if err != nil {
		u.f.log.Debug("Datagram to a host port was refused by the machine", "port", u.port.String(), "err", err)
		return
	}
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		buf := make([]byte, maxDatagram)
		for {
			n, err := inside.Read(buf)
			if err != nil {
				return
			}
			x.idle.Touch()
			if _, err := u.conn.WriteTo(buf[:n], net.UDPAddrFromAddrPort(x.peer)); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
	defer func() {
		_ = inside.Close()
		<-answers
	}()
	timer := time.NewTimer(flowIdle)
	defer timer.Stop()
	for {
		select {
		case data := <-x.in:
			u.queued.Add(-int64(len(data)))
			if _, err := inside.Write(data); err != nil {
				return
			}
		case <-timer.C:
			left := flowIdle - x.idle.For()
			if left <= 0 {
				return
			}
			timer.Reset(left)
		case <-answers:
			return
		case <-x.gone:
			return
		case <-u.f.ctx.Done():
			return
		}
	}
}
