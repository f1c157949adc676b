// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

const (
	// maxForwards bounds the forwards under way. With the window of one call it bounds
	// what they may hold of the host's data, see ServeConn.
	maxForwards = 256
	// maxForwardBytes is the most data of one message.
	maxForwardBytes = 64 << 10
	// streamBytes is what is read of a stream at once: each forward has that much memory.
	streamBytes = 32 << 10
	// forwardDialTimeout is for a port whose queue of connections is full: on loopback
	// everything else answers at once.
	forwardDialTimeout = 10 * time.Second
)

// forwardStream is the agent's end of one Forward call.
type forwardStream = connect.BidiStream[agentv1.ForwardRequest, agentv1.ForwardResponse]

// Forward implements agentv1connect.AgentServiceHandler.
func (s *machineService) Forward(ctx context.Context, stream *forwardStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return invalid("the first message is not start")
	}
	if err := checkPort(start.GetPort()); err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	address, err := addressOf(start)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	ctx, end, err := s.forwards.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	var conn net.Conn
	if address.IsValid() {
		conn, err = s.await(ctx, stream, address)
	} else {
		conn, err = connectTo(ctx, start)
	}
	if err != nil {
		return err
	}
	f := &forward{stream: stream, conn: conn, udp: start.GetUdp(), inputEnded: make(chan struct{}), callerGone: make(chan struct{})}
	// A caller that goes away, and a server that ends, must free the port's connection.
	defer context.AfterFunc(ctx, f.hangUp)()
	defer f.hangUp()
	if err := stream.Send(&agentv1.ForwardResponse{Event: &agentv1.ForwardResponse_Connected{Connected: &agentv1.ForwardConnected{}}}); err != nil {
		return err
	}
	// It reads from the caller until the call is over, so that the call cannot wait for it.
	s.forwards.work.Go(f.toPort)
	return f.toCaller(ctx)
}

// connectTo connects to the port that a forward begins with.
func connectTo(ctx context.Context, start *agentv1.ForwardStart) (net.Conn, error) {
	network := "tcp"
	if start.GetUdp() {
		network = "udp"
	}
	conn, err := dialLoopback(ctx, network, start.GetPort())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("connect to port %d: %w", start.GetPort(), err))
	}
	return conn, nil
}

// dialLoopback connects to a port of the machine's loopback, of IPv4 or else of IPv6.
func dialLoopback(ctx context.Context, network string, port int32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardDialTimeout)
	defer cancel()
	var d net.Dialer
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, network, net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// forward is one connection to a port.
type forward struct {
	stream *forwardStream
	conn   net.Conn
	udp    bool
	hang   sync.Once

	inputEnded chan struct{} // closed when the caller sends no more
	callerGone chan struct{} // closed when the caller has ended the call, or does not read
}

func (f *forward) hangUp() { f.hang.Do(func() { _ = f.conn.Close() }) }

// toPort carries the caller's data to the port until the caller ends the call.
func (f *forward) toPort() {
	defer close(f.callerGone)
	// What was sent before it is in the kernel's hands, which delivers it after a close.
	defer f.hangUp()
	ended, broken := false, false
	for {
		m, err := f.stream.Receive()
		if err != nil {
			return
		}
		switch e := m.GetEvent().(type) {
		case *agentv1.ForwardRequest_Data:
			if ended || len(e.Data) > maxForwardBytes {
				return
			}
			if broken {
				continue
			}
			if _, err := f.conn.Write(e.Data); err != nil && !f.goesOn(err) {
				// What the port said before it broke off is still read, by toCaller, and then
				// the connection ends there as well.
				broken = true
				close(f.inputEnded)
			}
		case *agentv1.ForwardRequest_Close:
			if ended || f.udp {
				continue
			}
			ended = true
			if half, ok := f.conn.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite() // a connection that is broken is noticed by reading
			}
			if !broken {
				close(f.inputEnded)
			}
		default:
			return
		}
	}
}

// goesOn tells whether an error concerns one datagram only: nobody listens on the port
// at the moment, or it is too long.
func (f *forward) goesOn(err error) bool {
	return f.udp && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EMSGSIZE))
}

// toCaller carries what comes from the port to the caller, and returns when the call is
// over. The caller's flow control reaches the port: Send blocks.
func (f *forward) toCaller(ctx context.Context) error {
	buf := make([]byte, streamBytes)
	if f.udp {
		buf = make([]byte, maxForwardBytes)
	}
	for {
		n, err := f.conn.Read(buf)
		if n > 0 || f.udp && err == nil { // a datagram may be empty
			if err := f.stream.Send(&agentv1.ForwardResponse{Event: &agentv1.ForwardResponse_Data{Data: buf[:n]}}); err != nil {
				return err
			}
		}
		switch {
		case err == nil || f.goesOn(err):
		case errors.Is(err, io.EOF):
			if err := f.stream.Send(&agentv1.ForwardResponse{Event: &agentv1.ForwardResponse_Close{Close: &agentv1.ForwardClose{}}}); err != nil {
				return err
			}
			select {
			case <-f.inputEnded:
			case <-f.callerGone:
			case <-ctx.Done():
			}
			return nil
		default:
			select {
			case <-f.callerGone:
				return nil
			default:
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return connect.NewError(connect.CodeAborted, errors.New("the connection broke"))
		}
	}
}
