// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process/processconnect"
)

const (
	// maxProcesses bounds the processes of the process service.
	maxProcesses = 512
	// headerKeepAlive is envd's header: seconds of silence before a keepalive.
	headerKeepAlive  = "Keepalive-Ping-Interval"
	defaultKeepAlive = 90 * time.Second
)

// processes serves the process service: commands in containers.
type processes struct {
	containers *containers
	log        *slog.Logger

	mu    sync.Mutex
	table map[uint32]*execProcess // guarded by mu, like all below
	forgo map[uint32]*time.Timer  // of ended processes
	shut  bool
	work  sync.WaitGroup
}

var _ processconnect.ProcessHandler = (*processes)(nil)

func newProcesses(cs *containers, log *slog.Logger) *processes {
	return &processes{containers: cs, log: log, table: map[uint32]*execProcess{}, forgo: map[uint32]*time.Timer{}}
}

// close waits for the processes' output; their containers are gone.
func (ps *processes) close() {
	ps.mu.Lock()
	ps.shut = true
	for _, t := range ps.forgo {
		t.Stop()
	}
	ps.mu.Unlock()
	ps.work.Wait()
}

// List implements processconnect.ProcessHandler, like the methods below.
func (ps *processes) List(_ context.Context, req *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	resp := &process.ListResponse{}
	in := req.Header().Get(guest.HeaderContainer)
	ps.mu.Lock()
	for _, p := range ps.table {
		p.mu.Lock()
		running := p.end == nil
		p.mu.Unlock()
		if running && (in == "" || in == p.container) {
			resp.Processes = append(resp.Processes, &process.ProcessInfo{Config: p.config, Pid: p.pid, Tag: p.tag})
		}
	}
	ps.mu.Unlock()
	slices.SortFunc(resp.Processes, func(a, b *process.ProcessInfo) int { return int(int64(a.GetPid()) - int64(b.GetPid())) })
	return connect.NewResponse(resp), nil
}

func (ps *processes) Start(ctx context.Context, req *connect.Request[process.StartRequest], stream *connect.ServerStream[process.StartResponse]) error {
	spec, err := execSpec(req.Msg)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	c, err := ps.container(req.Header())
	if err != nil {
		return err
	}
	l := newListener()
	p, err := ps.start(context.WithoutCancel(ctx), c, spec, req.Msg, l)
	if err != nil {
		return err
	}
	defer p.leave(l)
	// envd's contract: the caller's deadline is the process's, whether or not the
	// caller still listens.
	if deadline, ok := ctx.Deadline(); ok {
		timer := time.AfterFunc(time.Until(deadline), p.kill)
		ps.work.Go(func() { <-p.ended; timer.Stop() })
	}
	err = p.follow(ctx, req.Header(), l, func(e *process.ProcessEvent) error {
		return stream.Send(&process.StartResponse{Event: e})
	})
	if err != nil && req.Header().Get(guest.HeaderKillOnDisconnect) == "true" {
		p.kill()
	}
	return err
}

// container is the one that a request names.
func (ps *processes) container(h http.Header) (*container, error) {
	id := h.Get(guest.HeaderContainer)
	if id == "" {
		return nil, invalid("the header %s names no container", guest.HeaderContainer)
	}
	return ps.containers.get(id)
}

// start makes the process and puts it into the table.
func (ps *processes) start(ctx context.Context, c *container, spec ExecSpec, m *process.StartRequest, l *listener) (*execProcess, error) {
	run, err := c.running()
	if err != nil {
		return nil, err
	}
	if err := ps.admit(m.Tag); err != nil {
		return nil, err
	}
	proc, err := run.Exec(ctx, spec)
	if err != nil {
		return nil, runtimeError(fmt.Sprintf("start %q in container %q", spec.Args[0], c.id), err)
	}
	p := &execProcess{
		pid: uint32(proc.Pid()), tag: m.Tag, container: c.id, config: m.GetProcess(), tty: spec.TTY, run: proc,
		listeners: map[*listener]struct{}{l: {}}, ended: make(chan struct{}),
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if t := ps.forgo[p.pid]; t != nil { // the kernel gave out the number again
		t.Stop()
		delete(ps.forgo, p.pid)
	}
	ps.table[p.pid] = p
	ps.work.Go(func() {
		p.pump()
		ps.keepEnd(p)
	})
	return p, nil
}

// admit decides whether another process may be started.
func (ps *processes) admit(tag *string) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.shut {
		return connect.NewError(connect.CodeUnavailable, errors.New("the agent is ending"))
	}
	running := 0
	for _, p := range ps.table {
		if p.hasEnded() {
			continue
		}
		running++
		if tag != nil && p.tag != nil && *tag == *p.tag {
			return connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("tag %q is taken by process %d", *tag, p.pid))
		}
	}
	if running >= maxProcesses {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the machine runs %d processes of this service", running))
	}
	return nil
}

