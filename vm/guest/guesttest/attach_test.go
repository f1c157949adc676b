// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

type attachment struct {
	t      *testing.T
	stream *connect.BidiStreamForClient[agentv1.AttachContainerRequest, agentv1.AttachContainerResponse]
}

// attach attaches to all streams and returns once it is attached.
func attach(t *testing.T, c *guest.Client, start *agentv1.AttachStart) *attachment {
	t.Helper()
	a := &attachment{t: t, stream: c.Containers.AttachContainer(t.Context())}
	start.Stdout, start.Stderr = true, true
	if err := a.stream.Send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	first, err := a.stream.Receive()
	if err != nil || first.GetAttached() == nil {
		t.Fatalf("attach: %v, %v", first, err)
	}
	t.Cleanup(func() { _, _ = a.stream.CloseRequest(), a.stream.CloseResponse() })
	return a
}

func (a *attachment) input(s string) {
	a.t.Helper()
	if err := a.stream.Send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Stdin{Stdin: []byte(s)}}); err != nil {
		a.t.Error(err)
	}
}

func (a *attachment) closeInput() {
	a.t.Helper()
	if err := a.stream.Send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_CloseStdin{CloseStdin: &agentv1.AttachCloseStdin{}}}); err != nil {
		a.t.Error(err)
	}
}

// await reads until n bytes of output came.
func (a *attachment) await(n int) string {
	a.t.Helper()
	var b strings.Builder
	for b.Len() < n {
		m, err := a.stream.Receive()
		if err != nil {
			a.t.Fatalf("after %q: %v", b.String(), err)
		}
		b.Write(m.GetStdout())
		b.Write(m.GetStderr())
	}
	return b.String()
}

// rest reads to the end.
func (a *attachment) rest() (stdout, stderr string) {
	a.t.Helper()
	var out, errOut bytes.Buffer
	for {
		m, err := a.stream.Receive()
		if errors.Is(err, io.EOF) {
			return out.String(), errOut.String()
		}
		if err != nil {
			a.t.Fatal(err)
		}
		out.Write(m.GetStdout())
		errOut.Write(m.GetStderr())
	}
}

// TestAttach: those who are attached all see the output, the log has it as well, and the
// input ends with the one who asked for that.
func TestAttach(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "c", Args: []string{"do", "echo before", "cat", "warn after"}, Stdin: true})
	start(t, c, "c")
	within(t, "attaching", func() {
		one := attach(t, c, &agentv1.AttachStart{Id: "c", Stdin: true})
		two := attach(t, c, &agentv1.AttachStart{Id: "c", Stdin: true, StdinOnce: true})
		one.input("one\n")
		got := one.await(4)
		if got = strings.TrimPrefix(got, "before\n"); len(got) < 4 { // it may have been written after the attach
			got += one.await(4 - len(got))
		}
		if got != "one\n" {
			t.Errorf("the first reads %q", got)
		}
		one.closeInput() // and goes on seeing
		two.input("two")
		if got := one.await(3); got != "two" {
			t.Errorf("the first reads %q", got)
		}
		two.closeInput()
		two.input("dropped")
		if out, errOut := one.rest(); out != "" || errOut != "after\n" {
			t.Errorf("the first ends with %q and %q", out, errOut)
		}
		if out, errOut := two.rest(); strings.TrimPrefix(out, "before\n") != "one\ntwo" || errOut != "after\n" {
			t.Errorf("the second reads %q and %q", out, errOut)
		}
		if st := awaitExit(t, c, "c"); st.GetExitCode() != 0 {
			t.Errorf("exit code is %d", st.GetExitCode())
		}
		text, _ := output(t, c, "c", 0)
		for _, want := range []string{"before\none\n", "two", "after\n"} { // two streams have no order
			if !strings.Contains(text, want) {
				t.Errorf("captured %q", text)
			}
		}
	})
}

// TestAttachGoesAway: the input ends as well when its sender goes away, but not that of
// a container whose input outlives its senders.
func TestAttachGoesAway(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "c", Args: []string{"cat"}, Stdin: true})
	start(t, c, "c")
	within(t, "the end", func() {
		first := attach(t, c, &agentv1.AttachStart{Id: "c", Stdin: true})
		first.input("a")
		first.await(1)
		first.stream.CloseRequest()
		first.rest()
		other := dial(t, a)
		second := attach(t, other, &agentv1.AttachStart{Id: "c", Stdin: true, StdinOnce: true})
		second.input("b")
		second.await(1)
		other.Close()
		awaitExit(t, c, "c")
		if text, _ := output(t, c, "c", 0); text != "ab" && text != "ab\n" {
			t.Errorf("captured %q", text)
		}
	})
}

