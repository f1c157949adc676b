// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	utilexec "k8s.io/utils/exec"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process/processconnect"
)

const (
	// inputChunk is the most that is sent to a process at once: what a terminal or a
	// pipe takes in one go, far below the guest's limit of a message.
	inputChunk = 32 << 10
	// firstSizeTimeout is how long a command with a terminal waits for the client to
	// tell the terminal's size, so that the command sees the right one from its start.
	firstSizeTimeout = 100 * time.Millisecond
	// maxGuestText bounds what a guest says before it is shown to the user.
	maxGuestText = 1 << 10
)

// defaultSize is what a terminal has until the client says otherwise.
var defaultSize = terminalSize{Width: 80, Height: 24}

// terminalSize is in characters. Its JSON form is that of the exec protocol.
type terminalSize struct {
	Width, Height uint16
}

func (s terminalSize) pty() *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(s.Width), Rows: uint32(s.Height)}}
}

// command is a command to be run in a container, and where its streams lead.
type command struct {
	container string // id in the machine
	args      []string
	tty       bool
	stdin     io.Reader // nil: none
	stdout    io.Writer // nil: thrown away
	stderr    io.Writer // nil: thrown away
	resize    <-chan terminalSize
	observe   func(sample provider.Sample, took time.Duration)
}

// run runs the command and returns when it has ended and its output is written:
// nil for exit code 0, a utilexec.CodeExitError for others, which must reach the
// exec protocol unwrapped. When ctx ends, the command is killed.
//
// Readers of stdin and resize may still be at work when run returns, because only
// the end of their streams unblocks them; inputs counts them.
func (c *command) run(ctx context.Context, guestProcess processconnect.ProcessClient, inputs *sync.WaitGroup) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	req := connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: c.args[0], Args: c.args[1:]},
		Stdin:   new(c.stdin != nil),
	})
	req.Header().Set(guest.HeaderContainer, c.container)
	req.Header().Set(guest.HeaderKillOnDisconnect, "true")
	if c.tty {
		// CRI runtimes give a terminal's process this variable.
		req.Msg.Process.Envs = map[string]string{"TERM": "xterm"}
		req.Msg.Pty = c.firstSize(ctx).pty()
	}
	requested := time.Now()
	var began time.Time
	heard := false
	stream, err := guestProcess.Start(ctx, req)
	if err != nil {
		return startError(err)
	}
	defer stream.Close()

	started := false
	for stream.Receive() {
		switch event := stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Start:
			if started {
				return errors.New("the guest started the command twice")
			}
			started, began = true, time.Now()
			c.observe(provider.SampleCommandStart, began.Sub(requested))
			self := &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: event.Start.GetPid()}}
			if c.stdin != nil {
				inputs.Go(func() { cancelOn(cancel, c.sendInput(ctx, guestProcess, self)) })
			}
			if c.tty {
				inputs.Go(func() { c.sendSizes(ctx, guestProcess, self) })
			}
		case *process.ProcessEvent_Data:
			if started && !heard {
				heard = true
				c.observe(provider.SampleFirstByte, time.Since(began))
			}
			if err := c.write(event.Data); err != nil {
				return fmt.Errorf("client does not take output: %w", err)
			}
		case *process.ProcessEvent_End:
			return exitError(event.End)
		}
	}
	err = stream.Err()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	switch {
	case err == nil:
		return errors.New("the machine lost the command")
	case !started:
		return startError(err)
	default:
		return fmt.Errorf("connection to the command lost: %s", guestText(err.Error()))
	}
}

func cancelOn(cancel context.CancelCauseFunc, err error) {
	if err != nil {
		cancel(err)
	}
}

// firstSize waits a moment for the client's terminal size.
func (c *command) firstSize(ctx context.Context) terminalSize {
	timer := time.NewTimer(firstSizeTimeout)
	defer timer.Stop()
	select {
	case size, ok := <-c.resize:
		if ok && size.Width > 0 && size.Height > 0 {
			return size
		}
	case <-timer.C:
	case <-ctx.Done():
	}
	return defaultSize
}

