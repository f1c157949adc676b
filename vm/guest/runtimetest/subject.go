// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package runtimetest is the conformance suite of agent.Runtime: what the host may rely
// on, whatever a machine makes containers of. It talks to the runtime as the host does,
// by the client and the agent's real server. What a runtime does not have is left out by
// [Features], never by its name, and where the protocol can ask for it the suite wants to
// see it refused.
package runtimetest

import (
	"context"
	"errors"
	"path"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

// Features are what not every runtime has.
type Features struct {
	// OwnRoot: a container has a root file system of its own, and what it writes there
	// goes with it.
	OwnRoot bool
	// ReadOnly: root file systems and mounts can be read-only.
	ReadOnly bool
	// Limits: memory and processor time of a container can be limited.
	Limits bool
	// MemoryVolumes: volumes can be in memory.
	MemoryVolumes bool
	// Users: a process may run as any number, known or not.
	Users bool
	// Security: capabilities, filters, privileges and PID namespaces are a container's own, and
	// images can be mounted beside its own.
	Security bool
}

// Subject is a runtime under test.
type Subject struct {
	// Client is of an agent whose pod is set up and which has no containers. Image slot 0
	// has a system with sh, cat, ls, sleep, tty, stty and id.
	*guest.Client
	Features Features
	// Dir is where containers may write, and where the suite mounts. Empty: the root.
	Dir string
	// Patience is how long one container may take. Zero: 20 seconds.
	Patience time.Duration
	// BeforeCreate is called before each container; nil does nothing.
	BeforeCreate func(ctx context.Context, m *agentv1.CreateContainerRequest) error
}

// At is a path below Dir.
func (s *Subject) At(elem ...string) string {
	return path.Join(append([]string{"/", s.Dir}, elem...)...)
}

// Create creates a container.
func (s *Subject) Create(ctx context.Context, m *agentv1.CreateContainerRequest) error {
	if s.BeforeCreate != nil {
		if err := s.BeforeCreate(ctx, m); err != nil {
			return err
		}
	}
	_, err := s.Containers.CreateContainer(ctx, connect.NewRequest(m))
	return err
}

// Start starts a container.
func (s *Subject) Start(ctx context.Context, id string) (*agentv1.ContainerStatus, error) {
	resp, err := s.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	return resp.Msg.GetStatus(), nil
}

// Run creates and starts a container that is removed when the test ends.
func (s *Subject) Run(t *testing.T, id string, m *agentv1.CreateContainerRequest) {
	t.Helper()
	m.Id = id
	if err := s.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Remove(t, id) })
	if _, err := s.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// Result is how a container ended.
type Result struct {
	Out, Err string
	*agentv1.ContainerStatus
}

// Try runs a container to its end and removes it.
func (s *Subject) Try(t *testing.T, m *agentv1.CreateContainerRequest) (Result, error) {
	t.Helper()
	m.Id = "try"
	ctx, cancel := context.WithTimeout(t.Context(), s.patience())
	defer cancel()
	if err := s.Create(ctx, m); err != nil {
		return Result{}, err
	}
	defer s.Remove(t, "try")
	if _, err := s.Start(ctx, m.GetId()); err != nil {
		return Result{}, err
	}
	r, err := s.output(ctx, m.GetId())
	if err != nil {
		return r, err
	}
	r.ContainerStatus, err = s.Exit(t, m.GetId())
	return r, err
}

func (s *Subject) patience() time.Duration {
	if s.Patience == 0 {
		return 20 * time.Second
	}
	return s.Patience
}

// output reads all output of a container until it ends.
func (s *Subject) output(ctx context.Context, id string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience())
	defer cancel()
	var r Result
	stream, err := s.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: id, Follow: true}))
	if err != nil {
		return r, err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		for _, rec := range stream.Msg().GetRecords() {
			text := string(rec.GetData())
			if !rec.GetPartial() {
				text += "\n"
			}
			if rec.GetStream() == agentv1.OutputStream_OUTPUT_STREAM_STDERR {
				r.Err += text
			} else {
				r.Out += text
			}
		}
	}
	return r, stream.Err()
}

