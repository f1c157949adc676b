// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

// Errors of DialPort, beside vm.ErrUnavailable.
var (
	// ErrRefused: nobody listens on the port in the machine.
	ErrRefused = errors.New("connection refused in the machine")
	// ErrTooManyForwards: the machine has as many connections to its ports as it may.
	ErrTooManyForwards = errors.New("too many connections to ports of the machine")
)

const (
	// maxForwardBytes is the most data of one message of a forward.
	maxForwardBytes = 64 << 10
	// closeTimeout is how long Close waits for what was written to reach the port, when
	// the port does not read it or the guest does not answer.
	closeTimeout = 5 * time.Second
)

// DialPort connects to a port on the loopback of the machine whose agent client calls.
// ctx bounds the dialing only. The connection is TCP, and a *PortConn, or with udp one
// flow of datagrams: each Write sends one, of at most 64 KiB, each Read returns one and
// drops what has no room, and whether somebody listens cannot be known.
//
// Errors: ErrRefused, ErrTooManyForwards, ctx's, and vm.ErrUnavailable when the machine
// does not answer or is gone; reads and writes fail with the latter as well when it goes.
func DialPort(ctx context.Context, client agentv1connect.AgentServiceClient, port int, udp bool) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("dial port %d of the machine: want 1 to 65535", port)
	}
	network := "tcp"
	if udp {
		network = "udp"
	}
	l, err := startForward(ctx, client, &agentv1.ForwardStart{Port: int32(port), Udp: udp}, portAddr{network: network, port: port}, func(m *agentv1.ForwardResponse) bool { return m.GetConnected() != nil })
	if err != nil {
		return nil, fmt.Errorf("dial port %d of the machine: %w", port, err)
	}
	return l.conn(), nil
}

// startForward begins a forward and receives its first answer, which expected knows. ctx bounds that only.
func startForward(ctx context.Context, client agentv1connect.AgentServiceClient, start *agentv1.ForwardStart, addr portAddr, expected func(*agentv1.ForwardResponse) bool) (*PortListener, error) {
	// What is made outlives the making.
	call, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(ctx.Err()) })
	l := &PortListener{stream: client.Forward(call), end: func() { cancel(net.ErrClosed) }, addr: addr}
	err := l.stream.Send(&agentv1.ForwardRequest{Event: &agentv1.ForwardRequest_Start{Start: start}})
	if err == nil || errors.Is(err, io.EOF) { // with EOF the reason is to be received
		err = l.receive(expected)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		cancel(nil)
		_ = l.stream.CloseResponse()
		return nil, err
	}
	return l, nil
}

// conn is the connection that the forward has become.
func (l *PortListener) conn() *PortConn {
	c := &PortConn{
		stream: l.stream, end: l.end, addr: l.addr,
		in: make(chan []byte), ended: make(chan struct{}), closed: make(chan struct{}),
		reading: newDeadline(), writing: newDeadline(),
	}
	c.pump.Go(c.receive)
	return c
}

type portStream = connect.BidiStreamForClient[agentv1.ForwardRequest, agentv1.ForwardResponse]

// receive receives a message that is expected.
func (l *PortListener) receive(expected func(*agentv1.ForwardResponse) bool) error {
	m, err := l.stream.Receive()
	switch {
	case errors.Is(err, vm.ErrUnavailable):
		return err
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the guest ended the call", vm.ErrUnavailable)
	case connect.CodeOf(err) == connect.CodeFailedPrecondition && connect.IsWireError(err):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case connect.CodeOf(err) == connect.CodeResourceExhausted && connect.IsWireError(err):
		return fmt.Errorf("%w: %w", ErrTooManyForwards, err)
	case connect.CodeOf(err) == connect.CodeUnimplemented && connect.IsWireError(err):
		return fmt.Errorf("%w: %w", vm.ErrNotSupported, err)
	case err != nil:
		return err
	case !expected(m):
		return fmt.Errorf("%w: the guest broke the protocol of forwards", vm.ErrUnavailable)
	}
	return nil
}