func (c *command) sendSizes(ctx context.Context, p processconnect.ProcessClient, self *process.ProcessSelector) {
	for {
		select {
		case size, ok := <-c.resize:
			if !ok {
				return
			}
			if size.Width == 0 || size.Height == 0 {
				continue // a client without a terminal
			}
			// A size that does not arrive is made good by the next one, or the command is gone.
			_, _ = p.Update(ctx, connect.NewRequest(&process.UpdateRequest{Process: self, Pty: size.pty()}))
		case <-ctx.Done():
			return
		}
	}
}

// endOfTransmission is what a terminal's user types to end the input.
const endOfTransmission = 0x04

// sendInput sends standard input to its end. A process that does not take input any
// more is no error.
func (c *command) sendInput(ctx context.Context, p processconnect.ProcessClient, self *process.ProcessSelector) error {
	buf := make([]byte, inputChunk)
	send := func(b []byte) error {
		input := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: b}}
		if c.tty {
			input = &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: b}}
		}
		_, err := p.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: self, Input: input}))
		return err
	}
	for {
		n, readErr := c.stdin.Read(buf)
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return inputError(err)
			}
		}
		if readErr == nil {
			continue
		}
		// The client has no more input, or is gone, which the end of its connection tells.
		var err error
		if c.tty {
			err = send([]byte{endOfTransmission})
		} else {
			_, err = p.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: self}))
		}
		return inputError(err)
	}
}

// inputError sorts out what only says that the process does not read its input.
func inputError(err error) error {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeUnimplemented:
		return fmt.Errorf("send input to the command: %s", guestText(err.Error()))
	default:
		return nil
	}
}

func (c *command) write(d *process.ProcessEvent_DataEvent) error {
	var w io.Writer
	var b []byte
	switch out := d.GetOutput().(type) {
	case *process.ProcessEvent_DataEvent_Stdout:
		w, b = c.stdout, out.Stdout
	case *process.ProcessEvent_DataEvent_Stderr:
		w, b = c.stderr, out.Stderr
	case *process.ProcessEvent_DataEvent_Pty:
		w, b = c.stdout, out.Pty
	}
	if w == nil || len(b) == 0 {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// startError is why a command did not start, for its user.
func startError(err error) error {
	var connectErr *connect.Error
	if errors.As(err, &connectErr) {
		return fmt.Errorf("start command: %s", guestText(connectErr.Message()))
	}
	return fmt.Errorf("start command: %s", guestText(err.Error()))
}

// exitError is how a command ended, with the code that a shell would show.
func exitError(end *process.ProcessEvent_EndEvent) error {
	if end.GetExited() && end.GetExitCode() == 0 {
		return nil
	}
	code := int(end.GetExitCode())
	if name, ok := strings.CutPrefix(end.GetStatus(), "signal: "); ok && !end.GetExited() {
		code = 128 + signals[name]
	}
	if code <= 0 || code > 255 {
		code = 255
	}
	return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
}

// signals are the numbers of the signals that the envd contract tells by name; a
// shell shows 128 more. One that is not here shows as 128.
var signals = map[string]int{
	"hangup": 1, "interrupt": 2, "quit": 3, "illegal instruction": 4, "trace/breakpoint trap": 5, "aborted": 6, "bus error": 7,
	"floating point exception": 8, "killed": 9, "user defined signal 1": 10, "segmentation fault": 11, "user defined signal 2": 12,
	"broken pipe": 13, "alarm clock": 14, "terminated": 15,
}

// guestText makes what a guest says fit for a user's terminal and a log.
func guestText(s string) string {
	if len(s) > maxGuestText {
		s = s[:maxGuestText]
	}
	clean := make([]rune, 0, len(s))
	for _, r := range s {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			r = ' '
		}
		clean = append(clean, r)
	}
	return string(clean)
}
