// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process/processconnect"
)

const (
	// maxRequestBytes bounds one message from the host. The largest is WriteFiles:
	// several Secrets and ConfigMaps of 1 MiB each in one volume.
	maxRequestBytes = 8 << 20
	// maxStreams bounds the calls under way: each exec is two, each followed log one.
	maxStreams = 512
	// windowPerStream is what the host may send ahead on one call, and windowPerConn on
	// all of them: more than all forwards and attachments together, so that those whose
	// ports and processes do not read never keep the host's other calls waiting.
	windowPerStream = 128 << 10
	windowPerConn   = 1<<20 + (maxForwards+maxAttachments)*windowPerStream
	// acceptRetry and acceptPatience are for a listener that fails.
	acceptRetry    = 100 * time.Millisecond
	acceptPatience = 30 * time.Second
	// DefaultSpoolBytes is the default of Options.SpoolBytes.
	DefaultSpoolBytes = 64 << 20
)

// Options of a server. System and Runtime are required.
type Options struct {
	System  System
	Runtime Runtime
	// Version is the agent's version, for people.
	Version string
	// Logger gets what the agent has to say; nil discards it.
	Logger *slog.Logger
	// SpoolBytes bounds the output kept for each container. Zero: DefaultSpoolBytes.
	SpoolBytes int64
	// Seal is the memory of the seal; nil for a machine that was never sealed.
	Seal *Seal
}

// Server is the agent. It lives as long as the machine: nothing in it depends on
// a connection, so that a host may come and go.
type Server struct {
	system  System
	runtime Runtime
	log     *slog.Logger
	version string
	started time.Time

	seal       *Seal
	containers *containers
	volumes    *volumes
	processes  *processes
	forwards   *calls
	addresses  *addresses
	handler    http.Handler

	powerOff sync.Once
	work     sync.WaitGroup // what the server does beside its calls
}

// NewServer makes a server over the machine's system and runtime.
func NewServer(o Options) (*Server, error) {
	if o.System == nil || o.Runtime == nil {
		return nil, errors.New("agent: System and Runtime are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SpoolBytes == 0 {
		o.SpoolBytes = DefaultSpoolBytes
	}
	if o.Seal == nil {
		o.Seal = &Seal{}
	}
	scratch := o.System.ScratchDir()
	for _, dir := range []string{"output", "volumes"} {
		if err := os.MkdirAll(filepath.Join(scratch, dir), 0o711); err != nil {
			return nil, fmt.Errorf("prepare scratch disk: %w", err)
		}
	}
	layers, err := newLayers(filepath.Join(scratch, "layers"))
	if err != nil {
		return nil, fmt.Errorf("prepare scratch disk: %w", err)
	}
	s := &Server{
		system: o.System, runtime: o.Runtime, log: o.Logger, version: o.Version, seal: o.Seal, started: time.Now(),
		volumes: newVolumes(filepath.Join(scratch, "volumes"), o.Runtime), forwards: newCalls("forwards", maxForwards), addresses: newAddresses(o.Logger),
	}
	s.containers = newContainers(containersOptions{
		system: o.System, runtime: o.Runtime, volumes: s.volumes, layers: layers, log: o.Logger,
		spoolDir: filepath.Join(scratch, "output"), wordsDir: filepath.Join(scratch, "messages"), spoolBytes: o.SpoolBytes,
	})
	s.processes = newProcesses(s.containers, o.Logger)

	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxRequestBytes),
		connect.WithCompression("gzip", nil, nil),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, r any) error {
			s.log.Error("Call panicked", "procedure", spec.Procedure, "panic", r, "stack", string(debug.Stack()))
			return connect.NewError(connect.CodeInternal, fmt.Errorf("agent panicked: %v", r))
		}),
	}
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewAgentServiceHandler(&machineService{s}, options...))
	mux.Handle(agentv1connect.NewContainerServiceHandler(s.containers, options...))
	mux.Handle(agentv1connect.NewVolumeServiceHandler(s.volumes, options...))
	mux.Handle(processconnect.NewProcessHandler(s.processes, options...))
	s.handler = mux
	return s, nil
}

// Handler serves the agent's calls. Serve is the way to use it on a machine.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve accepts streams from l and serves each until it ends. A listener over a
// serial port, which has one stream, returns the next from Accept when the last was
// closed. Serve ends when ctx ends, with nil, or when l is closed or fails for
// acceptPatience on end; it then closes l and all streams. Containers go on.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	var streams sync.WaitGroup
	defer func() {
		cancel()
		stop()
		_ = l.Close()
		streams.Wait()
	}()
	for failing := time.Duration(0); ; {
		conn, err := l.Accept()
		if err == nil {
			failing = 0
			streams.Go(func() { s.ServeConn(ctx, conn) })
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		// The end of the server may be the end of the machine and its pod: a device
		// that is not there for a moment is not worth that.
		if errors.Is(err, net.ErrClosed) || failing >= acceptPatience {
			return fmt.Errorf("accept a host: %w", err)
		}
		s.log.Warn("Accepting a host failed", "error", err)
		select {
		case <-time.After(acceptRetry):
			failing += acceptRetry
		case <-ctx.Done():
			return nil
		}
	}
}

// ServeConn serves hosts on one stream, one after the other, until the stream
// ends or ctx does, and closes it.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	h2 := &http2.Server{
		MaxConcurrentStreams:         maxStreams,
		MaxReadFrameSize:             64 << 10,
		MaxUploadBufferPerConnection: windowPerConn,
		MaxUploadBufferPerStream:     windowPerStream,
	}
	// With channels of its own: one that servers share is of the bubble of the first test that had it.
	err := http2.ConfigureServer(new(http.Server), h2)
	if err != nil {
		s.log.Error("Serving a host failed", "error", err)
		return
	}
	talk, err := guest.Answer(conn)
	for err == nil {
		s.log.Info("Host connected")
		h2.ServeConn(talk, &http2.ServeConnOpts{Context: ctx, Handler: s.handler, BaseConfig: &http.Server{ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}})
		s.log.Info("Host disconnected")
		talk, err = talk.Again()
	}
	s.log.Debug("Stream ended", "error", err)
}

// Close kills and removes every container and waits for the server's own work.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.containers.close(ctx)
	s.processes.close()
	s.containers.attachments.close()
	s.forwards.close()
	s.addresses.close()
	s.work.Wait()
	return err
}
