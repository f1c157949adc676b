// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// maxAddresses bounds the addresses that a machine answers for.
const maxAddresses = 8

// addressOf is the address that a forward wants the machine to listen at, if any.
func addressOf(start *agentv1.ForwardStart) (netip.AddrPort, error) {
	if start.GetAddress() == "" {
		return netip.AddrPort{}, nil
	}
	addr, err := netip.ParseAddr(start.GetAddress())
	switch {
	case err != nil:
		return netip.AddrPort{}, err
	case start.GetUdp():
		return netip.AddrPort{}, errors.New("datagrams to an address of others are not forwarded")
	case !addr.IsGlobalUnicast() || addr.Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("%s is no address of a host", addr)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(start.GetPort())), nil
}

// await listens at the address, and returns the next connection that nobody else waits for.
func (s *machineService) await(ctx context.Context, stream *forwardStream, address netip.AddrPort) (net.Conn, error) {
	system, ok := s.system.(AddressListener)
	if !ok {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("this machine answers for no address but its own"))
	}
	conns, err := s.addresses.listen(ctx, address, system)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&agentv1.ForwardResponse{Event: &agentv1.ForwardResponse_Listening{Listening: &agentv1.ForwardListening{}}}); err != nil {
		return nil, err
	}
	select {
	case conn := <-conns:
		return conn, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// addresses are those that the machine answers for. It does as long as it lives: between two hosts, connections wait.
type addresses struct {
	log *slog.Logger

	mu   sync.Mutex
	open map[netip.AddrPort]*listening // guarded by mu
	shut bool                          // guarded by mu
	work sync.WaitGroup
}

// listening accepts connections and has each wait until somebody wants it; the others wait in the kernel's queue.
type listening struct {
	net.Listener
	conns chan net.Conn
	done  chan struct{}
}

func newAddresses(log *slog.Logger) *addresses {
	return &addresses{log: log, open: map[netip.AddrPort]*listening{}}
}

// listen returns what gives the connections to the address.
func (a *addresses) listen(ctx context.Context, address netip.AddrPort, system AddressListener) (<-chan net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.open[address]; l != nil {
		return l.conns, nil
	}
	switch {
	case a.shut:
		return nil, connect.NewError(connect.CodeAborted, errors.New("the agent is ending"))
	case len(a.open) >= maxAddresses:
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the machine answers for %d addresses", len(a.open)))
	}
	inner, err := system.ListenAddress(ctx, address)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return nil, connect.NewError(connect.CodeUnimplemented, err)
	case err != nil:
		return nil, internal(fmt.Sprintf("listen at %s", address), err)
	}
	l := &listening{Listener: inner, conns: make(chan net.Conn), done: make(chan struct{})}
	a.open[address] = l
	a.work.Go(func() { l.accept(a.log) })
	return l.conns, nil
}

func (l *listening) accept(log *slog.Logger) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, perhaps
			log.Warn("Accepting a connection failed", "address", l.Addr().String(), "error", err)
			select {
			case <-time.After(acceptRetry):
				continue
			case <-l.done:
				return
			}
		}
		select {
		case l.conns <- conn:
		case <-l.done:
			_ = conn.Close()
			return
		}
	}
}

// close ends all and waits for it.
func (a *addresses) close() {
	a.mu.Lock()
	a.shut = true
	for _, l := range a.open {
		close(l.done)
		_ = l.Close()
	}
	a.open = nil
	a.mu.Unlock()
	a.work.Wait()
}
