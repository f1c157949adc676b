// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"io"
	"math"
	"sync"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

const (
	// maxAttachments bounds those who are attached to containers of the machine.
	maxAttachments = 32
	// maxAttachBytes is the most data of one message.
	maxAttachBytes = 64 << 10
	// maxTapBytes is the output kept for one who does not take it. What comes then is
	// dropped: the container must not wait for whoever looks at it.
	maxTapBytes = 1 << 20
	// tappedBytes is what a piece takes beside its data: one that writes a byte at a time
	// must not make a million of them.
	tappedBytes = 64
)

// taps give a container's output, as it is captured, to those who are attached.
type taps struct {
	mu  sync.Mutex
	all map[*tap]struct{} // guarded by mu
}

// tap is the output of one who is attached.
type tap struct {
	streams map[agentv1.OutputStream]bool
	wake    chan struct{} // capacity 1; sent to when there is something
	of      *taps

	pending []tapped // guarded by taps.mu, like all below
	size    int
}

// tapped is a piece of output. Its data is shared between taps.
type tapped struct {
	stream agentv1.OutputStream
	data   []byte
}

// open makes a tap of some streams: it gets what is captured from now on.
func (ts *taps) open(streams map[agentv1.OutputStream]bool) *tap {
	t := &tap{streams: streams, wake: make(chan struct{}, 1), of: ts}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.all == nil {
		ts.all = map[*tap]struct{}{}
	}
	ts.all[t] = struct{}{}
	return t
}

func (t *tap) close() {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	delete(t.of.all, t)
	t.pending = nil
}

// give hands a piece of output to the taps. It never blocks.
func (ts *taps) give(stream agentv1.OutputStream, data []byte) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	var shared []byte
	for t := range ts.all {
		if !t.streams[stream] || t.size+len(data)+tappedBytes > maxTapBytes {
			continue
		}
		if shared == nil {
			shared = append([]byte(nil), data...)
		}
		t.pending = append(t.pending, tapped{stream: stream, data: shared})
		t.size += len(data) + tappedBytes
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// take returns the next output, of one stream, at most one message of it; false when
// there is none.
func (t *tap) take() (tapped, bool) {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if len(t.pending) == 0 {
		return tapped{}, false
	}
	out := t.pending[0]
	n := 1
	if next := t.pending[1:]; len(next) > 0 && next[0].stream == out.stream && len(out.data)+len(next[0].data) <= maxAttachBytes {
		out.data = append([]byte(nil), out.data...) // it is shared
		for _, p := range next {
			if p.stream != out.stream || len(out.data)+len(p.data) > maxAttachBytes {
				break
			}
			out.data = append(out.data, p.data...)
			n++
		}
	}
	clear(t.pending[:n])
	t.pending = t.pending[n:]
	t.size -= len(out.data) + n*tappedBytes
	return out, true
}

// reader is r, whose output the taps get as well.
func (ts *taps) reader(r io.Reader, stream agentv1.OutputStream) io.Reader {
	return tapReader{r: r, ts: ts, stream: stream}
}

type tapReader struct {
	r      io.Reader
	ts     *taps
	stream agentv1.OutputStream
}

func (r tapReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.ts.give(r.stream, b[:n])
	}
	return n, err
}

// attachStream is the agent's end of one AttachContainer call.
type attachStream = connect.BidiStream[agentv1.AttachContainerRequest, agentv1.AttachContainerResponse]

// AttachContainer implements agentv1connect.ContainerServiceHandler.
func (cs *containers) AttachContainer(ctx context.Context, stream *attachStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return invalid("the first message is not start")
	}
	c, err := cs.get(start.GetId())
	if err != nil {
		return err
	}
	ctx, end, err := cs.attachments.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	run, err := c.running()
	if err != nil {
		return err
	}
	out := c.taps.open(map[agentv1.OutputStream]bool{
		agentv1.OutputStream_OUTPUT_STREAM_STDOUT: start.GetStdout(),
		agentv1.OutputStream_OUTPUT_STREAM_STDERR: start.GetStderr(),
	})
	defer out.close()
	if err := stream.Send(&agentv1.AttachContainerResponse{Event: &agentv1.AttachContainerResponse_Attached{Attached: &agentv1.Attached{}}}); err != nil {
		return err
	}
	in := &attachInput{
		c: c, run: run, once: start.GetStdinOnce() && !c.tty,
		over: make(chan struct{}), ended: make(chan struct{}),
	}
	if start.GetStdin() {
		in.stdin = run.Stdin()
	}
	defer close(in.over)
	// A process that does not read keeps it waiting, also after the call.
	cs.attachments.work.Go(func() { in.receive(stream) })
	for exited := false; ; {
		if piece, ok := out.take(); ok {
			if err := stream.Send(piece.message()); err != nil {
				return err
			}
			continue
		}
		if exited {
			return nil
		}
		select {
		case <-out.wake:
		case <-c.exited:
			exited = true // all output that there will be has been captured
		case <-in.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p tapped) message() *agentv1.AttachContainerResponse {
	if p.stream == agentv1.OutputStream_OUTPUT_STREAM_STDERR {
		return &agentv1.AttachContainerResponse{Event: &agentv1.AttachContainerResponse_Stderr{Stderr: p.data}}
	}
	return &agentv1.AttachContainerResponse{Event: &agentv1.AttachContainerResponse_Stdout{Stdout: p.data}}
}

// attachInput is what one who is attached sends.
type attachInput struct {
	c     *container
	run   Container
	stdin io.WriteCloser // nil when no input is taken, or none more
	// once: the container's input ends with this caller's. That of a terminal does not,
	// as with CRI runtimes: its end would be the end of the terminal.
	once  bool
	over  chan struct{} // closed when the call is over
	ended chan struct{} // closed when the caller has nothing more to say
}

// receive carries the caller's input to the container until the call is over.
func (in *attachInput) receive(stream *attachStream) {
	defer close(in.ended)
	defer in.endInput()
	for {
		m, err := stream.Receive()
		if err != nil {
			return
		}
		switch e := m.GetEvent().(type) {
		case *agentv1.AttachContainerRequest_Stdin:
			if len(e.Stdin) > maxAttachBytes {
				return
			}
			in.write(e.Stdin)
		case *agentv1.AttachContainerRequest_CloseStdin:
			in.endInput()
		case *agentv1.AttachContainerRequest_Resize:
			cols, rows := e.Resize.GetCols(), e.Resize.GetRows()
			if in.c.tty && cols > 0 && rows > 0 && cols <= math.MaxUint16 && rows <= math.MaxUint16 {
				_ = in.run.Resize(uint16(cols), uint16(rows)) // it fails when the process has ended
			}
		default:
			return
		}
	}
}

// write sends input to the process when nobody else does.
func (in *attachInput) write(b []byte) {
	if in.stdin == nil || len(b) == 0 {
		return
	}
	select {
	case in.c.inputTurn <- struct{}{}:
	case <-in.over:
		return
	}
	defer func() { <-in.c.inputTurn }()
	if _, err := in.stdin.Write(b); err != nil {
		in.stdin = nil // the process does not read any more
	}
}

// endInput ends the caller's input, and the container's with it where that is asked for.
func (in *attachInput) endInput() {
	if in.stdin != nil && in.once {
		_ = in.stdin.Close()
	}
	in.stdin = nil
}