// PortConn is a connection to a port of a machine, see DialPort. It is a net.Conn with
// two exceptions: a Write that misses its deadline breaks the connection, because
// nobody knows what of it was sent; and Close waits, for at most a few seconds, until
// what was written has reached the port.
type PortConn struct {
	stream *portStream
	end    context.CancelFunc // ends the call at once
	addr   portAddr

	in      chan []byte   // unbuffered: the port waits for the reader
	ended   chan struct{} // closed by receive, after readErr is set
	readErr error         // io.EOF when the other end sends no more
	pump    sync.WaitGroup

	readMu sync.Mutex
	rest   []byte // guarded by readMu; of a message that was read in part

	writeMu  sync.Mutex
	writeErr error // guarded by writeMu; why nothing more can be written

	once             sync.Once
	closed           chan struct{} // closed by Close
	reading, writing *deadline
}

var _ net.Conn = (*PortConn)(nil)

// receive hands what comes over to Read until the call ends.
func (c *PortConn) receive() {
	half := false
	for {
		m, err := c.stream.Receive()
		if err != nil {
			if half {
				return
			}
			if errors.Is(err, io.EOF) {
				// It would have said so if the port had closed the connection.
				err = fmt.Errorf("%w: the guest ended the connection", vm.ErrUnavailable)
			}
			c.fail(err)
			return
		}
		data, ok := m.GetEvent().(*agentv1.ForwardResponse_Data)
		switch {
		case ok && !half && len(data.Data) <= maxForwardBytes:
			select {
			case c.in <- data.Data:
			case <-c.closed: // read on, so that Close learns when the call ends
			}
		case m.GetClose() != nil && !half:
			half = true
			c.fail(io.EOF)
		default:
			c.end()
			if !half {
				c.fail(fmt.Errorf("%w: the guest broke the protocol of forwards", vm.ErrUnavailable))
			}
			return
		}
	}
}

func (c *PortConn) fail(err error) {
	switch {
	case errors.Is(err, context.Canceled): // nobody but this end cancels the call
		err = net.ErrClosed
	case connect.CodeOf(err) == connect.CodeAborted && connect.IsWireError(err) && !errors.Is(err, vm.ErrUnavailable):
		err = syscall.ECONNRESET
	}
	c.readErr = err
	close(c.ended)
}