// keepEnd forgets an ended process after a while.
func (ps *processes) keepEnd(p *execProcess) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.shut {
		return
	}
	ps.forgo[p.pid] = time.AfterFunc(endKept, func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		if ps.table[p.pid] == p {
			delete(ps.table, p.pid)
			delete(ps.forgo, p.pid)
		}
	})
}

func (ps *processes) Connect(ctx context.Context, req *connect.Request[process.ConnectRequest], stream *connect.ServerStream[process.ConnectResponse]) error {
	p, err := ps.find(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	l := newListener()
	p.listen(l)
	defer p.leave(l)
	return p.follow(ctx, req.Header(), l, func(e *process.ProcessEvent) error {
		return stream.Send(&process.ConnectResponse{Event: e})
	})
}

// follow sends start, then events, then end, with keepalives in between.
func (p *execProcess) follow(ctx context.Context, h http.Header, l *listener, send func(*process.ProcessEvent) error) error {
	if err := send(&process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: p.pid}}}); err != nil {
		return err
	}
	every := keepAlive(h)
	silence := time.NewTimer(every)
	defer silence.Stop()
	for {
		silence.Reset(every)
		var err error
		select {
		case e := <-l.events:
			err = send(e)
		case <-p.ended:
			p.mu.Lock()
			end := p.end
			p.mu.Unlock()
			return send(&process.ProcessEvent{Event: &process.ProcessEvent_End{End: end}})
		case <-silence.C:
			err = send(&process.ProcessEvent{Event: &process.ProcessEvent_Keepalive{Keepalive: &process.ProcessEvent_KeepAlive{}}})
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// keepAlive is the silence that a caller accepts.
func keepAlive(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get(headerKeepAlive))
	if err != nil || n < 1 || n > 3600 {
		return defaultKeepAlive
	}
	return time.Duration(n) * time.Second
}

func (p *execProcess) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// kill ends the process; one that has ended is left alone.
func (p *execProcess) kill() {
	_ = p.run.Signal(sigKill)
}

func (ps *processes) find(sel *process.ProcessSelector) (*execProcess, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	switch s := sel.GetSelector().(type) {
	case *process.ProcessSelector_Pid:
		if p := ps.table[s.Pid]; p != nil {
			return p, nil
		}
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with pid %d not found", s.Pid))
	case *process.ProcessSelector_Tag:
		var found *execProcess
		for _, p := range ps.table {
			if p.tag != nil && *p.tag == s.Tag && (found == nil || found.hasEnded()) {
				found = p
			}
		}
		if found != nil {
			return found, nil
		}
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with tag %q not found", s.Tag))
	}
	return nil, invalid("the selector names neither pid nor tag")
}

func (ps *processes) Update(_ context.Context, req *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	p, err := ps.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if size := req.Msg.GetPty().GetSize(); size != nil {
		cols, rows, err := terminalSize(size)
		if err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		if err := p.run.Resize(cols, rows); err != nil && !p.hasEnded() {
			return nil, runtimeError(fmt.Sprintf("resize terminal of process %d", p.pid), err)
		}
	}
	return connect.NewResponse(&process.UpdateResponse{}), nil
}

func (ps *processes) StreamInput(_ context.Context, stream *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	var p *execProcess
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *process.StreamInputRequest_Start:
			if p != nil {
				return nil, invalid("a second start event")
			}
			var err error
			if p, err = ps.find(e.Start.GetProcess()); err != nil {
				return nil, err
			}
		case *process.StreamInputRequest_Data:
			if p == nil {
				return nil, invalid("data before the start event")
			}
			if err := p.write(e.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.StreamInputResponse{}), nil
}

func (ps *processes) SendInput(_ context.Context, req *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	p, err := ps.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.write(req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.SendInputResponse{}), nil
}

// write writes one piece of input. It blocks while the process does not read.
func (p *execProcess) write(in *process.ProcessInput) error {
	var data []byte
	switch i := in.GetInput().(type) {
	case *process.ProcessInput_Stdin:
		if p.tty {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has a terminal: send pty input"))
		}
		data = i.Stdin
	case *process.ProcessInput_Pty:
		if !p.tty {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has no terminal: send stdin input"))
		}
		data = i.Pty
	default:
		return invalid("the input is neither stdin nor pty")
	}
	stdin := p.run.Stdin()
	if stdin == nil {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process was started without standard input"))
	}
	p.input.Lock()
	defer p.input.Unlock()
	if _, err := stdin.Write(data); err != nil {
		if p.hasEnded() {
			return connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", p.pid))
		}
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("write input of process %d: %w", p.pid, err))
	}
	return nil
}

