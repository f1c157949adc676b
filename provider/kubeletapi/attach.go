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

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	target, streams, ok := s.joinable(w, r)
	if !ok {
		return
	}
	machine, err := s.opts.Containers.Machine(r.PathValue("namespace"), r.PathValue("pod"))
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	session := &attachSession{target: target, once: stdinOnce(machine.Pod, target.Container)}
	s.hijack(w, r, &session.inputs, func(w http.ResponseWriter, r *http.Request) error {
		if wsstream.IsWebSocketRequest(r) {
			return serveWebSocket(w, r, streams, s.opts.StreamIdleTimeout, "attaching to", session.run)
		}
		remotecommand.ServeAttach(w, r, session, target.Pod, string(target.PodUID), target.Container, streams,
			s.opts.StreamIdleTimeout, s.opts.StreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
		return nil
	})
}

// stdinOnce tells whether the first client of a container's standard input is its last.
func stdinOnce(pod *corev1.Pod, container string) bool {
	for _, c := range pod.Spec.Containers {
		if c.Name == container {
			return c.StdinOnce
		}
	}
	for _, c := range pod.Spec.InitContainers {
		if c.Name == container {
			return c.StdinOnce
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if c.Name == container {
			return c.StdinOnce
		}
	}
	return false
}

// attachSession is one attach request.
type attachSession struct {
	target provider.Target
	once   bool
	inputs sync.WaitGroup
}

// AttachContainer implements remotecommand.Attacher for SPDY.
func (a *attachSession) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return a.run(ctx, streamsOf(ctx, in, out, errOut, tty, resize, &a.inputs))
}

var _ remotecommand.Attacher = (*attachSession)(nil)

// run joins the client's streams with the container's until the container has exited
// or ctx ends.
func (a *attachSession) run(ctx context.Context, s execStreams) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dialCtx, stop := context.WithTimeout(ctx, dialTimeout)
	g, err := a.target.Dial(dialCtx)
	stop()
	if err != nil {
		return fmt.Errorf("reach the machine of the pod: %w", err)
	}
	to := &attached{stream: g.Containers.AttachContainer(ctx)}
	defer func() { _ = to.stream.CloseResponse() }()
	defer cancel(nil) // ends the call before its response is closed, which waits for its end
	err = to.send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Start{Start: &agentv1.AttachStart{
		Id: a.target.ID, Stdin: s.stdin != nil, Stdout: s.stdout != nil, Stderr: s.stderr != nil, StdinOnce: a.once,
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // with EOF the reason is to be received
		return attachError(err)
	}
	if _, err := to.stream.Receive(); err != nil {
		return attachError(err)
	}
	if s.stdin != nil {
		a.inputs.Go(func() { cancelOn(cancel, to.sendInput(s.stdin)) })
	}
	if s.resize != nil {
		a.inputs.Go(func() { to.sendSizes(ctx, s.resize) })
	}
	for {
		m, err := to.stream.Receive()
		switch cause := context.Cause(ctx); {
		case errors.Is(err, io.EOF):
			return nil // the container has exited
		case cause != nil:
			return cause
		case err != nil:
			return fmt.Errorf("connection to the container lost: %s", guestText(err.Error()))
		}
		if err := write(s.stdout, m.GetStdout()); err != nil {
			return err
		}
		if err := write(s.stderr, m.GetStderr()); err != nil {
			return err
		}
	}
}

func write(w io.Writer, b []byte) error {
	if w == nil || len(b) == 0 {
		return nil
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("client does not take output: %w", err)
	}
	return nil
}

// attachError is why nobody could be attached, for its user.
func attachError(err error) error {
	var connectErr *connect.Error
	if errors.As(err, &connectErr) {
		return errors.New(guestText(connectErr.Message()))
	}
	return errors.New(guestText(err.Error()))
}

// attached is a call that is attached to a container.
type attached struct {
	stream *connect.BidiStreamForClient[agentv1.AttachContainerRequest, agentv1.AttachContainerResponse]
	mu     sync.Mutex // held by send: the call takes one message at a time
}

func (t *attached) send(m *agentv1.AttachContainerRequest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stream.Send(m)
}

// sendInput sends standard input to its end. A container that has exited is no error.
func (t *attached) sendInput(stdin io.Reader) error {
	buf := make([]byte, inputChunk)
	for {
		n, readErr := stdin.Read(buf)
		if n > 0 {
			if err := t.send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Stdin{Stdin: buf[:n]}}); err != nil {
				return inputLost(err)
			}
		}
		if readErr != nil {
			return inputLost(t.send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_CloseStdin{CloseStdin: &agentv1.AttachCloseStdin{}}}))
		}
	}
}

// inputLost sorts out that the call has ended, which receiving tells.
func inputLost(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("send input to the container: %s", guestText(err.Error()))
}

func (t *attached) sendSizes(ctx context.Context, sizes <-chan terminalSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			resize := &agentv1.AttachResize{Cols: uint32(size.Width), Rows: uint32(size.Height)}
			if t.send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Resize{Resize: resize}}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
