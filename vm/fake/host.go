// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Boot tells a guest what it runs in.
type Boot struct {
	ID     string
	Config vm.Config
	// Memory is what Guest.Memory returned when the machine was saved that this one
	// was restored from. Nil: a cold boot.
	Memory []byte
	// Exit ends the machine from inside. It may be called at any time and does not
	// block; the first call counts.
	Exit func(reason vm.ExitReason, detail string)
}

// Guest is what runs in a fake machine. Methods may be called concurrently.
type Guest interface {
	// Serve serves one stream, which stands still while the machine is paused. It
	// returns when conn ends; ctx ends with the machine. Machines have one stream at
	// a time.
	Serve(ctx context.Context, conn net.Conn)
	// Memory is the guest's content, called while the machine is paused to be saved.
	Memory() ([]byte, error)
	// PowerButton is the request to end that Stop makes when it has a grace.
	PowerButton()
}

// Host is where fake machines exist. It outlives drivers. Safe for concurrent use.
type Host struct {
	mu       sync.Mutex
	machines map[string]*instance
	leaked   int // see LeakMacOSGuests
	served   sync.WaitGroup
}

// NewHost returns a host without machines.
func NewHost() *Host {
	return &Host{machines: map[string]*instance{}}
}

// Kill ends a machine as if its hypervisor had died. False if it did not run.
func (h *Host) Kill(id string) bool {
	h.mu.Lock()
	i := h.machines[id]
	h.mu.Unlock()
	return i != nil && i.end(vm.ExitCrashed, "killed by Host.Kill")
}

// Stall stops or continues a machine's hypervisor: it lives and answers nobody. False if it
// does not run.
func (h *Host) Stall(id string, stall bool) bool {
	h.mu.Lock()
	i := h.machines[id]
	h.mu.Unlock()
	if i == nil || i.hasExited() {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case stall && i.stalled == nil:
		i.stalled = make(chan struct{})
	case !stall && i.stalled != nil:
		close(i.stalled)
		i.stalled = nil
	}
	return true
}

// answer waits while the hypervisor is stalled.
func (i *instance) answer(ctx context.Context) error {
	i.mu.Lock()
	stalled := i.stalled
	i.mu.Unlock()
	if stalled == nil {
		return nil
	}
	select {
	case <-stalled:
		return nil
	case <-i.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: the hypervisor does not answer: %w", vm.ErrUnavailable, ctx.Err())
	}
}

// Running counts the machines that have not exited.
func (h *Host) Running() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, i := range h.machines {
		if !i.hasExited() {
			n++
		}
	}
	return n
}

// Close ends and deletes all machines and waits for their guests.
func (h *Host) Close() {
	h.mu.Lock()
	for id, i := range h.machines {
		i.end(vm.ExitStopped, "the host was closed")
		delete(h.machines, id)
	}
	h.mu.Unlock()
	h.served.Wait()
}

// instance is a machine as the host knows it.
type instance struct {
	host *Host
	id   string
	cfg  vm.Config

	ctx    context.Context //nolint:containedctx // the life of the machine
	cancel context.CancelFunc
	exited chan struct{}

	mu       sync.Mutex
	guest    Guest
	paused   bool
	resumed  chan struct{} // closed while it runs
	stalled  chan struct{} // guarded by mu; nil, or closed when the stall ends
	stopping bool
	exit     vm.Exit
	conn     *hostConn
}

// LeakMacOSGuests makes the host count n macOS guests more than there are, as a Mac does
// whose guests have ended and not given back their place (UTM issue 5563).
func (h *Host) LeakMacOSGuests(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaked = n
}

// macOSGuests counts those that have not exited, paused ones included. With mu held.
func (h *Host) macOSGuests() int {
	n := 0
	for _, i := range h.machines {
		if i.cfg.GuestOS == vm.GuestMacOS && !i.hasExited() {
			n++
		}
	}
	return n
}

