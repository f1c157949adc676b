// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

const (
	// maxContainers bounds the table: more than any pod has.
	maxContainers = 256
	// lossySpoolBytes bounds the output kept of a container with lossy output.
	lossySpoolBytes = 1 << 20
	// outputBatchBytes is the data of one message of output.
	outputBatchBytes = 128 << 10
	// keepAliveEvery is the silence after which a watch sends a keepalive.
	keepAliveEvery = 30 * time.Second
)

type containersOptions struct {
	system     System
	runtime    Runtime
	volumes    *volumes
	layers     *layers
	log        *slog.Logger
	spoolDir   string
	wordsDir   string // of termination messages
	spoolBytes int64
}

// containers is the table of the pod's containers and serves ContainerService.
type containers struct {
	containersOptions

	attachments *calls

	preparing sync.Mutex // held by PrepareContainer
	prepares  int        // guarded by preparing: how many there were

	mu       sync.Mutex
	pod      *Pod                  // guarded by mu, like all below; nil until SetupPod
	table    map[string]*container // nil value: being created
	creating map[string]*creation  // those that are
	watchers map[*watcher]struct{}
}

var _ agentv1connect.ContainerServiceHandler = (*containers)(nil)

func newContainers(o containersOptions) *containers {
	return &containers{containersOptions: o, attachments: newCalls("attachments", maxAttachments), table: map[string]*container{}, creating: map[string]*creation{}, watchers: map[*watcher]struct{}{}}
}

// watcher is one WatchContainers call: the ids whose status it has yet to send. It
// holds no statuses, so a slow host costs nothing.
type watcher struct {
	dirty map[string]struct{} // guarded by containers.mu
	wake  chan struct{}       // capacity 1
}

