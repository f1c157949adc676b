// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// processSpec is a process to be started in a container.
type processSpec struct {
	args, env  []string
	dir        string
	stdin, tty bool
	cols, rows uint16
	init       bool
}

// process is a process of a container, with the agent's ends of its streams.
type process struct {
	lib            *libcontainer.Process
	pid            int
	terminal       *os.File
	stdin          *os.File
	stdout, stderr *os.File

	done chan struct{} // closed when exit is set
	exit agent.Exit
}

// newProcess starts a process; the first one of a container stops before its program.
// Errors: *agent.StartError.
func (c *container) newProcess(s processSpec) (_ *process, err error) {
	p := &process{
		lib: &libcontainer.Process{
			Args: s.args, Env: s.env, Cwd: s.dir, Init: s.init,
			UID: c.user.uid, GID: c.user.gid, AdditionalGroups: c.user.groups,
			ConsoleWidth: s.cols, ConsoleHeight: s.rows,
		},
		done: make(chan struct{}),
	}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
		if err != nil {
			p.Release()
		}
	}()
	var console *os.File
	if s.tty {
		var child *os.File
		if console, child, err = utils.NewSockPair("console"); err != nil {
			return nil, err
		}
		theirs = append(theirs, console, child)
		p.lib.ConsoleSocket = child
	} else {
		streams, err := p.openStreams(s.stdin)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, streams[:]...)
		p.lib.Stdin, p.lib.Stdout, p.lib.Stderr = streams[0], streams[1], streams[2]
	}
	if err := c.lib.Start(p.lib); err != nil {
		return nil, &agent.StartError{Err: err}
	}
	if p.pid, err = p.lib.Pid(); err != nil {
		return nil, err
	}
	go p.await(c)
	if s.tty {
		_ = p.lib.ConsoleSocket.Close()
		if p.terminal, err = receiveFile(console); err != nil {
			_ = p.lib.Signal(unix.SIGKILL)
			<-p.done
			return nil, fmt.Errorf("receive terminal: %w", err)
		}
	}
	return p, nil
}

// openStreams opens the standard streams: it keeps the agent's ends and returns those
// of the process. Without stdin its standard input is /dev/null.
func (p *process) openStreams(stdin bool) (theirs [3]*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range theirs {
				_ = f.Close()
			}
		}
	}()
	if stdin {
		theirs[0], p.stdin, err = os.Pipe()
	} else {
		theirs[0], err = os.Open(os.DevNull)
	}
	if err != nil {
		return theirs, err
	}
	if p.stdout, theirs[1], err = os.Pipe(); err != nil {
		return theirs, err
	}
	p.stderr, theirs[2], err = os.Pipe()
	return theirs, err
}

// await waits for the process and keeps its exit.
func (p *process) await(c *container) {
	state, err := p.lib.Wait()
	p.exit = agent.Exit{Code: 255, Time: time.Now()}
	if state == nil {
		var exit interface{ Sys() any }
		if errors.As(err, &exit) {
			setExit(&p.exit, exit.Sys())
		}
	} else {
		setExit(&p.exit, state.Sys())
	}
	if p.exit.Code != 0 && p.lib.Init {
		p.exit.OOMKilled = c.oomKills() > 0
	}
	close(p.done)
}

func setExit(e *agent.Exit, sys any) {
	status, ok := sys.(syscall.WaitStatus)
	switch {
	case !ok:
	case status.Signaled():
		e.Signal = int(status.Signal())
		e.Code = 128 + e.Signal
	default:
		e.Code = status.ExitStatus()
	}
}

// receiveFile takes the one file that comes over a unix socket.
func receiveFile(socket *os.File) (*os.File, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	var n int
	var recvErr error
	err = raw.Control(func(fd uintptr) {
		// libcontainer has sent it when Start returns; a dead child is an EOF.
		_ = unix.SetNonblock(int(fd), false)
		name := make([]byte, 4096)
		_, n, _, _, recvErr = unix.Recvmsg(int(fd), name, oob, unix.MSG_CMSG_CLOEXEC)
	})
	if err := errors.Join(err, recvErr); err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 {
		return nil, fmt.Errorf("%d messages, want one", len(msgs))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("%d files, want one", len(fds))
	}
	// Non-blocking, so that reads wait in the poller and Close ends them.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// Pid implements agent.Process, like the methods below.
func (p *process) Pid() int { return p.pid }

func (p *process) Stdin() io.WriteCloser {
	switch {
	case p.terminal != nil:
		return p.terminal
	case p.stdin != nil:
		return p.stdin
	}
	return nil
}

func (p *process) Stdout() io.Reader {
	if p.terminal != nil {
		return terminalReader{p.terminal}
	}
	return p.stdout
}

func (p *process) Stderr() io.Reader {
	if p.stderr == nil {
		return nil
	}
	return p.stderr
}

// terminalReader ends as other output does when the last process hangs up.
type terminalReader struct{ f *os.File }

func (r terminalReader) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

func (p *process) Signal(signal int) error {
	select {
	case <-p.done:
		return nil
	default:
		return ignoreStopped(p.lib.Signal(syscall.Signal(signal)))
	}
}

func (p *process) Resize(cols, rows uint16) error {
	if p.terminal == nil {
		return fmt.Errorf("%w: the process has no terminal", agent.ErrPrecondition)
	}
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	})
	return errors.Join(err, ioctlErr)
}

func (p *process) Wait() agent.Exit {
	<-p.done
	return p.exit
}

func (p *process) Release() {
	for _, f := range []*os.File{p.terminal, p.stdin, p.stdout, p.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}