// add makes a machine; macOSGuests is how many of those the host may run.
func (h *Host) add(id string, cfg vm.Config, memory []byte, paused bool, macOSGuests int, guest func(Boot) (Guest, error)) (*instance, error) {
	ctx, cancel := context.WithCancel(context.Background())
	i := &instance{host: h, id: id, cfg: cfg, ctx: ctx, cancel: cancel, exited: make(chan struct{}), paused: paused, resumed: make(chan struct{})}
	if !paused {
		close(i.resumed)
	}
	h.mu.Lock()
	_, taken := h.machines[id]
	full := cfg.GuestOS == vm.GuestMacOS && h.macOSGuests()+h.leaked >= macOSGuests
	if !taken && !full {
		h.machines[id] = i
	}
	h.mu.Unlock()
	switch {
	case taken:
		cancel()
		return nil, vm.ErrAlreadyExists
	case full:
		cancel()
		return nil, fmt.Errorf("%w: %d macOS guests may run at once", vm.ErrLimitExceeded, macOSGuests)
	}
	if guest == nil {
		return i, nil
	}
	g, err := guest(Boot{ID: id, Config: cfg, Memory: memory, Exit: func(r vm.ExitReason, detail string) { i.end(r, detail) }})
	if err != nil {
		h.remove(i)
		cancel()
		return nil, fmt.Errorf("boot the fake guest: %w", err)
	}
	i.mu.Lock()
	i.guest = g
	i.mu.Unlock()
	return i, nil
}

func (h *Host) find(id string) *instance {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machines[id]
}

func (h *Host) remove(i *instance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[i.id] == i {
		delete(h.machines, i.id)
	}
}

func (h *Host) present(i *instance) bool { return h.find(i.id) == i }

func (i *instance) hasExited() bool {
	select {
	case <-i.exited:
		return true
	default:
		return false
	}
}

// end ends the machine once. False if it had ended before.
func (i *instance) end(reason vm.ExitReason, detail string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.hasExited() {
		return false
	}
	if reason == vm.ExitGuest && i.stopping {
		reason = vm.ExitStopped
	}
	i.exit = vm.Exit{Reason: reason, Time: time.Now().UTC(), Detail: detail}
	close(i.exited)
	i.cancel()
	if i.conn != nil {
		_ = i.conn.Conn.Close()
		i.conn = nil
	}
	return true
}

func (i *instance) state() vm.State {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.hasExited():
		return vm.StateExited
	case i.paused:
		return vm.StatePaused
	}
	return vm.StateRunning
}

var errExited = fmt.Errorf("%w: it has exited", vm.ErrInvalidState)

func (i *instance) setPaused(paused bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.hasExited() {
		return errExited
	}
	if i.paused == paused {
		return nil
	}
	i.paused = paused
	if paused {
		i.resumed = make(chan struct{})
	} else {
		close(i.resumed)
	}
	return nil
}

// wait blocks while the machine is paused.
func (i *instance) wait() error {
	for {
		i.mu.Lock()
		paused, resumed := i.paused, i.resumed
		if i.stalled != nil {
			paused, resumed = true, i.stalled
		}
		i.mu.Unlock()
		if i.hasExited() {
			return net.ErrClosed
		}
		if !paused {
			return nil
		}
		select {
		case <-resumed:
		case <-i.exited:
		}
	}
}

func (i *instance) dial() (net.Conn, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.hasExited() {
		return nil, errExited
	}
	if i.conn != nil {
		return nil, fmt.Errorf("%w: it has a stream to its guest already", vm.ErrUnavailable)
	}
	if i.guest == nil {
		return nil, fmt.Errorf("%w: nothing runs in it", vm.ErrUnavailable)
	}
	host, inside := net.Pipe()
	i.conn = &hostConn{Conn: host, instance: i}
	guest := i.guest
	i.host.served.Go(func() {
		defer inside.Close()
		guest.Serve(i.ctx, &guestConn{Conn: inside, instance: i})
	})
	return i.conn, nil
}

// hostConn is the host's end of the one stream.
type hostConn struct {
	net.Conn
	instance *instance
}

func (c *hostConn) Close() error {
	err := c.Conn.Close()
	c.instance.mu.Lock()
	defer c.instance.mu.Unlock()
	if c.instance.conn == c {
		c.instance.conn = nil
	}
	return err
}

// guestConn is the guest's end: it stands still while the machine is paused.
type guestConn struct {
	net.Conn
	instance *instance
}

func (c *guestConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if werr := c.instance.wait(); werr != nil {
		return 0, errors.Join(werr, err)
	}
	return n, err
}

func (c *guestConn) Write(b []byte) (int, error) {
	if err := c.instance.wait(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