// changed tells the watchers that a container has another status.
func (cs *containers) changed(id string) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for w := range cs.watchers {
		w.dirty[id] = struct{}{}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// all returns the containers by id.
func (cs *containers) all() []*container {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var out []*container
	for _, c := range cs.table {
		if c != nil {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *container) int { return strings.Compare(a.id, b.id) })
	return out
}

func (cs *containers) get(id string) (*container, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.table[id]; c != nil {
		return c, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("container %q does not exist", id))
}

// creation is a container that is being created.
type creation struct {
	done chan struct{} // closed when err is set
	err  error
}

// CreateContainer implements agentv1connect.ContainerServiceHandler, like the methods below.
func (cs *containers) CreateContainer(ctx context.Context, req *connect.Request[agentv1.CreateContainerRequest]) (*connect.Response[agentv1.CreateContainerResponse], error) {
	spec, err := containerSpec(req.Msg)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	id := spec.ID
	cs.mu.Lock()
	_, taken := cs.table[id]
	under := cs.creating[id]
	switch {
	case under != nil:
	case cs.pod == nil:
		err = connect.NewError(connect.CodeFailedPrecondition, errors.New("the pod is not set up"))
	case taken:
		err = connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("container %q exists", id))
	case len(cs.table) >= maxContainers:
		err = connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the machine has %d containers", len(cs.table)))
	default:
		cs.table[id] = nil
		cs.creating[id] = &creation{done: make(chan struct{})}
		spec.Pod = *cs.pod
	}
	cs.mu.Unlock()
	if under != nil { // for a host that is gone, and asks again
		select {
		case <-under.done:
			if under.err != nil {
				return nil, under.err
			}
			return connect.NewResponse(&agentv1.CreateContainerResponse{}), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	// A container half made is worth nothing: the host that asked for it may go away.
	c, err := cs.create(context.WithoutCancel(ctx), spec, req.Msg)
	cs.mu.Lock()
	if err != nil {
		delete(cs.table, id)
	} else {
		cs.table[id] = c
	}
	under = cs.creating[id]
	delete(cs.creating, id)
	under.err = err
	close(under.done)
	cs.mu.Unlock()
	if err != nil {
		return nil, err
	}
	cs.changed(id)
	return connect.NewResponse(&agentv1.CreateContainerResponse{}), nil
}

// create makes what spec says, or nothing.
func (cs *containers) create(ctx context.Context, spec ContainerSpec, m *agentv1.CreateContainerRequest) (_ *container, err error) {
	doing := fmt.Sprintf("create container %q", spec.ID)
	for i, mount := range m.GetMounts() {
		if spec.Mounts[i].Dir, err = cs.mountDir(ctx, mount); err != nil {
			return nil, err
		}
	}
	if target := m.GetTargetContainer(); target != "" {
		c, err := cs.get(target)
		if err != nil {
			return nil, err
		}
		if spec.Target, err = c.running(); err != nil {
			return nil, err
		}
	}
	if spec.Lower, err = cs.system.MountImage(ctx, int(m.GetImageSlot())); err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s: mount image slot %d: %w", doing, m.GetImageSlot(), err))
	}
	if spec.Upper, spec.LowerLayers, err = cs.layers.acquire(spec.ID, m.GetWritableLayer(), m.GetLowerLayers()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			cs.layers.release(spec.ID)
		}
	}()
	var words lastWords
	if target := m.GetTerminationMessagePath(); target != "" {
		if words, err = newLastWords(filepath.Join(cs.wordsDir, spec.ID)); err != nil {
			return nil, internal(doing, err)
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, words.remove())
			}
		}()
		spec.Mounts = append(spec.Mounts, Mount{Dir: words.file, Target: path.Clean(target)})
	}
	spoolBytes := cs.spoolBytes
	if m.GetLossyOutput() {
		spoolBytes = min(spoolBytes, lossySpoolBytes)
	}
	output, err := newSpool(filepath.Join(cs.spoolDir, spec.ID), spoolBytes)
	if err != nil {
		return nil, internal(doing, err)
	}
	output.lossy = m.GetLossyOutput()
	c := &container{
		id: spec.ID, tty: spec.TTY, spool: output, words: words,
		state: agentv1.ContainerState_CONTAINER_STATE_CREATED, created: time.Now(), exited: make(chan struct{}),
		inputTurn: make(chan struct{}, 1),
	}
	run, err := cs.runtime.Create(ctx, spec)
	var start *StartError
	if errors.As(err, &start) {
		// What cannot be executed is found while the container is created. CRI's
		// callers learn it from the start.
		c.startError = start
		output.finish()
		return c, nil
	}
	if err != nil {
		return nil, errors.Join(runtimeError(doing, err), output.close())
	}
	c.run = run
	c.watch(run, func() { cs.changed(c.id) }, cs.log)
	return c, nil
}

func (cs *containers) StartContainer(ctx context.Context, req *connect.Request[agentv1.StartContainerRequest]) (*connect.Response[agentv1.StartContainerResponse], error) {
	c, err := cs.get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	c.lifecycle.Lock()
	defer c.lifecycle.Unlock()
	if err := cs.start(context.WithoutCancel(ctx), c); err != nil {
		return nil, err
	}
	return connect.NewResponse(&agentv1.StartContainerResponse{Status: c.status()}), nil
}

func (cs *containers) start(ctx context.Context, c *container) error {
	c.mu.Lock()
	state, run, startErr := c.state, c.run, c.startError
	c.mu.Unlock()
	if state != agentv1.ContainerState_CONTAINER_STATE_CREATED {
		return nil
	}
	if startErr == nil {
		before := time.Now()
		err := run.Start(ctx)
		if err == nil {
			if c.advance(agentv1.ContainerState_CONTAINER_STATE_RUNNING, func() { c.started = before }) {
				cs.changed(c.id)
			} else {
				// It exited before this goroutine came here; it has run all the same.
				c.mu.Lock()
				c.started = before
				c.mu.Unlock()
			}
			return nil
		}
		var start *StartError
		if !errors.As(err, &start) {
			return runtimeError(fmt.Sprintf("start container %q", c.id), err)
		}
		startErr = err
	}
	if c.failStart(startErr) {
		cs.changed(c.id)
	}
	if run != nil {
		run.Release() // there will be no output
	}
	return nil
}

