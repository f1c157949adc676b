// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Reasons of an exited container, in the kubelet's words.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
)

const (
	// startErrorCode is the exit code that containerd gives a program that could not
	// be executed.
	startErrorCode  = 128
	maxMessageBytes = 4 << 10
	// drainTimeout is how long the exit of a container waits for the rest of its
	// output. Longer takes only output that nobody acknowledges, or a process that
	// outlives the container's first one.
	drainTimeout = 500 * time.Millisecond
)

// container is one entry of the table. Its state only goes forward: created,
// running, exited.
type container struct {
	id    string
	tty   bool
	spool *spool
	words lastWords

	lifecycle sync.Mutex // held by create, start and remove

	mu         sync.Mutex
	state      agentv1.ContainerState // guarded by mu, like all below
	run        Container              // nil when its creation ended in a start error
	startError error                  // what StartContainer will report
	created    time.Time
	started    time.Time
	exit       Exit
	reason     string
	message    string
	last       []byte // its termination message

	taps      taps          // of those who are attached
	inputTurn chan struct{} // capacity 1; full while one of them sends input

	exited chan struct{}  // closed when the state is exited
	work   sync.WaitGroup // captures and the waiter
}

// status is what the host sees.
func (c *container) status() *agentv1.ContainerStatus {
	last := c.spool.lastSeq()
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &agentv1.ContainerStatus{
		Id: c.id, State: c.state, CreatedUnixNano: c.created.UnixNano(),
		Reason: c.reason, Message: c.message, LastOutputSeq: last,
	}
	if !c.started.IsZero() {
		st.StartedUnixNano = c.started.UnixNano()
	}
	switch {
	case c.state == agentv1.ContainerState_CONTAINER_STATE_EXITED:
		st.FinishedUnixNano = c.exit.Time.UnixNano()
		st.ExitCode, st.Signal = int32(c.exit.Code), int32(c.exit.Signal)
		st.TerminationMessage = c.last
	case c.run != nil:
		st.Pid = int32(c.run.Pid())
	}
	return st
}

// advance moves the state forward and reports whether it did.
func (c *container) advance(to agentv1.ContainerState, set func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to <= c.state {
		return false
	}
	c.state = to
	if set != nil {
		set()
	}
	if to == agentv1.ContainerState_CONTAINER_STATE_EXITED {
		close(c.exited)
	}
	return true
}

// running returns the container's runtime side while it runs.
func (c *container) running() (Container, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != agentv1.ContainerState_CONTAINER_STATE_RUNNING {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("container %q is not running", c.id))
	}
	return c.run, nil
}

func (c *container) runtime() Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

// watch captures the output and waits for the exit; changed is told of it.
func (c *container) watch(run Container, changed func(), log *slog.Logger) {
	captured := make(chan struct{})
	c.work.Go(func() {
		defer close(captured)
		defer c.spool.finish()
		var streams sync.WaitGroup
		streams.Go(func() { c.captureStream(run, agentv1.OutputStream_OUTPUT_STREAM_STDOUT) })
		if run.Stderr() != nil {
			streams.Go(func() { c.captureStream(run, agentv1.OutputStream_OUTPUT_STREAM_STDERR) })
		}
		streams.Wait()
	})
	c.work.Go(func() {
		exit := run.Wait()
		last, err := c.words.read()
		if err != nil {
			log.Warn("Reading a termination message failed", "container", c.id, "error", err)
		}
		timer := time.NewTimer(drainTimeout)
		defer timer.Stop()
		select {
		case <-captured:
		case <-timer.C:
		}
		if c.advance(agentv1.ContainerState_CONTAINER_STATE_EXITED, func() {
			c.exit, c.last = exit, last
			c.reason = reasonOf(exit)
		}) {
			changed()
		}
	})
}

// captureStream fails only when the container is being removed, or when its
// terminal hangs up: both end the output.
func (c *container) captureStream(run Container, stream agentv1.OutputStream) {
	out := run.Stdout()
	if stream == agentv1.OutputStream_OUTPUT_STREAM_STDERR {
		out = run.Stderr()
	}
	_ = capture(c.taps.reader(out, stream), uint8(stream), c.spool.append)
}

// failStart ends a container whose program cannot be executed.
func (c *container) failStart(err error) bool {
	return c.advance(agentv1.ContainerState_CONTAINER_STATE_EXITED, func() {
		c.exit = Exit{Code: startErrorCode, Time: time.Now()}
		c.reason = reasonStartError
		c.message = shorten(err.Error())
	})
}

func reasonOf(e Exit) string {
	switch {
	case e.OOMKilled:
		return reasonOOMKilled
	case e.Code == 0 && e.Signal == 0:
		return reasonCompleted
	}
	return reasonError
}

func shorten(s string) string {
	if len(s) > maxMessageBytes {
		s = s[:maxMessageBytes]
	}
	return strings.ToValidUTF8(s, "?")
}

// remove kills what is left and releases everything. It may be called again after
// an error. lifecycle is held.
func (c *container) remove(ctx context.Context) error {
	run := c.runtime()
	if run != nil {
		if err := run.Remove(ctx); err != nil {
			return err
		}
		run.Release()
	}
	// Ends the captures that wait for room.
	err := c.spool.close()
	c.work.Wait()
	return errors.Join(err, c.words.remove())
}