// TestAttachSlowly: one who does not take the output neither holds the container nor
// those who do, and loses some of it.
func TestAttachSlowly(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "c", Args: []string{"do", "cat", "spam 8000000", "echo end"}, Stdin: true})
	start(t, c, "c")
	within(t, "the output", func() {
		slow := attach(t, c, &agentv1.AttachStart{Id: "c"})
		quick := attach(t, c, &agentv1.AttachStart{Id: "c", Stdin: true, StdinOnce: true})
		quick.closeInput()
		quick.await(100_000)
		awaitExit(t, c, "c")
		if out, _ := quick.rest(); len(out) == 0 {
			t.Error("the quick one reads nothing more")
		}
		out, _ := slow.rest()
		if len(out) < 1_000_000 || len(out) > 4_000_000 {
			t.Errorf("the slow one reads %d bytes", len(out))
		}
		var n int
		text, _ := output(t, c, "c", 0)
		if n = len(text); n != 8_000_004 {
			t.Errorf("captured %d bytes", n)
		}
	})
}

// TestAttachWhileExiting: whoever gets in sees all that is captured from then on.
func TestAttachWhileExiting(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	attached := 0
	within(t, "attaching", func() {
		for range 100 {
			runContainer(t, c, "c", "print", "300")
			stream := c.Containers.AttachContainer(t.Context())
			stream.Send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Start{Start: &agentv1.AttachStart{Id: "c", Stdout: true}}})
			_, err := stream.Receive()
			got := ""
			if err == nil {
				attached++
				got, _ = (&attachment{t: t, stream: stream}).rest()
			} else if connect.CodeOf(err) != connect.CodeFailedPrecondition {
				t.Error(err)
			}
			stream.CloseResponse()
			if text, _ := output(t, c, "c", 0); !strings.HasSuffix(text, got) || len(text) == 0 {
				t.Errorf("read %d bytes that are not the end of what was captured", len(got))
			}
			if _, err := c.Containers.RemoveContainer(t.Context(), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: "c"})); err != nil {
				t.Error(err)
			}
		}
	})
	t.Logf("attached %d times", attached)
}

func TestAttachTerminal(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "c", Args: []string{"do", "size", "echo bye"}, Stdin: true, Tty: true})
	start(t, c, "c")
	within(t, "the terminal", func() {
		a := attach(t, c, &agentv1.AttachStart{Id: "c", Stdin: true, StdinOnce: true})
		resize := func(cols, rows uint32) {
			a.stream.Send(&agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Resize{Resize: &agentv1.AttachResize{Cols: cols, Rows: rows}}})
		}
		resize(0, 1<<20) // nonsense
		resize(100, 30)
		for got := ""; !strings.HasSuffix(got, "100x30\n"); {
			got += a.await(1)
		}
		a.closeInput() // the terminal lives on
		b := attach(t, c, &agentv1.AttachStart{Id: "c", Stdin: true})
		b.input("\x04")
		if out, _ := a.rest(); out != "bye\n" {
			t.Errorf("got %q", out)
		}
	})
}

// TestAttachBlocked: input that a process does not read holds nobody up but its senders.
func TestAttachBlocked(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "c", Args: []string{"hang"}, Stdin: true})
	start(t, c, "c")
	within(t, "the end", func() {
		for range 40 { // more than may be attached at once
			a := attach(t, c, &agentv1.AttachStart{Id: "c", Stdin: true, StdinOnce: true})
			a.input("nobody reads this")
			a.stream.CloseRequest()
			go a.stream.Receive()
			<-time.After(time.Millisecond)
			a.stream.CloseResponse()
		}
		if _, err := c.Containers.RemoveContainer(t.Context(), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: "c"})); err != nil {
			t.Error(err)
		}
	})
}

func TestAttachRefused(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "created", Args: []string{"hang"}})
	runContainer(t, c, "exited", "echo")
	awaitExit(t, c, "exited")
	runContainer(t, c, "runs", "hang")
	refused := func(m *agentv1.AttachContainerRequest) connect.Code {
		stream := c.Containers.AttachContainer(t.Context())
		defer stream.CloseResponse()
		stream.Send(m)
		_, err := stream.Receive()
		return connect.CodeOf(err)
	}
	begin := func(id string) *agentv1.AttachContainerRequest {
		return &agentv1.AttachContainerRequest{Event: &agentv1.AttachContainerRequest_Start{Start: &agentv1.AttachStart{Id: id}}}
	}
	for id, want := range map[string]connect.Code{"created": connect.CodeFailedPrecondition, "exited": connect.CodeFailedPrecondition, "none": connect.CodeNotFound} {
		if got := refused(begin(id)); got != want {
			t.Errorf("container %s: got %v, want %v", id, got, want)
		}
	}
	if got := refused(&agentv1.AttachContainerRequest{}); got != connect.CodeInvalidArgument {
		t.Errorf("without start: got %v", got)
	}
	for range 32 {
		attach(t, c, &agentv1.AttachStart{Id: "runs"})
	}
	if got := refused(begin("runs")); got != connect.CodeResourceExhausted {
		t.Errorf("too many: got %v", got)
	}
}