// firstLine waits for the first line that a running container prints.
func (s *Subject) firstLine(t *testing.T, id string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.patience())
	defer cancel()
	stream, err := s.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: id, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		for _, rec := range stream.Msg().GetRecords() {
			return string(rec.GetData())
		}
	}
	t.Fatalf("%s printed nothing: %v", id, stream.Err())
	return ""
}

// outputUntil waits for a line and returns what was printed before it, of both streams.
func (s *Subject) outputUntil(t *testing.T, id, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.patience())
	defer cancel()
	stream, err := s.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: id, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	var out strings.Builder
	for stream.Receive() {
		for _, rec := range stream.Msg().GetRecords() {
			if string(rec.GetData()) == line {
				return out.String()
			}
			out.Write(append(rec.GetData(), '\n'))
		}
	}
	t.Fatalf("%s did not print %q but %q: %v", id, line, out.String(), stream.Err())
	return ""
}

// Exit waits for the end of a container.
func (s *Subject) Exit(t *testing.T, id string) (*agentv1.ContainerStatus, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.patience())
	defer cancel()
	w, err := s.Containers.WatchContainers(ctx, connect.NewRequest(&agentv1.WatchContainersRequest{}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = w.Close() }()
	for w.Receive() {
		if st := w.Msg().GetStatus(); st.GetId() == id && st.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED {
			return st, nil
		}
	}
	return nil, errors.Join(w.Err(), errors.New("the container did not end"))
}

// Remove removes a container.
func (s *Subject) Remove(t *testing.T, id string) {
	t.Helper()
	if _, err := s.Containers.RemoveContainer(context.WithoutCancel(t.Context()), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: id})); err != nil {
		t.Errorf("remove %s: %v", id, err)
	}
}

// Sh is a container that runs a script.
func Sh(script string) *agentv1.CreateContainerRequest {
	return &agentv1.CreateContainerRequest{Args: []string{"/bin/sh", "-c", script}}
}

// shell is a process that runs a script.
func shell(script string) *process.StartRequest {
	return &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sh", Args: []string{"-c", script}}}
}

// begin starts a process in a container and returns its stream after the start event.
func (s *Subject) begin(t *testing.T, id string, m *process.StartRequest) (*connect.ServerStreamForClient[process.StartResponse], *process.ProcessSelector, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.patience())
	t.Cleanup(cancel)
	req := connect.NewRequest(m)
	req.Header().Set(guest.HeaderContainer, id)
	stream, err := s.Process.Start(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	t.Cleanup(func() { _ = stream.Close() })
	if !stream.Receive() {
		return nil, nil, stream.Err()
	}
	pid := stream.Msg().GetEvent().GetStart().GetPid()
	return stream, &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}, nil
}

// finish reads a process's stream to its end.
func finish(stream *connect.ServerStreamForClient[process.StartResponse]) (string, *process.ProcessEvent_EndEvent, error) {
	var out strings.Builder
	var end *process.ProcessEvent_EndEvent
	for stream.Receive() {
		e := stream.Msg().GetEvent()
		out.Write(e.GetData().GetStdout())
		out.Write(e.GetData().GetStderr())
		out.Write(e.GetData().GetPty())
		if e.GetEnd() != nil {
			end = e.GetEnd()
		}
	}
	if err := stream.Err(); err != nil {
		return out.String(), end, err
	}
	if end == nil {
		return out.String(), nil, errors.New("no end event")
	}
	return out.String(), end, nil
}

// Exec runs a process in a container and returns its output, of all streams.
func (s *Subject) Exec(t *testing.T, id string, m *process.StartRequest) (string, *process.ProcessEvent_EndEvent, error) {
	t.Helper()
	stream, _, err := s.begin(t, id, m)
	if err != nil {
		return "", nil, err
	}
	return finish(stream)
}
