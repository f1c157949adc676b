// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// maxForwardedPorts bounds the ports that one WebSocket request may name.
const maxForwardedPorts = 64

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	namespace, pod := r.PathValue("namespace"), r.PathValue("pod")
	tunneled := wsstream.IsWebSocketRequestWithTunnelingProtocol(r)
	ports := &portforward.V4Options{}
	if !tunneled {
		var err error
		if ports, err = portforward.NewV4Options(r); err == nil && len(ports.Ports) > maxForwardedPorts {
			err = fmt.Errorf("query parameter %q names %d ports, at most %d are forwarded at once", portforward.PortHeader, len(ports.Ports), maxForwardedPorts)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	machine, err := s.opts.Containers.Machine(namespace, pod)
	if err == nil {
		err = checkUID(r, pod, machine.Pod.UID)
	}
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	if machine.Dial == nil {
		http.Error(w, fmt.Sprintf("pod %q is not running", pod), http.StatusBadRequest)
		return
	}
	session := &forwardSession{dial: machine.Dial}
	s.hijack(w, r, &session.forwards, func(w http.ResponseWriter, r *http.Request) error {
		session.ctx = r.Context()
		defer session.end()
		serve := func(w http.ResponseWriter, r *http.Request) {
			portforward.ServePortForward(w, r, session, pod, string(machine.Pod.UID), ports,
				s.opts.StreamIdleTimeout, s.opts.StreamCreationTimeout, portforward.SupportedProtocols)
		}
		if tunneled {
			return serveTunnel(w, r, serve)
		}
		serve(w, r)
		return nil
	})
}

// forwardSession is one port-forward request, which may carry many connections.
type forwardSession struct {
	ctx      context.Context //nolint:containedctx // the life of the client's connection, which the library does not tell
	dial     provider.Dial
	forwards sync.WaitGroup

	mu    sync.Mutex
	ended bool // guarded by mu: no more connections are begun
}

// begin counts a connection, which calls forwards.Done when it is over.
func (f *forwardSession) begin() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return errClientGone
	}
	f.forwards.Add(1)
	return nil
}

// end refuses what the library, which does not wait for it, may yet begin.
func (f *forwardSession) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
}

var _ portforward.PortForwarder = (*forwardSession)(nil)

// PortForward implements portforward.PortForwarder: it carries one connection. Its error
// is shown to the client, whose other connections go on.
func (f *forwardSession) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.forwards.Done()
	conn, err := f.connect(int(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(f.ctx, func() { _ = conn.Close() })()
	up := make(chan error, 1)
	f.forwards.Go(func() { up <- carryUp(conn, stream) })
	// The connection has ended when its port has nothing more to say: so do kubectl and
	// CRI runtimes have it. What the client still sends nobody reads.
	_, err = io.Copy(stream, conn)
	if f.ctx.Err() != nil {
		return context.Cause(f.ctx)
	}
	select {
	case upErr := <-up:
		err = errors.Join(err, upErr)
	default:
	}
	if err != nil {
		return errors.New(guestText(err.Error()))
	}
	return nil
}

// carryUp carries what the client sends to the port, until the client ends it.
func carryUp(conn *guest.PortConn, stream io.Reader) error {
	_, err := io.Copy(conn, stream)
	if err == nil {
		return conn.CloseWrite()
	}
	// What the port does not take must not stay in the way of other connections.
	_, _ = io.Copy(io.Discard, stream)
	return err
}

// connect connects to a port of the machine. Its errors are for the client.
func (f *forwardSession) connect(port int) (*guest.PortConn, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	defer cancel()
	g, err := f.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach the machine of the pod: %w", err)
	}
	conn, err := guest.DialPort(ctx, g.Agent, port, false)
	switch {
	case errors.Is(err, guest.ErrRefused):
		return nil, fmt.Errorf("dial port %d in the pod: connection refused", port)
	case err != nil:
		return nil, errors.New(guestText(err.Error()))
	}
	return conn.(*guest.PortConn), nil
}
