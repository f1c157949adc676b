// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package simulator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guestport"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// QEMU is an engine that runs Linux guests in emulation. Machines are child processes
// that end with this one, however it ends.
func QEMU(o QEMUOptions) Engine {
	if o.Arch == "" {
		o.Arch = archARM64
	}
	return &qemu{opts: o}
}

type qemu struct {
	opts QEMUOptions

	once sync.Once // finds the program
	path string
	text string // its version
	err  error
}

// ready finds the program and its version.
func (e *qemu) ready() error {
	e.once.Do(func() {
		if e.opts.Arch != archARM64 && e.opts.Arch != archAMD64 {
			e.err = fmt.Errorf("no emulator for guests of %q", e.opts.Arch)
			return
		}
		name := qemuBinary(e.opts)
		if e.path, e.err = exec.LookPath(name); e.err != nil {
			e.err = fmt.Errorf("%s is not installed (Debian: qemu-system-arm, qemu-system-x86): %w", name, e.err)
			return
		}
		out, err := exec.Command(e.path, "--version").Output() //nolint:noctx // it prints a line
		if err != nil {
			e.err = fmt.Errorf("ask %s for its version: %w", e.path, err)
			return
		}
		e.text, _, _ = strings.Cut(string(out), "\n")
	})
	return e.err
}

func (e *qemu) version() string {
	return fmt.Sprintf("qemu %d %s %s", qemuDevices, e.opts.Arch, e.text)
}

func (e *qemu) singleConn() bool { return true }

// qemuGuest is one QEMU process.
type qemuGuest struct {
	qmp   *qmp
	ended func(error)
	// agent is the listening socket of the agent's stream: an open descriptor of it,
	// which has no name any more.
	agent  *os.File
	words  *lastWords
	exited chan struct{} // closed when the process has ended
	// process knows when it is reaped, and signals nobody else then.
	process *os.Process

	mu      sync.Mutex
	killed  bool       // guarded by mu
	stream  *agentConn // guarded by mu
	last    *os.File   // the latest save of a guest that has not run since; guarded by mu
	lastPos int64      // where in last it begins; guarded by mu
}

func (e *qemu) boot(c framework.Configuration, ended func(error)) (guest, error) {
	g, err := e.spawn(c, false, ended)
	if err != nil {
		return nil, err
	}
	go g.watch()
	return g, nil
}

func (e *qemu) load(c framework.Configuration, state *os.File, ended func(error)) (guest, error) {
	g, err := e.spawn(c, true, ended)
	if err != nil {
		return nil, err
	}
	if err := g.qmp.migrate("migrate-incoming", state); err != nil {
		g.kill()
		return nil, fmt.Errorf("load the machine's state: %w%s", err, g.words)
	}
	go g.watch()
	return g, nil
}

