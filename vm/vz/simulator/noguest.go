// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// Script is the guest of a NoGuest engine. Its functions run in goroutines of the
// machine's process; a paused machine's wait in their next use of the connection or of
// the Guest.
type Script struct {
	// Listens says whether something listens on a port. Nil: on vm.AgentPort.
	Listens func(g *Guest, port uint32) bool
	// Serve is given each connection, which it closes. Nil: Echo.
	Serve func(g *Guest, port uint32, conn net.Conn)
	// PowerButton is pressed. Nil: the guest powers off.
	PowerButton func(g *Guest)
}

// NoGuest is an engine without hypervisor: machines are states, a few bytes of memory and
// a script.
func NoGuest(s Script) Engine {
	if s.Listens == nil {
		s.Listens = func(_ *Guest, port uint32) bool { return port == vm.AgentPort }
	}
	if s.Serve == nil {
		s.Serve = Echo
	}
	if s.PowerButton == nil {
		s.PowerButton = (*Guest).PowerOff
	}
	return noGuest{s}
}

type noGuest struct{ script Script }

func (noGuest) ready() error     { return nil }
func (noGuest) version() string  { return "none 1" }
func (noGuest) singleConn() bool { return false }

func (e noGuest) boot(c framework.Configuration, ended func(error)) (guest, error) {
	g := e.guest(c, ended)
	g.nonce = randomHex(8)
	close(g.running)
	return g, nil
}

// maxMemory bounds the memory of a guest without a hypervisor, which is read at once.
const maxMemory = 64 << 20

// scriptState is what NoGuest writes behind a saved file's header.
type scriptState struct {
	Memory []byte `json:"memory"`
	Nonce  string `json:"nonce"`
}

func (e noGuest) load(c framework.Configuration, state *os.File, ended func(error)) (guest, error) {
	text, err := io.ReadAll(io.LimitReader(state, 2*maxMemory))
	if err != nil {
		return nil, err
	}
	var s scriptState
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	g := e.guest(c, ended)
	g.memory, g.nonce = s.Memory, s.Nonce
	return g, nil
}

func (e noGuest) guest(c framework.Configuration, ended func(error)) *Guest {
	return &Guest{cfg: c, script: e.script, ended: ended, running: make(chan struct{}), dead: make(chan struct{}), conns: map[net.Conn]struct{}{}}
}

// Guest is what a Script sees of its machine.
type Guest struct {
	cfg    framework.Configuration
	script Script
	ended  func(error)
	over   atomic.Bool   // ended is called once
	dead   chan struct{} // closed when the guest has ended

	mu      sync.Mutex
	running chan struct{} // closed while it runs; guarded by mu
	memory  []byte        // guarded by mu
	nonce   string
	conns   map[net.Conn]struct{} // guarded by mu
}

// Configuration is the machine's.
func (g *Guest) Configuration() framework.Configuration { return g.cfg }

// Nonce is made at boot, and is memory: restored machines have it from the saved one.
func (g *Guest) Nonce() string { return g.nonce }

// Memory is what is saved and restored with the machine.
func (g *Guest) Memory() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return bytes.Clone(g.memory)
}

// SetMemory writes memory, once the machine runs.
func (g *Guest) SetMemory(b []byte) {
	if !g.wait() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.memory = bytes.Clone(b[:min(len(b), maxMemory)])
}

// PowerOff ends the guest of its own accord, once the machine runs.
func (g *Guest) PowerOff() {
	if g.wait() && g.over.CompareAndSwap(false, true) {
		g.ended(nil)
	}
}

// Fail is a failure of the hypervisor, at any time.
func (g *Guest) Fail(cause error) {
	if g.over.CompareAndSwap(false, true) {
		g.ended(cause)
	}
}

// wait blocks while the machine is paused. False: it has ended.
func (g *Guest) wait() bool {
	g.mu.Lock()
	running := g.running
	g.mu.Unlock()
	select {
	case <-running:
		return true
	case <-g.dead:
		return false
	}
}

func (g *Guest) pause() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = make(chan struct{})
	return nil
}

func (g *Guest) resume() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.running)
	return nil
}

func (g *Guest) powerButton() error {
	go g.script.PowerButton(g) // the guest's own doing, which nobody waits for
	return nil
}

func (g *Guest) save(f *os.File) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	text, err := json.Marshal(scriptState{g.memory, g.nonce})
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return err
}

func (g *Guest) dial(port uint32) (net.Conn, error) {
	if !g.script.Listens(g, port) {
		return nil, framework.ErrNoListener
	}
	host, inside, err := pair()
	if err != nil {
		return nil, err
	}
	c := &guestConn{Conn: inside, guest: g}
	g.mu.Lock()
	select {
	case <-g.dead:
		g.mu.Unlock()
		host.Close()
		inside.Close()
		return nil, framework.ErrNoListener
	default:
	}
	g.conns[inside] = struct{}{}
	g.mu.Unlock()
	go g.script.Serve(g, port, c) // ends when it closes the stream, or the guest's end does
	return host, nil
}

// kill ends the guest's side of all streams: the host reads their ends.
func (g *Guest) kill() {
	g.over.Store(true) // nobody hears of an end that was asked for
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.dead:
		return
	default:
	}
	close(g.dead)
	for c := range g.conns {
		c.Close()
	}
}

// guestConn is the guest's side of a stream: it stands still with its machine.
type guestConn struct {
	net.Conn
	guest *Guest
}

func (c *guestConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.guest.wait() {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *guestConn) Write(b []byte) (int, error) {
	if !c.guest.wait() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

func (c *guestConn) Close() error {
	c.guest.mu.Lock()
	delete(c.guest.conns, c.Conn)
	c.guest.mu.Unlock()
	return c.Conn.Close()
}

// Echo is a guest that greets with its nonce and its memory in one line, "nonce %q" of
// the one and "memory %q" of the other, and then answers lines:
//
//	memory TEXT   sets the memory; the answer is "ok"
//	off           powers off
//	fail TEXT     fails the hypervisor
//
// and repeats all others. It lets a test reach into a machine of another process.
func Echo(g *Guest, _ uint32, conn net.Conn) {
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "nonce %q memory %q\n", g.Nonce(), g.Memory()); err != nil {
		return
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		answer := lines.Text()
		word, text, _ := strings.Cut(answer, " ")
		switch word {
		case "memory":
			g.SetMemory([]byte(text))
			answer = "ok"
		case "off":
			g.PowerOff()
			return
		case "fail":
			g.Fail(errors.New(text))
			return
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return
		}
	}
}
