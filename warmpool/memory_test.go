// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// memoryHost is a driver, a store and images in memory. It outlives supplies.
type memoryHost struct {
	mu        sync.Mutex
	machines  map[string]*memoryMachine
	origins   map[string]bool // by machine: proven
	snapshots map[string]bool
	pins      map[string]int
	images    map[string]map[string]bool // owner -> digests
	moved     string                     // what tags point to now
	made      map[string]int             // how often each machine was made
	calls     map[string]int             // by operation
	guests    int                        // macOS guests that may run at once; 0 is any number
	leaked    int                        // of them that have ended and still count
	building  int                        // macOS guests that snapshots are made of
	limited   int                        // how often one was refused
	// unreadable are machines whose own records cannot be read, and why.
	unreadable map[string]error
	fault      func(op, id string) error
	delay      func(op, id string) time.Duration
}

func newMemoryHost() *memoryHost {
	return &memoryHost{
		machines: map[string]*memoryMachine{}, origins: map[string]bool{}, snapshots: map[string]bool{}, pins: map[string]int{},
		images: map[string]map[string]bool{}, made: map[string]int{}, calls: map[string]int{},
	}
}

// do is every operation: it takes its time, ends with ctx, and may fail.
func (h *memoryHost) do(ctx context.Context, op, id string) error {
	h.mu.Lock()
	h.calls[op]++
	fault, delay := h.fault, h.delay
	h.mu.Unlock()
	if delay != nil {
		if d := delay(op, id); d > 0 {
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-timer.C:
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if fault != nil {
		return fault(op, id)
	}
	return nil
}

func (h *memoryHost) setFault(f func(op, id string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = f
}

func (h *memoryHost) setDelay(f func(op, id string) time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.delay = f
}

func (h *memoryHost) count(op string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[op]
}

func (h *memoryHost) machine(id string) *memoryMachine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machines[id]
}

func (h *memoryHost) ids() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := make([]string, 0, len(h.machines))
	for id := range h.machines {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// reopen is what a new process finds: the store has dropped the references of machines
// that are no more, and nothing is pinned.
func (h *memoryHost) reopen() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.origins {
		if h.machines[id] == nil {
			delete(h.origins, id)
		}
	}
	clear(h.images)
}

func (h *memoryHost) Name() string { return "memory" }
func (h *memoryHost) Features() vm.Features {
	return vm.Features{Arch: "amd64", Snapshots: true, Pause: true, ImageSlots: 4, Compatibility: "test-1"}
}
func (h *memoryHost) Close() error { return nil }
func (h *memoryHost) Create(context.Context, string, vm.Config) (vm.Machine, error) {
	return nil, vm.ErrNotSupported
}

type memoryDriver struct{ *memoryHost }

func (memoryDriver) Restore(context.Context, string, string, vm.Config) (vm.Machine, error) {
	return nil, vm.ErrNotSupported
}

func (h *memoryHost) Load(ctx context.Context, id string) (vm.Machine, error) {
	if err := h.do(ctx, "load", id); err != nil {
		return nil, err
	}
	m := h.machine(id)
	if m == nil {
		return nil, vm.ErrNotFound
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if why := h.unreadable[id]; why != nil {
		return unreadableMachine{m, why}, nil
	}
	return m, nil
}

// setUnreadable spoils a machine's own record, or mends it with nil.
func (h *memoryHost) setUnreadable(id string, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unreadable == nil {
		h.unreadable = map[string]error{}
	}
	h.unreadable[id] = why
}

// unreadableMachine is a vm.Unreadable: it can be deleted.
type unreadableMachine struct {
	*memoryMachine
	why error
}

func (m unreadableMachine) Unreadable() error                       { return m.why }
func (m unreadableMachine) State(context.Context) (vm.State, error) { return "", m.why }
func (m unreadableMachine) Resume(context.Context) error            { return m.why }
func (m unreadableMachine) DialGuest(context.Context, uint32) (net.Conn, error) {
	return nil, m.why
}

func (h *memoryHost) List(ctx context.Context) ([]string, error) {
	if err := h.do(ctx, "list", ""); err != nil {
		return nil, err
	}
	return h.ids(), nil
}

type memorySnapshot struct {
	host *memoryHost
	key  string
	once *sync.Once
}

func (s memorySnapshot) Key() string { return s.key }
func (s memorySnapshot) Release() {
	s.once.Do(func() {
		s.host.mu.Lock()
		defer s.host.mu.Unlock()
		s.host.pins[s.key]--
	})
}

func sourceKey(src Source) string {
	if src.Template == nil {
		return "base " + src.Shape.String()
	}
	key := src.Template.ID() + "@" + src.Template.Revision
	for _, i := range src.Images {
		key += " " + i.Digest
	}
	return key
}

func (h *memoryHost) Ensure(ctx context.Context, src Source) (Snapshot, bool, error) {
	key := sourceKey(src)
	h.mu.Lock()
	known := h.snapshots[key]
	h.mu.Unlock()
	if !known {
		macOS := src.config().GuestOS == vm.GuestMacOS
		if macOS {
			if err := h.build(1); err != nil {
				return nil, true, err
			}
		}
		err := h.do(ctx, "build", key)
		if macOS {
			_ = h.build(-1)
		}
		if err != nil {
			return nil, true, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snapshots[key] = true
	h.pins[key]++
	return memorySnapshot{h, key, new(sync.Once)}, !known, nil
}

// build counts a macOS guest that a snapshot is made of.
func (h *memoryHost) build(n int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n > 0 && h.full() {
		h.limited++
		return vm.ErrLimitExceeded
	}
	h.building += n
	return nil
}

// full: one macOS guest more is too much. With mu held.
func (h *memoryHost) full() bool {
	n := h.leaked + h.building
	for _, m := range h.machines {
		if m.cfg.GuestOS == vm.GuestMacOS && !m.over() {
			n++
		}
	}
	return h.guests > 0 && n >= h.guests
}

func (h *memoryHost) leak(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaked = n
}

func (h *memoryHost) Find(_ context.Context, t Template) (found [][]SlotImage, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key := range h.snapshots {
		name, digests, _ := strings.Cut(key, " ")
		if name != t.ID()+"@"+t.Revision {
			continue
		}
		var images []SlotImage
		for i, d := range strings.Fields(digests) {
			images = append(images, SlotImage{Ref: t.Images[i], Digest: d})
		}
		found = append(found, images)
	}
	return found, nil
}

func (h *memoryHost) Origin(machine string) (proven, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	proven, known = h.origins[machine]
	return proven, known
}

func (h *memoryHost) Forget(machine string) error {
	if err := h.do(context.Background(), "forget", machine); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.origins, machine)
	return nil
}

func (h *memoryHost) Builders() []string { return nil }

func (h *memoryHost) Restore(ctx context.Context, snap Snapshot, id string, cfg vm.Config, opts MakeOptions) (*Running, error) {
	return h.bring(ctx, "restore", id, cfg, opts)
}

func (h *memoryHost) Boot(ctx context.Context, _ Source, id string, cfg vm.Config, opts MakeOptions) (*Running, error) {
	return h.bring(ctx, "boot", id, cfg, opts)
}

// bring makes a machine as the snapshot store does: what fails leaves none, unless it
// cannot be deleted.
func (h *memoryHost) bring(ctx context.Context, op, id string, cfg vm.Config, opts MakeOptions) (*Running, error) {
	if opts.Stage != nil {
		opts.Stage(StageRestore)
	}
	if err := h.do(ctx, op, id); err != nil {
		return nil, err
	}
	h.mu.Lock()
	if h.machines[id] != nil {
		h.mu.Unlock()
		return nil, vm.ErrAlreadyExists
	}
	if cfg.GuestOS == vm.GuestMacOS && h.full() {
		h.limited++
		h.mu.Unlock()
		return nil, fmt.Errorf("memory: %w", vm.ErrLimitExceeded)
	}
	m := &memoryMachine{host: h, id: id, state: vm.StateRunning, exited: make(chan struct{}), cfg: cfg}
	h.machines[id] = m
	h.made[id]++
	h.origins[id] = false
	h.mu.Unlock()
	if opts.Stage != nil {
		opts.Stage(StageProbe)
	}
	err := h.do(ctx, "prove", id)
	if err == nil {
		h.mu.Lock()
		h.origins[id] = true
		h.mu.Unlock()
		return &Running{Machine: m, Conn: &memoryConn{m: m}, Restore: time.Millisecond, Probe: time.Millisecond}, nil
	}
	if derr := m.Delete(context.WithoutCancel(ctx)); derr != nil {
		return nil, errors.Join(err, &snapshot.LeftoverError{Machine: m, Err: derr})
	}
	return nil, errors.Join(err, h.Forget(id))
}

func (h *memoryHost) Refresh(ctx context.Context, m vm.Machine, c Conn, _ string) error {
	if err := h.do(ctx, "refresh", m.ID()); err != nil {
		return err
	}
	return c.Ping(ctx) // a guest that hangs does not answer this call either
}

func (h *memoryHost) Rehearse(ctx context.Context, m vm.Machine, _ Conn, _ []SlotImage) error {
	return h.do(ctx, "rehearse", m.ID())
}

func (h *memoryHost) Dial(ctx context.Context, m vm.Machine) (Conn, error) {
	if err := h.do(ctx, "dial", m.ID()); err != nil {
		return nil, err
	}
	if s, err := m.State(ctx); err != nil || s != vm.StateRunning {
		return nil, errors.Join(err, vm.ErrInvalidState)
	}
	return &memoryConn{m: m.(*memoryMachine)}, nil
}

// Images.

func (h *memoryHost) keep(owner, digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.images[owner] == nil {
		h.images[owner] = map[string]bool{}
	}
	h.images[owner][digest] = true
}

type memoryImages struct{ *memoryHost }

func (h memoryImages) Resolve(ctx context.Context, owner, ref string, _ vm.GuestOS) (SlotImage, error) {
	if err := h.do(ctx, "pull", ref); err != nil {
		return SlotImage{}, err
	}
	h.mu.Lock()
	digest := "sha256:" + ref + h.moved
	h.mu.Unlock()
	h.keep(owner, digest)
	return SlotImage{Ref: ref, Digest: digest, DiskPath: "/images/" + digest}, nil
}

func (h memoryImages) Pin(_ context.Context, owner, digest string) (SlotImage, error) {
	h.keep(owner, digest)
	return SlotImage{Digest: digest, DiskPath: "/images/" + digest}, nil
}

func (h memoryImages) Release(owner string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.images, owner)
}

// memoryMachine is a machine of it.
type memoryMachine struct {
	host   *memoryHost
	id     string
	cfg    vm.Config
	exited chan struct{}

	mu    sync.Mutex
	state vm.State
	gone  bool
	hung  bool // its agent does not answer
}

func (m *memoryMachine) ID() string        { return m.id }
func (m *memoryMachine) Config() vm.Config { return m.cfg }

func (m *memoryMachine) State(context.Context) (vm.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return "", vm.ErrNotFound
	}
	return m.state, nil
}

func (m *memoryMachine) set(ctx context.Context, op string, s vm.State) error {
	if err := m.host.do(ctx, op, m.id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.gone:
		return vm.ErrNotFound
	case m.state == vm.StateExited && s != vm.StateExited:
		return vm.ErrInvalidState
	case s == vm.StateExited && m.state != s:
		close(m.exited)
	}
	m.state = s
	return nil
}

func (m *memoryMachine) Resume(ctx context.Context) error {
	return m.set(ctx, "resume", vm.StateRunning)
}
func (m *memoryMachine) Pause(ctx context.Context) error { return m.set(ctx, "pause", vm.StatePaused) }
func (m *memoryMachine) Stop(ctx context.Context, _ time.Duration) error {
	return m.set(ctx, "stop", vm.StateExited)
}

// exit kills it from inside.
func (m *memoryMachine) exit() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != vm.StateExited {
		m.state = vm.StateExited
		close(m.exited)
	}
}

// over tells whether it has ended.
func (m *memoryMachine) over() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

func (m *memoryMachine) hang() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hung = true
}

