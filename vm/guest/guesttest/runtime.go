// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// runtime runs programs as goroutines.
type runtime struct{ pids, prepared atomic.Int64 }

var _ agent.Runtime = (*runtime)(nil)

// MountTmpfs implements agent.Runtime: the directory itself will do.
func (*runtime) MountTmpfs(string, int64) error { return nil }

// Unmount implements agent.Runtime.
func (*runtime) Unmount(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}

// Prepare implements agent.Runtime: it only counts.
func (r *runtime) Prepare(context.Context, agent.PreparedSpec) error {
	r.prepared.Add(1)
	return nil
}

// Prepared implements agent.Runtime.
func (r *runtime) Prepared() int { return int(r.prepared.Load()) }

// Create implements agent.Runtime.
func (r *runtime) Create(_ context.Context, spec agent.ContainerSpec) (agent.Container, error) {
	root := spec.User.UID != nil && *spec.User.UID == 0 || spec.User.UID == nil && (spec.User.Image == "" || spec.User.Image == "0" || spec.User.Image == "root")
	if spec.User.RequireNonRoot && root {
		return nil, fmt.Errorf("%w: container has runAsNonRoot and image will run as root", agent.ErrPrecondition)
	}
	if err := known(spec.Args); err != nil {
		return nil, err
	}
	if n := r.prepared.Load(); n > 0 {
		r.prepared.CompareAndSwap(n, n-1)
	}
	c := &simContainer{r: r, spec: spec, execs: map[*simProcess]struct{}{}}
	c.simProcess = r.newProcess(&c.spec, spec.Args, spec.Env, spec.WorkingDir, spec.Stdin, spec.TTY)
	return c, nil
}

type simContainer struct {
	*simProcess
	r    *runtime
	spec agent.ContainerSpec

	mu    sync.Mutex
	execs map[*simProcess]struct{} // guarded by mu
}

// Start implements agent.Container, like the methods below.
func (c *simContainer) Start(context.Context) error {
	c.simProcess.start(func() {
		// With the first process end all others of the container.
		c.mu.Lock()
		defer c.mu.Unlock()
		for p := range c.execs {
			p.end(9)
		}
	})
	return nil
}

func (c *simContainer) Exec(_ context.Context, spec agent.ExecSpec) (agent.Process, error) {
	if err := known(spec.Args); err != nil {
		return nil, err
	}
	dir := spec.WorkingDir
	if dir == "" {
		dir = c.spec.WorkingDir
	}
	p := c.r.newProcess(&c.spec, spec.Args, append(append([]string(nil), c.spec.Env...), spec.Env...), dir, spec.Stdin, spec.TTY)
	p.cols, p.rows = spec.Cols, spec.Rows
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return nil, fmt.Errorf("%w: container is not running", agent.ErrPrecondition)
	default:
	}
	c.execs[p] = struct{}{}
	p.start(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.execs, p)
	})
	return p, nil
}

// Update does nothing: programs that are goroutines have no limits.
func (c *simContainer) Update(context.Context, agent.Resources) error { return nil }

func (c *simContainer) SignalAll(signal int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.execs {
		_ = p.Signal(signal)
	}
	return c.Signal(signal)
}

func (c *simContainer) Stats() (agent.ContainerStats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return agent.ContainerStats{CPUTime: time.Millisecond, MemoryBytes: 1 << 20, WorkingSetBytes: 1 << 19, PIDs: int64(1 + len(c.execs)), RSSBytes: 1 << 18, PageFaults: 10, MajorPageFaults: 1}, nil
}

func (c *simContainer) Remove(context.Context) error {
	c.end(9)
	c.Wait()
	return nil
}