// spawn starts QEMU and its owner and connects to it.
func (e *qemu) spawn(c framework.Configuration, incoming bool, ended func(error)) (_ *qemuGuest, err error) {
	if c.GuestOS != framework.Linux {
		return nil, fmt.Errorf("QEMU runs no %s guests", c.GuestOS)
	}
	g := &qemuGuest{ended: ended, words: &lastWords{}, exited: make(chan struct{})}
	// What QEMU inherits; our copies are closed when it has started or has not.
	var inherited []*os.File
	defer func() {
		for _, f := range inherited {
			f.Close()
		}
	}()
	control, controlEnd, err := unixPair()
	if err != nil {
		return nil, err
	}
	inherited = append(inherited, controlEnd)
	defer func() {
		if err != nil {
			_ = control.Close()
		}
	}()
	listener, agent, err := agentSocket()
	if err != nil {
		return nil, err
	}
	inherited = append(inherited, listener)
	g.agent = agent
	network, err := duplicate(c.Network)
	if err != nil {
		agent.Close()
		return nil, fmt.Errorf("network socket: %w", err)
	}
	inherited = append(inherited, network)
	var console *net.UnixConn
	if hasConsole(c) {
		var end *os.File
		if console, end, err = unixPair(); err != nil {
			agent.Close()
			return nil, err
		}
		inherited = append(inherited, end)
	}

	cmd := exec.Command(e.path, qemuArguments(e.opts.Arch, c, incoming)...) //nolint:noctx // the machine's life is its own
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stderr = g.words
	cmd.ExtraFiles = inherited
	// A session of its own: a terminal's interrupt is for who started it. The signal at
	// our death is what makes a machine end with its process, as the framework's do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go g.own(cmd, started)
	if err := <-started; err != nil {
		agent.Close()
		if console != nil {
			_ = console.Close()
		}
		return nil, fmt.Errorf("start %s: %w", e.path, err)
	}
	if console != nil {
		go g.pump(console, c)
	}
	// With our copies closed, the end of QEMU ends the connections.
	for _, f := range inherited {
		f.Close()
	}
	inherited = nil
	if g.qmp, err = newQMP(control); err == nil {
		// Memory is written as fast as the disk takes it. QEMU's default is made for
		// networks.
		_, err = g.qmp.execute("migrate-set-parameters", map[string]int64{"max-bandwidth": 16 << 30})
	}
	if err != nil {
		g.kill()
		return nil, fmt.Errorf("start %s: %w%s", e.path, err, g.words)
	}
	return g, nil
}

// own starts QEMU and waits for its end. The signal at the parent's death is sent when
// the thread ends that forked, and the runtime ends threads as it likes: this one is
// kept as long as the process lives.
func (g *qemuGuest) own(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	g.process = cmd.Process
	started <- nil
	if err := cmd.Wait(); err != nil {
		g.words.note(err.Error())
	}
	g.agent.Close()
	g.mu.Lock()
	if g.last != nil {
		g.last.Close()
		g.last = nil
	}
	g.mu.Unlock()
	close(g.exited)
}

// watch waits for the guest's end and tells of it.
func (g *qemuGuest) watch() {
	for {
		select {
		case e := <-g.qmp.events:
			if e.Name == "STOP" {
				var s struct {
					Status string `json:"status"`
				}
				if g.qmp.ask("query-status", &s) == nil && s.Status == "internal-error" {
					g.over(errors.New("the hypervisor stopped with an internal error"))
					return
				}
				continue
			}
			g.over(nil)
			return
		case <-g.exited:
			g.over(fmt.Errorf("the hypervisor ended%s", g.words))
			return
		}
	}
}

// over tells of an end, unless it was asked for.
func (g *qemuGuest) over(cause error) {
	g.mu.Lock()
	killed := g.killed
	g.mu.Unlock()
	if !killed {
		g.ended(cause) // which kills
	}
}

func (g *qemuGuest) kill() {
	g.mu.Lock()
	g.killed = true
	g.mu.Unlock()
	_ = g.process.Kill() // it has ended, or does so now
	<-g.exited           // it writes to no disk any more
	if g.qmp != nil {
		g.qmp.close()
	}
}

func (g *qemuGuest) pause() error {
	_, err := g.qmp.execute("stop", nil)
	return err
}

func (g *qemuGuest) resume() error {
	g.mu.Lock()
	if g.last != nil {
		g.last.Close()
		g.last = nil
	}
	g.mu.Unlock()
	_, err := g.qmp.execute("cont", nil)
	return err
}

func (g *qemuGuest) powerButton() error {
	_, err := g.qmp.execute("system_powerdown", nil)
	return err
}

// save writes memory and devices. QEMU writes a machine that stands still once only:
// the second save of one pause is a copy of the first.
func (g *qemuGuest) save(f *os.File) error {
	pos, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	g.mu.Lock()
	last, lastPos := g.last, g.lastPos
	g.mu.Unlock()
	if last != nil {
		info, err := last.Stat()
		if err != nil {
			return err
		}
		_, err = io.Copy(f, io.NewSectionReader(last, lastPos, info.Size()-lastPos))
		return err
	}
	if err := g.qmp.migrate("migrate", f); err != nil {
		return err
	}
	kept, err := duplicate(f)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.killed {
		kept.Close()
		return errors.New("the machine was ended")
	}
	g.last, g.lastPos = kept, pos
	return nil
}

