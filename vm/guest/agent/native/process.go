// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// process is a process of a container, with the agent's ends of its streams.
type process struct {
	terminal       *os.File
	stdin          *os.File
	stdout, stderr *os.File
	pid            atomic.Int64 // 0 before it is started

	mu     sync.Mutex
	theirs []*os.File  // guarded by mu, like all below: the process's ends until it has them
	run    *os.Process // nil before it is started
	over   bool        // exit is set and done closed

	done chan struct{}
	exit agent.Exit
}

// openProcess opens the streams of a process that is started later.
func openProcess(who account, stdin, tty bool) (_ *process, err error) {
	p := &process{done: make(chan struct{})}
	defer func() {
		if err != nil {
			p.closeTheirs()
			p.Release()
		}
	}()
	if tty {
		master, slave, err := openTerminal()
		if err != nil {
			return nil, fmt.Errorf("open terminal: %w", err)
		}
		p.terminal, p.theirs = master, []*os.File{slave, slave, slave}
	} else {
		p.theirs = make([]*os.File, 3)
		if stdin {
			p.theirs[0], p.stdin, err = os.Pipe()
		} else {
			p.theirs[0], err = os.Open(os.DevNull)
		}
		if err != nil {
			return nil, err
		}
		if p.stdout, p.theirs[1], err = os.Pipe(); err != nil {
			return nil, err
		}
		if p.stderr, p.theirs[2], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	for i, f := range p.theirs {
		if who.uid != os.Geteuid() && (i > 0 || stdin || tty) {
			// So that a program may open /dev/stderr, or its terminal, again. What cannot be
			// owned, as a pipe on macOS, needs no owner.
			_ = f.Chown(who.uid, -1)
		}
	}
	return p, nil
}

// closeTheirs closes the process's ends. It may be called again.
func (p *process) closeTheirs() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.theirs {
		if f != nil {
			_ = f.Close() // a terminal is there thrice, and closed once
		}
	}
	p.theirs = nil
}

// program is what a process executes.
type program struct {
	args, env []string
	dir       string
	who       account
}

// start executes a program, in a session of its own. Errors: *agent.StartError.
func (p *process) start(prog program) error {
	name, err := lookPath(prog.args[0], prog.env, prog.dir)
	if err != nil {
		return &agent.StartError{Err: err}
	}
	p.mu.Lock()
	files := p.theirs
	p.mu.Unlock()
	run, err := os.StartProcess(name, prog.args, &os.ProcAttr{
		Dir: prog.dir, Env: prog.env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: p.terminal != nil, Credential: prog.who.credential()},
	})
	if err != nil {
		return &agent.StartError{Err: err}
	}
	p.mu.Lock()
	p.run = run
	p.mu.Unlock()
	p.pid.Store(int64(run.Pid))
	p.closeTheirs()
	return nil
}

// lookPath finds a program as execvp does in the process that is to be: by its PATH, from
// its directory.
func lookPath(name string, env []string, dir string) (string, error) {
	try := func(path string) error {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		st, err := os.Stat(path)
		switch {
		case err != nil:
			return err
		case st.IsDir():
			return &fs.PathError{Op: "exec", Path: path, Err: syscall.EISDIR}
		case st.Mode()&0o111 == 0:
			return &fs.PathError{Op: "exec", Path: path, Err: fs.ErrPermission}
		}
		return nil
	}
	if strings.Contains(name, "/") {
		return name, try(name)
	}
	for _, e := range env {
		value, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(value) {
			if d == "" {
				d = "."
			}
			path := filepath.Join(d, name)
			if !strings.Contains(path, "/") {
				path = "./" + path
			}
			if try(path) == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// wait waits for the process, which has been started.
func (p *process) wait() agent.Exit {
	state, err := p.run.Wait()
	exit := agent.Exit{Code: 255, Time: time.Now()}
	if err != nil {
		return exit
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok {
		if status.Signaled() {
			exit.Signal = fromSystem(status.Signal())
			exit.Code = 128 + exit.Signal
		} else {
			exit.Code = status.ExitStatus()
		}
	}
	return exit
}

// end says how the process ended, once.
func (p *process) end(exit agent.Exit) {
	p.closeTheirs()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.over = true
	p.exit = exit
	close(p.done)
}

// Pid implements agent.Process, like the methods below.
func (p *process) Pid() int { return int(p.pid.Load()) }

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

// terminalReader ends as other output does when the last process hangs up: Linux tells
// that by an error.
type terminalReader struct{ f *os.File }

func (r terminalReader) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

// Signal takes the signal's number on Linux, as the protocol does.
func (p *process) Signal(signal int) error {
	sig, err := toSystem(signal)
	if err != nil {
		return err
	}
	p.mu.Lock()
	run, over := p.run, p.over
	p.mu.Unlock()
	if over || run == nil {
		return nil
	}
	if err := run.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
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
