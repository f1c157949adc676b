// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process/processconnect"
)

// ErrProtocolVersion means that the agent answers, and speaks another version of the
// protocol. Its guest kit or snapshot is of another vk-firkin: it is to be rebuilt.
var ErrProtocolVersion = errors.New("guest agent speaks another protocol version")

// Bounds of what the host accepts from a guest.
const (
	// MaxMessageBytes bounds one message from the guest.
	MaxMessageBytes = 4 << 20
	// maxStreamBuffer and maxConnBuffer bound what the guest may send ahead of the
	// host's reading, for one call and for all of them together. The latter is more than
	// all streams that clients of the node may read slowly, or not at all, so that these
	// never keep the answers to other calls waiting.
	maxStreamBuffer = 128 << 10
	maxConnBuffer   = 512 * maxStreamBuffer
	// maxFrameBytes bounds one HTTP/2 frame, maxHeaderBytes all headers of a response.
	maxFrameBytes  = 64 << 10
	maxHeaderBytes = 64 << 10
)

// Defaults of Options.
const (
	// DefaultDialTimeout covers greeting, HTTP/2 and the first answer.
	DefaultDialTimeout = 10 * time.Second
	// DefaultCallTimeout is for unary calls whose context has no deadline.
	DefaultCallTimeout = 30 * time.Second
	// DefaultIdleTimeout and DefaultPingTimeout decide when a silent guest is lost:
	// without hardware virtualization and with a loaded host a guest may well be
	// silent for seconds.
	DefaultIdleTimeout = 10 * time.Second
	DefaultPingTimeout = 20 * time.Second
)

// Options of a client. The zero value is usable.
type Options struct {
	// DialTimeout bounds Dial. Zero: DefaultDialTimeout.
	DialTimeout time.Duration
	// CallTimeout is the deadline of unary calls whose context has none. Zero:
	// DefaultCallTimeout; negative: none.
	CallTimeout time.Duration
	// IdleTimeout is the silence after which the guest is probed with a ping, and
	// PingTimeout how long it has to answer before the connection is given up.
	// Zero: the defaults.
	IdleTimeout, PingTimeout time.Duration
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&o.DialTimeout, DefaultDialTimeout},
		{&o.CallTimeout, DefaultCallTimeout},
		{&o.IdleTimeout, DefaultIdleTimeout},
		{&o.PingTimeout, DefaultPingTimeout},
	} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	return o
}

// Client is the host's connection to the agent of one machine. It is safe for
// concurrent use.
//
// Errors of its calls are those of Connect: connect.CodeOf tells what the agent
// answered. A guest that does not answer, or answers with what is not the protocol,
// is vm.ErrUnavailable, also for calls under way when the connection is lost. A
// call that its own ctx cancelled is not.
type Client struct {
	Agent      agentv1connect.AgentServiceClient
	Containers agentv1connect.ContainerServiceClient
	Volumes    agentv1connect.VolumeServiceClient
	Process    processconnect.ProcessClient

	conn *watchedConn
	beat *heartbeat
	wg   sync.WaitGroup // the heartbeat
}

// Dial greets the agent on a stream from vm.Machine.DialGuest, and checks that it
// speaks this protocol. The client owns conn; when Dial fails, conn is closed.
//
// Errors: vm.ErrUnavailable when the guest does not answer in time (the dial
// timeout, or ctx's deadline when earlier) or sends garbage; ErrProtocolVersion.
func Dial(ctx context.Context, conn net.Conn, opts Options) (*Client, error) {
	opts = opts.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, opts.DialTimeout)
	defer cancel()
	greeted, err := Greet(ctx, conn)
	if err != nil {
		return nil, err
	}
	c, err := newClient(greeted, opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dial guest: %w: %w", vm.ErrUnavailable, err), greeted.Close())
	}
	// HTTP/2 waits for a lock while another goroutine holds it in a write: only the end
	// of the connection is sure to end a call.
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	err = c.check(ctx)
	if !stop() && err == nil {
		err = fmt.Errorf("%w: %w", vm.ErrUnavailable, ctx.Err())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dial guest: %w", err), c.Close())
	}
	return c, nil
}

// check proves that an agent of this protocol answers.
func (c *Client) check(ctx context.Context) error {
	info, err := c.Agent.Info(ctx, connect.NewRequest(&agentv1.InfoRequest{}))
	if err != nil {
		return err
	}
	if v := info.Msg.GetProtocolVersion(); v != ProtocolVersion {
		return fmt.Errorf("%w: agent %q speaks %d, this host speaks %d", ErrProtocolVersion, printable(info.Msg.GetAgentVersion(), 64), v, ProtocolVersion)
	}
	return nil
}