// dial connects to the agent's port, if the guest has it open.
func (g *qemuGuest) dial(port uint32) (net.Conn, error) {
	if port != vm.AgentPort {
		return nil, fmt.Errorf("%w: port %d, QEMU's stand-in for vsock has %d only", framework.ErrNoListener, port, vm.AgentPort)
	}
	var devices []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := g.qmp.ask("query-chardev", &devices); err != nil {
		return nil, fmt.Errorf("%w: %w", framework.ErrNoListener, err)
	}
	open := false
	for _, d := range devices {
		open = open || d.Label == "agent" && d.Open
	}
	if !open {
		return nil, fmt.Errorf("%w: the guest has not opened the port", framework.ErrNoListener)
	}
	c := &agentConn{guest: g}
	g.mu.Lock()
	if g.stream != nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("%w: it has a stream already (Host.SingleConn)", framework.ErrNoListener)
	}
	g.stream = c
	g.mu.Unlock()
	conn, err := guestport.Open(context.Background(), func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", g.agent.Fd()))
	})
	if err != nil {
		g.release(c)
		return nil, fmt.Errorf("%w: %w", framework.ErrNoListener, err)
	}
	c.Conn = conn
	return c, nil
}

func (g *qemuGuest) release(c *agentConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stream == c {
		g.stream = nil
	}
}

// agentConn is the one stream to the agent.
type agentConn struct {
	*guestport.Conn
	guest *qemuGuest
}

func (c *agentConn) Close() error {
	err := c.Conn.Close()
	c.guest.release(c)
	return err
}

// pump carries the console's bytes until QEMU ends. A console that cannot be written is
// read all the same: the guest must not stand still over it.
func (g *qemuGuest) pump(console *net.UnixConn, c framework.Configuration) {
	defer console.Close()
	if c.ConsoleIn != nil {
		go func() { _, _ = io.Copy(struct{ io.Writer }{console}, c.ConsoleIn) }() // ends with the caller's file
	}
	if c.ConsoleOut != nil {
		// Without splice(2), whose pipes Go keeps until it collects garbage: machines are
		// counted by their descriptors in tests.
		_, _ = io.Copy(struct{ io.Writer }{c.ConsoleOut}, struct{ io.Reader }{console})
	}
	_, _ = io.Copy(io.Discard, console)
}

// lastWords keeps the end of what QEMU writes on its standard error.
type lastWords struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

const maxLastWords = 4 << 10

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, b...)
	w.text = w.text[max(0, len(w.text)-maxLastWords):]
	return len(b), nil
}

func (w *lastWords) note(s string) { _, _ = w.Write([]byte(s)) }

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.text) == 0 {
		return ""
	}
	return fmt.Sprintf(": it said %q", bytes.TrimSpace(w.text))
}

// duplicate copies f's descriptor. Blocking or not is shared with the original and stays
// as it is.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var derr error
	if err := raw.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// unixPair makes a stream, whose second end is for QEMU.
func unixPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a stream: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "stream"), os.NewFile(uintptr(fds[1]), "stream")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a stream: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

// agentSocket makes the listening socket of the agent's stream for QEMU, and a
// descriptor by which it is dialled. Its name is gone already: a process that is killed
// leaves nothing behind.
func agentSocket() (listener, dial *os.File, err error) {
	dir, err := os.MkdirTemp("", "firkin-sim-") // private, and short enough for an address
	if err != nil {
		return nil, nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "agent")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	dial = os.NewFile(uintptr(fd), path)
	listener, err = l.File()
	if err != nil {
		dial.Close()
		return nil, nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	return listener, dial, nil
}
