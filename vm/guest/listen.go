// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

// PortListener waits for one connection that a program of the machine makes to an address which the
// machine answers for, see ListenAddress.
type PortListener struct {
	stream *portStream
	end    context.CancelFunc // ends the call at once
	addr   portAddr
}

// ListenAddress has the machine whose agent client calls answer for an address that is not its own, for as long as it lives, and
// waits for a connection to it. Connections that come while nobody waits, wait themselves. ctx bounds the asking only.
//
// Errors: vm.ErrNotSupported of a machine that cannot, also one whose agent is older than this; ErrTooManyForwards,
// ctx's, and vm.ErrUnavailable when the machine does not answer or is gone.
func ListenAddress(ctx context.Context, client agentv1connect.AgentServiceClient, address netip.AddrPort) (*PortListener, error) {
	start := &agentv1.ForwardStart{Port: int32(address.Port()), Address: address.Addr().String()}
	dialled := false
	l, err := startForward(ctx, client, start, portAddr{network: "tcp", port: int(address.Port())}, func(m *agentv1.ForwardResponse) bool {
		dialled = m.GetConnected() != nil
		return m.GetListening() != nil
	})
	switch { // one that does not know of addresses tries the port of its own
	case dialled:
		err = fmt.Errorf("%w: the machine's agent is too old: it connected to port %d of the machine", vm.ErrNotSupported, address.Port())
	case errors.Is(err, ErrRefused):
		err = fmt.Errorf("%w: the machine's agent is too old: %w", vm.ErrNotSupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen at %s in the machine: %w", address, err)
	}
	return l, nil
}

// Accept returns the connection, a *PortConn, when it comes. It is called once, and closes the listener when it fails. Errors are
// those of ListenAddress.
func (l *PortListener) Accept(ctx context.Context) (net.Conn, error) {
	stop := context.AfterFunc(ctx, l.end)
	err := l.receive(func(m *agentv1.ForwardResponse) bool { return m.GetConnected() != nil })
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("accept a connection of the machine: %w", err)
	}
	return l.conn(), nil
}

// Close gives up waiting. It must not be called after Accept.
func (l *PortListener) Close() error {
	l.end()
	return l.stream.CloseResponse()
}
