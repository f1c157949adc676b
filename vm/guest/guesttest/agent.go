// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package guesttest is a guest in memory: the agent's real server over a simulated
// machine, for tests of everything that talks to an agent. It is portable.
//
// A container's image does not matter; its program is one of the simulated ones,
// named by the first argument, see [Programs].
package guesttest

import (
	"context"
	"crypto/rand"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// Options of a simulated guest. The zero value is usable.
type Options struct {
	// Dir is the scratch disk; empty makes a temporary directory, deleted by Close.
	Dir string
	// Layers are named layers that are there from the start, empty.
	Layers []string
	// MemoryBytes is the memory of the machine. Zero: 256 MiB.
	MemoryBytes int64
	// ImageSlots is how many image slots the machine has. Zero: 8.
	ImageSlots int
	// SpoolBytes bounds the output kept for each container. Zero: the agent's default.
	SpoolBytes int64
	// Version is the agent's version. Empty: "test".
	Version string
	Logger  *slog.Logger
	// OwnAddressOnly: the machine can answer for no address of others.
	OwnAddressOnly bool
	// OnPowerOff is called when the guest powers off by itself.
	OnPowerOff func()
}

// Agent is a simulated guest. It is safe for concurrent use.
type Agent struct {
	opts   Options
	ownDir bool
	system *system
	server *agent.Server
	seal   *agent.Seal
	ctx    context.Context //nolint:containedctx // the life of the machine, ended by Close and Die
	die    context.CancelFunc

	mu    sync.Mutex
	fault fault         // guarded by mu, like all below
	again chan struct{} // closed and replaced when fault changes
	work  sync.WaitGroup
}

type fault int

const (
	healthy fault = iota
	hanging
	babbling
)

// New boots a simulated guest. It panics when it has no place for the scratch disk.
func New(o Options) *Agent {
	return boot(o, &agent.Seal{}, identity{machineID: "00000000000000000000000000000000", hostname: "localhost"})
}

func boot(o Options, seal *agent.Seal, id identity) *Agent {
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 256 << 20
	}
	if o.ImageSlots == 0 {
		o.ImageSlots = 8
	}
	if o.Version == "" {
		o.Version = "test"
	}
	a := &Agent{opts: o, seal: seal, again: make(chan struct{})}
	a.ctx, a.die = context.WithCancel(context.Background())
	dir := o.Dir
	if dir == "" {
		dir = tempDir()
		a.ownDir = true
	}
	for _, name := range o.Layers {
		if err := os.MkdirAll(filepath.Join(dir, "layers", name, "upper"), 0o700); err != nil {
			panic(err)
		}
	}
	a.system = newSystem(dir, o, id, func() {
		if o.OnPowerOff != nil {
			o.OnPowerOff()
		}
	})
	server, err := agent.NewServer(agent.Options{
		System: a.system, Runtime: &runtime{}, Version: o.Version, Logger: o.Logger, SpoolBytes: o.SpoolBytes, Seal: seal,
	})
	if err != nil {
		panic(err)
	}
	a.server = server
	return a
}

// ServeConn serves hosts on a stream until it ends or the guest does, and closes it.
func (a *Agent) ServeConn(conn net.Conn) {
	stop := context.AfterFunc(a.ctx, func() { _ = conn.Close() })
	defer stop()
	a.server.ServeConn(a.ctx, &faultyConn{Conn: conn, a: a, closed: make(chan struct{})})
}

// Handler is the agent's services without a stream, for simulations that serve some of
// them otherwise.
func (a *Agent) Handler() http.Handler { return a.server.Handler() }

// Layers are the names of the machine's named layers, sorted.
func (a *Agent) Layers() []string {
	entries, err := os.ReadDir(filepath.Join(a.system.dir, "layers"))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Serve serves streams of a listener until ctx ends.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	return a.server.Serve(ctx, l)
}

// Pipe returns the host's end of a new stream to the guest.
func (a *Agent) Pipe() net.Conn {
	host, inside := net.Pipe()
	a.work.Go(func() { a.ServeConn(inside) })
	return host
}

// Dial returns a client of the guest on a stream of its own.
func (a *Agent) Dial(ctx context.Context, o guest.Options) (*guest.Client, error) {
	return guest.Dial(ctx, a.Pipe(), o)
}

// Clone is what a restore makes of this guest when it was sealed: another guest
// with the same memory, and so with the same identity and seal, and a scratch disk of
// its own with the same named layers. What runs is not cloned: a goroutine cannot be.
// Options are those of the clone. It panics as New does.
func (a *Agent) Clone(o Options) *Agent {
	own := o.Dir == ""
	if own {
		o.Dir = tempDir()
	}
	layers := os.DirFS(filepath.Join(a.system.dir, "layers"))
	if _, err := fs.Stat(layers, "."); err == nil {
		if err := os.CopyFS(filepath.Join(o.Dir, "layers"), layers); err != nil {
			panic(err)
		}
	}
	c := boot(o, a.seal.Clone(), a.system.id())
	c.ownDir = own
	return c
}

func tempDir() string {
	dir, err := os.MkdirTemp("", "guesttest-")
	if err != nil {
		panic(err)
	}
	return dir
}

// Hang makes the guest stop answering: it neither reads nor writes, on any stream.
func (a *Agent) Hang() { a.set(hanging) }

// Babble makes the guest send random bytes instead of what it has to say.
func (a *Agent) Babble() { a.set(babbling) }

// Heal ends Hang and Babble; what was sent meanwhile is lost or broken.
func (a *Agent) Heal() { a.set(healthy) }

func (a *Agent) set(f fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = f
	close(a.again)
	a.again = make(chan struct{})
}

// Die ends the guest as a crash does: all streams close and no new one is served.
func (a *Agent) Die() { a.die() }

// Close ends the guest and waits for everything in it.
func (a *Agent) Close() error {
	a.Heal()
	a.die()
	err := a.server.Close()
	a.work.Wait()
	if a.ownDir {
		if rmErr := os.RemoveAll(a.system.dir); err == nil {
			err = rmErr
		}
	}
	return err
}

// faultyConn is the guest's end of a stream, with the faults.
type faultyConn struct {
	net.Conn
	a      *Agent
	once   sync.Once
	closed chan struct{}
}

// state blocks while the guest hangs.
func (c *faultyConn) state() (fault, error) {
	for {
		c.a.mu.Lock()
		f, again := c.a.fault, c.a.again
		c.a.mu.Unlock()
		if f != hanging {
			return f, nil
		}
		select {
		case <-again:
		case <-c.closed:
			return f, io.ErrClosedPipe
		case <-c.a.ctx.Done():
			return f, io.ErrClosedPipe
		}
	}
}

func (c *faultyConn) Read(p []byte) (int, error) {
	if _, err := c.state(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if _, ferr := c.state(); ferr != nil {
		return 0, ferr
	}
	return n, err
}

func (c *faultyConn) Write(p []byte) (int, error) {
	f, err := c.state()
	if err != nil {
		return 0, err
	}
	if f == babbling {
		noise := make([]byte, len(p))
		if _, err := rand.Read(noise); err != nil {
			return 0, err
		}
		p = noise
	}
	return c.Conn.Write(p)
}

func (c *faultyConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