func (cs *containers) ListContainers(context.Context, *connect.Request[agentv1.ListContainersRequest]) (*connect.Response[agentv1.ListContainersResponse], error) {
	resp := &agentv1.ListContainersResponse{}
	for _, c := range cs.all() {
		resp.Containers = append(resp.Containers, c.status())
	}
	return connect.NewResponse(resp), nil
}

func (cs *containers) WatchContainers(ctx context.Context, _ *connect.Request[agentv1.WatchContainersRequest], stream *connect.ServerStream[agentv1.WatchContainersResponse]) error {
	w := &watcher{dirty: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	cs.mu.Lock()
	cs.watchers[w] = struct{}{}
	cs.mu.Unlock()
	defer func() {
		cs.mu.Lock()
		delete(cs.watchers, w)
		cs.mu.Unlock()
	}()
	send := func(c *container) error {
		return stream.Send(&agentv1.WatchContainersResponse{Event: &agentv1.WatchContainersResponse_Status{Status: c.status()}})
	}
	for _, c := range cs.all() {
		if err := send(c); err != nil {
			return err
		}
	}
	if err := stream.Send(&agentv1.WatchContainersResponse{Event: &agentv1.WatchContainersResponse_Synced{Synced: &agentv1.Synced{}}}); err != nil {
		return err
	}
	silence := time.NewTimer(keepAliveEvery)
	defer silence.Stop()
	for {
		silence.Reset(keepAliveEvery)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-silence.C:
			if err := stream.Send(&agentv1.WatchContainersResponse{Event: &agentv1.WatchContainersResponse_Keepalive{Keepalive: &agentv1.KeepAlive{}}}); err != nil {
				return err
			}
		case <-w.wake:
			cs.mu.Lock()
			var due []*container
			for id := range w.dirty {
				if c := cs.table[id]; c != nil {
					due = append(due, c)
				}
			}
			clear(w.dirty)
			cs.mu.Unlock()
			for _, c := range due {
				if err := send(c); err != nil {
					return err
				}
			}
		}
	}
}

func (cs *containers) SignalContainer(_ context.Context, req *connect.Request[agentv1.SignalContainerRequest]) (*connect.Response[agentv1.SignalContainerResponse], error) {
	if n := req.Msg.GetSignal(); n < 1 || n > 64 {
		return nil, invalid("signal is %d, want 1 to 64", n)
	}
	c, err := cs.get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	resp := connect.NewResponse(&agentv1.SignalContainerResponse{})
	c.mu.Lock()
	run, state := c.run, c.state
	c.mu.Unlock()
	if run == nil || state == agentv1.ContainerState_CONTAINER_STATE_EXITED {
		return resp, nil
	}
	signal := run.Signal
	if req.Msg.GetAll() {
		signal = run.SignalAll
	}
	if err := signal(int(req.Msg.GetSignal())); err != nil {
		return nil, runtimeError(fmt.Sprintf("signal container %q", c.id), err)
	}
	return resp, nil
}

func (cs *containers) RemoveContainer(ctx context.Context, req *connect.Request[agentv1.RemoveContainerRequest]) (*connect.Response[agentv1.RemoveContainerResponse], error) {
	id := req.Msg.GetId()
	cs.mu.Lock()
	c, taken := cs.table[id]
	cs.mu.Unlock()
	if taken && c == nil {
		return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("container %q is being created", id))
	}
	if c != nil {
		if err := cs.remove(context.WithoutCancel(ctx), c); err != nil {
			return nil, runtimeError(fmt.Sprintf("remove container %q", id), err)
		}
	}
	return connect.NewResponse(&agentv1.RemoveContainerResponse{}), nil
}