func (m *memoryMachine) DialGuest(context.Context, uint32) (net.Conn, error) {
	return nil, vm.ErrNotSupported
}

func (m *memoryMachine) Wait(ctx context.Context) (vm.Exit, error) {
	select {
	case <-m.exited:
		return vm.Exit{Reason: vm.ExitGuest}, nil
	case <-ctx.Done():
		return vm.Exit{}, ctx.Err()
	}
}

func (m *memoryMachine) Delete(ctx context.Context) error {
	if err := m.host.do(ctx, "delete", m.id); err != nil {
		return err
	}
	m.exit()
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	delete(m.host.machines, m.id)
	return nil
}

// memoryConn is a connection to it.
type memoryConn struct {
	m *memoryMachine

	mu     sync.Mutex
	closed bool
}

func (c *memoryConn) Ping(ctx context.Context) error {
	if err := c.m.host.do(ctx, "ping", c.m.id); err != nil {
		return err
	}
	c.m.mu.Lock()
	hung, state := c.m.hung, c.m.state
	c.m.mu.Unlock()
	if hung || state == vm.StatePaused {
		<-ctx.Done()
		return ctx.Err()
	}
	return c.Err()
}

func (c *memoryConn) Pause(bool) {}

func (c *memoryConn) PowerOff(context.Context) error {
	c.m.exit()
	return nil
}

func (c *memoryConn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.closed || c.m.gone || c.m.state == vm.StateExited {
		return fmt.Errorf("closed: %w", vm.ErrUnavailable)
	}
	return nil
}

func (c *memoryConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *memoryConn) Client() *guest.Client { return nil }