// simProcess is a program in a goroutine.
type simProcess struct {
	pid       int
	spec      *agent.ContainerSpec
	args, env []string
	dir       string
	tty       bool

	inR              *io.PipeReader
	inW              *io.PipeWriter
	outR             *io.PipeReader
	outW             *io.PipeWriter
	errR             *io.PipeReader
	errW             *io.PipeWriter
	resized          chan struct{} // capacity 1
	once, finishOnce sync.Once
	killed           chan struct{} // closed by end
	done             chan struct{} // closed when exit is set

	mu         sync.Mutex
	cols, rows uint16 // guarded by mu, like all below
	ignores    bool   // SIGTERM and the like
	onTerm     *int   // exit code on SIGTERM
	started    bool
	signal     int
	oom        bool
	exit       agent.Exit
}

func (r *runtime) newProcess(spec *agent.ContainerSpec, args, env []string, dir string, stdin, tty bool) *simProcess {
	p := &simProcess{
		pid: int(r.pids.Add(1)) + 100, spec: spec, args: args, env: env, dir: dir, tty: tty,
		resized: make(chan struct{}, 1), killed: make(chan struct{}), done: make(chan struct{}),
	}
	p.outR, p.outW = io.Pipe()
	if !tty {
		p.errR, p.errW = io.Pipe()
	}
	if stdin || tty {
		p.inR, p.inW = io.Pipe()
	}
	return p
}

// start runs the program and then calls after.
func (p *simProcess) start(after func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.signal != 0 {
		return
	}
	p.started = true
	go func() {
		code := p.run(p.args)
		after()
		p.finish(code)
	}()
}

// finish sets the exit and ends the streams.
func (p *simProcess) finish(code int) {
	p.finishOnce.Do(func() {
		p.mu.Lock()
		p.exit = agent.Exit{Code: code, Time: time.Now(), OOMKilled: p.oom}
		if p.signal != 0 {
			p.exit.Code, p.exit.Signal = 128+p.signal, p.signal
		}
		p.mu.Unlock()
		_ = p.outW.Close()
		if p.errW != nil {
			_ = p.errW.Close()
		}
		if p.inR != nil {
			_ = p.inR.CloseWithError(io.ErrClosedPipe)
		}
		close(p.done)
	})
}

// end ends the process by a signal.
func (p *simProcess) end(signal int) {
	p.once.Do(func() {
		p.mu.Lock()
		select {
		case <-p.done:
		default:
			p.signal = signal
		}
		started := p.started
		p.mu.Unlock()
		close(p.killed)
		_ = p.outW.Close()
		if p.errW != nil {
			_ = p.errW.Close()
		}
		if p.inR != nil {
			_ = p.inR.CloseWithError(io.ErrClosedPipe)
		}
		if !started {
			p.finish(0)
		}
	})
}

// Pid implements agent.Process, like the methods below.
func (p *simProcess) Pid() int { return p.pid }

func (p *simProcess) Stdin() io.WriteCloser {
	if p.inW == nil {
		return nil
	}
	return p.inW
}

func (p *simProcess) Stdout() io.Reader { return p.outR }

func (p *simProcess) Stderr() io.Reader {
	if p.errR == nil {
		return nil
	}
	return p.errR
}

func (p *simProcess) Signal(signal int) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.mu.Lock()
	ignores, onTerm := p.ignores, p.onTerm
	p.mu.Unlock()
	switch signal {
	case 9:
		p.end(9)
	case 1, 2, 3, 15:
		if onTerm != nil {
			p.mu.Lock()
			p.signal = 0
			p.mu.Unlock()
			p.finish(*onTerm)
			p.once.Do(func() { close(p.killed) })
		} else if !ignores {
			p.end(signal)
		}
	}
	return nil
}

func (p *simProcess) Resize(cols, rows uint16) error {
	if !p.tty {
		return fmt.Errorf("%w: no terminal", agent.ErrPrecondition)
	}
	p.mu.Lock()
	p.cols, p.rows = cols, rows
	p.mu.Unlock()
	select {
	case p.resized <- struct{}{}:
	default:
	}
	return nil
}

func (p *simProcess) Wait() agent.Exit {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

func (p *simProcess) Release() {
	_ = p.outR.Close()
	if p.errR != nil {
		_ = p.errR.Close()
	}
	if p.inW != nil {
		_ = p.inW.Close()
	}
}

var errKilled = errors.New("killed")