func (ps *processes) SendSignal(_ context.Context, req *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	p, err := ps.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	switch req.Msg.GetSignal() {
	case process.Signal_SIGNAL_SIGKILL, process.Signal_SIGNAL_SIGTERM:
	default:
		return nil, invalid("signal is %v, want SIGNAL_SIGKILL or SIGNAL_SIGTERM", req.Msg.GetSignal())
	}
	if p.hasEnded() {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", p.pid))
	}
	if err := p.run.Signal(int(req.Msg.GetSignal())); err != nil {
		return nil, runtimeError(fmt.Sprintf("signal process %d", p.pid), err)
	}
	return connect.NewResponse(&process.SendSignalResponse{}), nil
}

func (ps *processes) CloseStdin(_ context.Context, req *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	p, err := ps.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if p.tty {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has a terminal: send it an end-of-file character"))
	}
	if in := p.run.Stdin(); in != nil {
		// Closed twice is closed, and a process that ended has no input.
		_ = in.Close()
	}
	return connect.NewResponse(&process.CloseStdinResponse{}), nil
}

// execSpec decodes a request.
func execSpec(m *process.StartRequest) (ExecSpec, error) {
	var errs []error
	cfg := m.GetProcess()
	if cfg.GetCmd() == "" {
		errs = append(errs, errors.New("process.cmd is empty"))
	}
	if cfg.GetCwd() != "" && !path.IsAbs(cfg.GetCwd()) {
		errs = append(errs, fmt.Errorf("process.cwd is %q, want an absolute path", cfg.GetCwd()))
	}
	spec := ExecSpec{Args: append([]string{cfg.GetCmd()}, cfg.GetArgs()...), WorkingDir: cfg.GetCwd(), Stdin: m.Stdin == nil || m.GetStdin()}
	for k, v := range cfg.GetEnvs() {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			errs = append(errs, fmt.Errorf("process.envs has the name %q", k))
			continue
		}
		spec.Env = append(spec.Env, k+"="+v)
	}
	slices.Sort(spec.Env)
	for i, a := range append([]string{cfg.GetCwd()}, spec.Args...) {
		if strings.ContainsRune(a, 0) {
			errs = append(errs, fmt.Errorf("process: argument %d contains a zero byte", i))
		}
	}
	if m.Pty != nil {
		spec.TTY, spec.Stdin = true, true
		if size := m.GetPty().GetSize(); size != nil {
			var err error
			if spec.Cols, spec.Rows, err = terminalSize(size); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return spec, errors.Join(errs...)
}

func terminalSize(s *process.PTY_Size) (cols, rows uint16, err error) {
	if s.GetCols() > 1<<16-1 || s.GetRows() > 1<<16-1 {
		return 0, 0, fmt.Errorf("terminal size %dx%d is out of range", s.GetCols(), s.GetRows())
	}
	return uint16(s.GetCols()), uint16(s.GetRows()), nil
}