func (cs *containers) remove(ctx context.Context, c *container) error {
	c.lifecycle.Lock()
	defer c.lifecycle.Unlock()
	cs.mu.Lock()
	gone := cs.table[c.id] != c
	cs.mu.Unlock()
	if gone {
		return nil
	}
	if err := c.remove(ctx); err != nil {
		return err
	}
	cs.layers.release(c.id)
	cs.mu.Lock()
	delete(cs.table, c.id)
	cs.mu.Unlock()
	return nil
}

func (cs *containers) ReadOutput(ctx context.Context, req *connect.Request[agentv1.ReadOutputRequest], stream *connect.ServerStream[agentv1.ReadOutputResponse]) error {
	c, err := cs.get(req.Msg.GetId())
	if err != nil {
		return err
	}
	r := c.spool.read(req.Msg.GetAfterSeq())
	defer r.close()
	for {
		records, changed, err := r.next(outputBatchBytes)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errReplaced):
			return connect.NewError(connect.CodeAborted, err)
		case errors.Is(err, errSpoolClosed):
			return connect.NewError(connect.CodeNotFound, fmt.Errorf("container %q was removed", c.id))
		case err != nil:
			return internal(fmt.Sprintf("read output of container %q", c.id), err)
		case len(records) > 0:
			resp := &agentv1.ReadOutputResponse{Records: make([]*agentv1.OutputRecord, len(records))}
			for i, rec := range records {
				resp.Records[i] = &agentv1.OutputRecord{
					Seq: rec.seq, TimeUnixNano: rec.time, Stream: agentv1.OutputStream(rec.stream), Partial: rec.partial, Data: rec.data,
				}
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
			continue
		case !req.Msg.GetFollow():
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (cs *containers) AckOutput(_ context.Context, req *connect.Request[agentv1.AckOutputRequest]) (*connect.Response[agentv1.AckOutputResponse], error) {
	c, err := cs.get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	if err := c.spool.ack(req.Msg.GetThroughSeq()); err != nil {
		return nil, runtimeError(fmt.Sprintf("acknowledge output of container %q", c.id), err)
	}
	return connect.NewResponse(&agentv1.AckOutputResponse{}), nil
}

// stats measures all containers that run, as long as somebody waits for it.
func (cs *containers) stats(ctx context.Context) []*agentv1.ContainerStats {
	var out []*agentv1.ContainerStats
	for _, c := range cs.all() {
		if ctx.Err() != nil {
			break
		}
		run, err := c.running()
		if err != nil {
			continue
		}
		st, err := run.Stats()
		if err != nil {
			cs.log.Warn("Measuring a container failed", "container", c.id, "error", err)
			continue
		}
		out = append(out, &agentv1.ContainerStats{
			Id: c.id, CpuNano: int64(st.CPUTime), MemoryBytes: st.MemoryBytes, MemoryWorkingSetBytes: st.WorkingSetBytes,
			Pids: st.PIDs, WritableBytes: st.WritableLayerBytes,
			MemoryRssBytes: st.RSSBytes, PageFaults: st.PageFaults, MajorPageFaults: st.MajorPageFaults,
		})
	}
	return out
}

const sigKill = 9

// kill ends all containers and waits for them until ctx ends.
func (cs *containers) kill(ctx context.Context) {
	all := cs.all()
	for _, c := range all {
		if run := c.runtime(); run != nil {
			if err := run.SignalAll(sigKill); err != nil {
				cs.log.Warn("Killing a container failed", "container", c.id, "error", err)
			}
		}
	}
	for _, c := range all {
		if c.runtime() == nil {
			continue
		}
		select {
		case <-c.exited:
		case <-ctx.Done():
			return
		}
	}
}

// close removes all containers.
func (cs *containers) close(ctx context.Context) error {
	var errs []error
	for _, c := range cs.all() {
		errs = append(errs, cs.remove(ctx, c))
	}
	return errors.Join(errs...)
}
