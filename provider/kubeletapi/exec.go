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
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/vk-firkin/vk-firkin/provider"
)

// dialTimeout bounds how long an exec waits for the machine's agent.
const dialTimeout = 15 * time.Second

// errClientGone ends a command whose client has gone away.
var errClientGone = errors.New("client disconnected")

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	args := r.URL.Query()["command"]
	if len(args) == 0 || args[0] == "" {
		http.Error(w, "you must specify a command", http.StatusBadRequest)
		return
	}
	target, streams, ok := s.joinable(w, r)
	if !ok {
		return
	}
	session := &execSession{target: target, args: args, observe: s.opts.Observe}
	s.hijack(w, r, &session.inputs, func(w http.ResponseWriter, r *http.Request) error {
		if wsstream.IsWebSocketRequest(r) {
			return serveWebSocket(w, r, streams, s.opts.StreamIdleTimeout, "executing command in", session.run)
		}
		remotecommand.ServeExec(w, r, session, target.Pod, string(target.PodUID), target.Container, args, streams,
			s.opts.StreamIdleTimeout, s.opts.StreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
		return nil
	})
}

// joinable finds the running container that a request names and the streams that it
// wants, or answers it.
func (s *Server) joinable(w http.ResponseWriter, r *http.Request) (target provider.Target, streams *remotecommand.Options, ok bool) {
	namespace, pod, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	streams, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return target, nil, false
	}
	target, err = s.opts.Containers.Target(namespace, pod, container)
	if err == nil {
		err = checkUID(r, pod, target.PodUID)
	}
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return target, nil, false
	}
	if !target.Running || target.Dial == nil {
		http.Error(w, fmt.Sprintf("container %q in pod %q is not running", container, pod), http.StatusBadRequest)
		return target, nil, false
	}
	return target, streams, true
}

// checkUID refuses a request that names another pod of the same name.
func checkUID(r *http.Request, pod string, is types.UID) error {
	if uid := r.PathValue("uid"); uid != "" && uid != string(is) {
		return fmt.Errorf("pod %q with UID %q: %w", pod, uid, provider.ErrNotFound)
	}
	return nil
}

// hijack serves a request that takes over its connection. The context of the request
// that serve gets ends with the connection, and hijack returns when all users of the
// connection's streams have.
func (s *Server) hijack(w http.ResponseWriter, r *http.Request, users *sync.WaitGroup, serve func(http.ResponseWriter, *http.Request) error) {
	// net/http neither tells of a lost client nor waits for the connection once it is
	// hijacked: we do both.
	s.sessions.Add(1)
	defer s.sessions.Done()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	watched := &hijackWatcher{ResponseWriter: w, lost: func() { cancel(errClientGone) }}
	defer users.Wait()    // what still reads from the streams ends with them
	defer watched.close() // the library leaves it open when a client does not open its streams
	if err := serve(watched, r.WithContext(ctx)); err != nil {
		s.opts.Logger.Info("Streaming failed", "path", r.URL.Path, "error", err)
	}
}

// execSession is one exec request.
type execSession struct {
	target provider.Target
	args   []string
	inputs sync.WaitGroup
	// observe is told how long the command took to start.
	observe func(sample provider.Sample, took time.Duration)
}

// execStreams are the client's streams; those it did not ask for are nil.
type execStreams struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	tty            bool
	resize         <-chan terminalSize
}

// run runs the command. See command.run for its errors.
func (e *execSession) run(ctx context.Context, s execStreams) error {
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	g, err := e.target.Dial(dialCtx)
	cancel()
	if err != nil {
		return fmt.Errorf("reach the machine of the pod: %w", err)
	}
	c := &command{container: e.target.ID, args: e.args, tty: s.tty, stdin: s.stdin, stdout: s.stdout, stderr: s.stderr, resize: s.resize, observe: e.observe}
	return c.run(ctx, g.Process, &e.inputs)
}

// ExecInContainer implements remotecommand.Executor for SPDY.
func (e *execSession) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return e.run(ctx, streamsOf(ctx, in, out, errOut, tty, resize, &e.inputs))
}

// streamsOf are the streams as the library for SPDY gives them. What passes on sizes is
// one of users.
func streamsOf(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, users *sync.WaitGroup) execStreams {
	s := execStreams{tty: tty}
	// Interfaces that hold no stream must be nil.
	if in != nil {
		s.stdin = in
	}
	if out != nil {
		s.stdout = out
	}
	if errOut != nil {
		s.stderr = errOut
	}
	if resize != nil {
		sizes := make(chan terminalSize)
		users.Go(func() {
			defer close(sizes)
			for size := range resize {
				select {
				case sizes <- terminalSize{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			}
		})
		s.resize = sizes
	}
	return s
}

var _ remotecommand.Executor = (*execSession)(nil)