// Read implements net.Conn.
func (c *PortConn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.isClosed() {
		return 0, c.opError("read", net.ErrClosed)
	}
	expired := c.reading.wait()
	select {
	case <-expired:
		return 0, c.opError("read", os.ErrDeadlineExceeded)
	default:
	}
	if len(b) == 0 {
		return 0, nil
	}
	for len(c.rest) == 0 {
		select {
		case c.rest = <-c.in:
		case <-c.ended:
			if errors.Is(c.readErr, io.EOF) {
				return 0, io.EOF
			}
			return 0, c.opError("read", c.readErr)
		case <-expired:
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case <-c.closed:
			return 0, c.opError("read", net.ErrClosed)
		}
		if c.addr.network == "udp" {
			n := copy(b, c.rest)
			c.rest = nil
			return n, nil
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements net.Conn.
func (c *PortConn) Write(b []byte) (int, error) {
	if c.addr.network == "udp" && len(b) > maxForwardBytes {
		return 0, c.opError("write", syscall.EMSGSIZE)
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	// A Write that blocks is ended by the end of the call.
	begun, finish := c.writing.guard(c.end)
	if !begun {
		return 0, c.opError("write", os.ErrDeadlineExceeded)
	}
	defer finish()
	sent := 0
	for {
		piece := b[sent:min(len(b), sent+maxForwardBytes)]
		if len(piece) == 0 && c.addr.network != "udp" {
			return sent, nil
		}
		if err := c.send(&agentv1.ForwardRequest{Event: &agentv1.ForwardRequest_Data{Data: piece}}); err != nil {
			if finish() {
				err = os.ErrDeadlineExceeded
			}
			c.writeErr = err
			return sent, c.opError("write", err)
		}
		sent += len(piece)
		if sent == len(b) {
			return sent, nil
		}
	}
}

// send sends a message, or tells why not. writeMu is held.
func (c *PortConn) send(m *agentv1.ForwardRequest) error {
	if c.isClosed() {
		return net.ErrClosed
	}
	if c.writeErr != nil {
		return c.writeErr
	}
	err := c.stream.Send(m)
	if err == nil {
		return nil
	}
	if c.isClosed() {
		return net.ErrClosed
	}
	if errors.Is(err, io.EOF) {
		// The call has ended, and receiving tells why.
		select {
		case <-c.ended:
			if !errors.Is(c.readErr, io.EOF) {
				return c.readErr
			}
		default:
		}
		return syscall.EPIPE
	}
	return err
}

// CloseWrite tells the port that no more data will come, as of *net.TCPConn. It does
// nothing to a flow of datagrams.
func (c *PortConn) CloseWrite() error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.addr.network == "udp" {
		return nil
	}
	if err := c.send(&agentv1.ForwardRequest{Event: &agentv1.ForwardRequest_Close{Close: &agentv1.ForwardClose{}}}); err != nil {
		return c.opError("close", err)
	}
	c.writeErr = syscall.EPIPE
	return nil
}

// Close implements net.Conn.
func (c *PortConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = nil
		c.reading.set(time.Time{})
		// A Write under way gives up: so does Close of any net.Conn.
		close(c.closed)
		if c.writeMu.TryLock() {
			timer := time.AfterFunc(closeTimeout, c.end)
			_ = c.stream.CloseRequest() // what was written goes before it
			c.writeMu.Unlock()
			c.pump.Wait()
			timer.Stop()
		}
		c.end()
		c.pump.Wait()
		_ = c.stream.CloseResponse()
		c.writing.set(time.Time{})
	})
	if err != nil {
		return c.opError("close", err)
	}
	return nil
}

func (c *PortConn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

func (c *PortConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.addr.network, Addr: c.addr, Err: err}
}

// LocalAddr implements net.Conn, like the methods below. It tells nothing.
func (c *PortConn) LocalAddr() net.Addr { return portAddr{network: c.addr.network} }

// RemoteAddr is the port in the machine.
func (c *PortConn) RemoteAddr() net.Addr { return c.addr }

// SetDeadline sets both deadlines.
func (c *PortConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *PortConn) SetReadDeadline(t time.Time) error {
	if c.isClosed() {
		return c.opError("set", net.ErrClosed)
	}
	c.reading.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn. A Write that misses it breaks the connection.
func (c *PortConn) SetWriteDeadline(t time.Time) error {
	if c.isClosed() {
		return c.opError("set", net.ErrClosed)
	}
	c.writing.set(t)
	return nil
}

// portAddr is a port in a machine.
type portAddr struct {
	network string
	port    int
}

func (a portAddr) Network() string { return a.network }

func (a portAddr) String() string { return net.JoinHostPort("machine", strconv.Itoa(a.port)) }

// deadline is a time that may be moved.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer   // guarded by mu, like all below; nil without a deadline
	expired chan struct{} // closed when the time has come
	onEnd   func()        // called when the time comes during a guarded act
}

func newDeadline() *deadline { return &deadline{expired: make(chan struct{})} }

// set moves the deadline; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.expired:
		d.expired = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	expired := d.expired
	var timer *time.Timer
	expire := func() {
		if d.timer != timer || d.expired != expired {
			return // it was moved meanwhile
		}
		close(expired)
		if d.onEnd != nil {
			d.onEnd()
		}
	}
	left := time.Until(t)
	if left <= 0 {
		expire()
		return
	}
	timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		expire()
	})
	d.timer = timer
}

// wait returns what is closed at the deadline that is set now, and later ones while
// none was missed.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

// guard begins an act that missing the deadline ends by end. It is not begun when the
// deadline is missed already. finish says that the act is over, and whether it missed it.
func (d *deadline) guard(end func()) (begun bool, finish func() (missed bool)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.expired:
		return false, nil
	default:
	}
	d.onEnd = end
	return true, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.onEnd = nil
		select {
		case <-d.expired:
			return true
		default:
			return false
		}
	}
}