// newClient puts HTTP/2 and the services on a stream that was greeted.
func newClient(conn net.Conn, opts Options) (*Client, error) {
	opts = opts.withDefaults()
	beat := newHeartbeat(opts.IdleTimeout, opts.PingTimeout)
	watched := &watchedConn{Conn: conn, done: make(chan struct{}), heard: beat.hear}
	t2, err := http2.ConfigureTransports(&http.Transport{
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxReadFrameSize:              maxFrameBytes,
			MaxReceiveBufferPerConnection: maxConnBuffer,
			MaxReceiveBufferPerStream:     maxStreamBuffer,
			MaxDecoderHeaderTableSize:     4096,
			WriteByteTimeout:              opts.IdleTimeout + opts.PingTimeout,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("configure HTTP/2: %w", err)
	}
	t2.AllowHTTP = true
	t2.MaxHeaderListSize = maxHeaderBytes
	h2, err := t2.NewClientConn(watched)
	if err != nil {
		return nil, fmt.Errorf("begin HTTP/2: %w", err)
	}
	options := []connect.ClientOption{
		connect.WithCodec(codec{}),
		connect.WithReadMaxBytes(MaxMessageBytes),
		// A compressed answer from the guest would only be another thing to bound.
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithInterceptors(&hostile{conn: watched, callTimeout: opts.CallTimeout}),
	}
	direct := roundTripper{h2: h2, conn: watched}
	const base = "http://guest"
	beat.ping = h2.Ping
	beat.lost = func() { _ = watched.Close() }
	c := &Client{
		Agent:      agentv1connect.NewAgentServiceClient(direct, base, options...),
		Containers: agentv1connect.NewContainerServiceClient(direct, base, options...),
		Volumes:    agentv1connect.NewVolumeServiceClient(direct, base, options...),
		Process:    processconnect.NewProcessClient(direct, base, options...),
		conn:       watched,
		beat:       beat,
	}
	c.wg.Go(func() { beat.run(watched.done) })
	return c, nil
}

// Pause tells the connection that its machine stands still from now on, so that silence
// says nothing about the guest, or with false that it runs again. Calls under way wait.
func (c *Client) Pause(paused bool) { c.beat.pause(paused) }

// Ping proves that the agent answers. The error is vm.ErrUnavailable, or ctx's.
func (c *Client) Ping(ctx context.Context) error {
	payload := make([]byte, 16)
	if _, err := rand.Read(payload); err != nil {
		return fmt.Errorf("ping guest: %w", err)
	}
	resp, err := c.Agent.Ping(ctx, connect.NewRequest(&agentv1.PingRequest{Payload: payload}))
	if err != nil {
		return fmt.Errorf("ping guest: %w", err)
	}
	if !bytes.Equal(resp.Msg.GetPayload(), payload) {
		return fmt.Errorf("ping guest: %w: another payload came back", vm.ErrUnavailable)
	}
	return nil
}

// Close ends the connection and every call on it. What runs in the guest goes on.
// Idempotent.
func (c *Client) Close() error {
	c.conn.fail(errClosed)
	// HTTP/2 ends with its connection. Its own Close may wait for a guest that reads
	// nothing, and the error of a connection that is gone already tells nobody anything.
	_ = c.conn.Close()
	c.beat.pause(true) // ends a ping under way
	c.wg.Wait()
	return nil
}

// Done is closed when the connection is lost or closed.
func (c *Client) Done() <-chan struct{} { return c.conn.done }

// Err is nil while the connection stands, and then tells why it ended: an error
// that is vm.ErrUnavailable.
func (c *Client) Err() error {
	select {
	case <-c.conn.done:
		return fmt.Errorf("guest connection: %w: %w", vm.ErrUnavailable, c.conn.cause)
	default:
		return nil
	}
}

var errClosed = errors.New("closed by the host")

// watchedConn notices the end of the connection, whoever causes it.
type watchedConn struct {
	net.Conn
	heard  func()     // called when the guest sent something
	frames frameWatch // of the one goroutine that reads

	once  sync.Once
	done  chan struct{}
	cause error // set before done is closed
}

func (c *watchedConn) fail(cause error) {
	c.once.Do(func() {
		c.cause = cause
		close(c.done)
	})
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard()
		if ferr := c.frames.look(p[:n]); ferr != nil {
			n, err = 0, ferr
		}
	}
	if err != nil {
		c.fail(err)
	}
	return n, err
}

func (c *watchedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.fail(err)
	}
	return n, err
}

// Close is called by HTTP/2 when it gives the connection up.
func (c *watchedConn) Close() error {
	c.fail(errors.New("the guest broke HTTP/2 or stopped answering"))
	return c.Conn.Close()
}

// roundTripper sends every request on the one connection. Unlike http.Client it
// follows no redirect and keeps no cookie that a guest may send.
type roundTripper struct {
	h2   *http2.ClientConn
	conn *watchedConn
}

func (t roundTripper) Do(req *http.Request) (*http.Response, error) {
	resp, err := t.h2.RoundTrip(req)
	var ofStream http2.StreamError
	if err != nil && req.Context().Err() == nil && !errors.As(err, &ofStream) {
		// The guest said goodbye, or worse: no call will succeed on this connection.
		_ = t.conn.Close()
	}
	if err == nil {
		// Once there is a response, HTTP/2 does not notice the end of a context while it
		// waits for the guest to take more of the request. Closing the response ends both.
		body := resp.Body
		stop := context.AfterFunc(req.Context(), func() { _ = body.Close() })
		resp.Body = &stoppingBody{ReadCloser: body, stop: stop}
		boundErrors(resp)
	}
	return resp, err
}

// stoppingBody is a response that calls stop when it is closed.
type stoppingBody struct {
	io.ReadCloser
	stop func() bool
}

func (b *stoppingBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}
