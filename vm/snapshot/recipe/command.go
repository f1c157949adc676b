// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

const (
	// maxOutput bounds the output in an error.
	maxOutput = 4 << 10
	// outputPatience is how long the rest of its output may take once a command has
	// ended: with a full disk in the machine it never comes.
	outputPatience = 2 * time.Second
)

// box is a container of the recipe.
type box struct {
	id     string
	client *guest.Client
	output tail
}

// create makes a container and starts it.
func (m *machine) create(ctx context.Context, name string, c Command, env []string, writable bool) (*box, *agentv1.ContainerStatus, error) {
	req := &agentv1.CreateContainerRequest{
		Id: ContainerPrefix + name, ImageSlot: int32(m.opts.Slot), Args: c.Args, Env: env, WorkingDir: m.dir(c),
		User: &agentv1.User{ImageUser: m.opts.Image.User},
	}
	switch {
	case m.opts.Host:
		req.LossyOutput = !writable
	case writable:
		req.WritableLayer = Layer
		m.layer = true
	default:
		// A container that runs on writes a layer of its own: what lies below other
		// containers must not change.
		req.LossyOutput = true
		if m.layer {
			req.LowerLayers = []string{Layer}
		}
	}
	if _, err := m.client.Containers.CreateContainer(ctx, connect.NewRequest(req)); err != nil {
		return nil, nil, err
	}
	started, err := m.client.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: req.GetId()}))
	if err != nil {
		return nil, nil, err
	}
	return &box{id: req.GetId(), client: m.client}, started.Msg.GetStatus(), nil
}

// run executes a command in the template's layer until it ends, and removes its container.
// The status is of the exited container; err is that nobody knows how it ended.
func (m *machine) run(ctx context.Context, name string, c Command, env []string) (st *agentv1.ContainerStatus, output string, err error) {
	b, _, err := m.create(ctx, name, c, env, true)
	if err != nil {
		return nil, "", err
	}
	reading, stop := context.WithCancel(ctx)
	var reader sync.WaitGroup
	read := make(chan struct{})
	reader.Go(func() {
		defer close(read)
		b.read(reading, true)
	})
	st, err = b.exit(ctx)
	if err == nil {
		select {
		case <-read:
		case <-time.After(outputPatience):
		case <-ctx.Done():
		}
	}
	stop()
	reader.Wait()
	if err != nil {
		return nil, b.output.String(), err
	}
	_, err = m.client.Containers.RemoveContainer(ctx, connect.NewRequest(&agentv1.RemoveContainerRequest{Id: b.id}))
	return st, b.output.String(), err
}

// exit waits until the container has exited.
func (b *box) exit(ctx context.Context) (*agentv1.ContainerStatus, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the stream ends with it
	stream, err := b.client.Containers.WatchContainers(ctx, connect.NewRequest(&agentv1.WatchContainersRequest{}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if st := stream.Msg().GetStatus(); st.GetId() == b.id && st.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED {
			return st, nil
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: the agent ended its report about container %q", vm.ErrUnavailable, b.id)
}

// read collects the end of the output, with follow until the container has ended. It
// acknowledges what it read, so that a command that prints much does not have to wait.
func (b *box) read(ctx context.Context, follow bool) {
	stream, err := b.client.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: b.id, Follow: follow}))
	if err != nil {
		return // the command's end says more
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		var last uint64
		for _, r := range stream.Msg().GetRecords() {
			b.output.add(r.GetData(), r.GetPartial())
			last = r.GetSeq()
		}
		if follow {
			_, _ = b.client.Containers.AckOutput(ctx, connect.NewRequest(&agentv1.AckOutputRequest{Id: b.id, ThroughSeq: last}))
		}
	}
}

// status asks for the container's status now.
func (b *box) status(ctx context.Context) (*agentv1.ContainerStatus, error) {
	list, err := b.client.Containers.ListContainers(ctx, connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil {
		return nil, err
	}
	for _, st := range list.Msg.GetContainers() {
		if st.GetId() == b.id {
			return st, nil
		}
	}
	return nil, fmt.Errorf("the agent has no container %q", b.id)
}

// ended says how a container ended, for people; "" when it ended well.
func ended(st *agentv1.ContainerStatus) string {
	switch {
	case st.GetReason() == "StartError":
		return "cannot be executed: " + clean(st.GetMessage())
	case st.GetReason() == "OOMKilled":
		return "was killed for want of memory: give the template's shape more"
	case st.GetSignal() != 0:
		return fmt.Sprintf("was ended by signal %d", st.GetSignal())
	case st.GetExitCode() != 0:
		return fmt.Sprintf("ended with exit code %d", st.GetExitCode())
	}
	return ""
}

// tail keeps the end of some output. Safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) add(data []byte, partial bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, data...)
	if !partial {
		t.buf = append(t.buf, '\n')
	}
	if len(t.buf) > 4*maxOutput {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-maxOutput:]...)
	}
}

// String is the end of it, made safe to show.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buf
	if len(b) > maxOutput {
		b = b[len(b)-maxOutput:]
	}
	out := clean(string(b))
	for len(out) > maxOutput { // what replaces a byte may be longer, and a rune was perhaps cut
		_, n := utf8.DecodeRuneInString(out)
		out = out[n:]
	}
	return strings.TrimSpace(out)
}

// clean makes text of a guest safe to show: it must not steer a terminal. Pure.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || unicode.IsPrint(r) && r != utf8.RuneError:
			return r
		case r == '\r':
			return -1
		}
		return '.'
	}, s)
}
