// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Name is what Driver.Name returns.
const Name = "fake"

// Operations that Options.Fault is asked about.
const (
	OpCreate  = "create"
	OpRestore = "restore"
	OpLoad    = "load"
	OpList    = "list"
	OpState   = "state"
	OpResume  = "resume"
	OpPause   = "pause"
	OpDial    = "dial"
	OpStop    = "stop"
	OpWait    = "wait"
	OpSave    = "save"
	OpDelete  = "delete"
)

// Options of a driver. The zero value makes machines in which nothing runs.
type Options struct {
	// Guest makes what runs in a new machine. Nil: DialGuest is ErrUnavailable.
	Guest func(Boot) (Guest, error)
	// Fault is asked before each call takes effect: op is one of the Op constants, n
	// counts the calls of that op on this driver from 1. What it returns is the
	// call's error, wrapped; it may block, until ctx ends, to make the call stall.
	// Nil: never.
	Fault func(ctx context.Context, op string, n int) error
	// Features replaces what the driver can do, where not zero. MacOSGuests is enforced:
	// one more is vm.ErrLimitExceeded.
	Features vm.Features
}

// DefaultFeatures is what a driver can do unless Options say otherwise.
func DefaultFeatures() vm.Features {
	return vm.Features{
		Arch:          "amd64",
		Accelerator:   "none",
		Snapshots:     true,
		Pause:         true,
		GracefulStop:  true,
		SingleConn:    true,
		ImageSlots:    4,
		SlotBytes:     64 << 30,
		ScratchBytes:  16 << 30,
		Compatibility: "fake-1",
	}
}

// Driver makes machines in memory. See vm.Driver.
type Driver struct {
	host     *Host
	opts     Options
	features vm.Features

	mu     sync.Mutex
	closed bool
	calls  map[string]int
	conns  []net.Conn // dialled through this driver
}

var _ vm.Driver = (*Driver)(nil)

// Open returns a driver for the machines of host.
func Open(host *Host, opts Options) *Driver {
	f := opts.Features
	if f == (vm.Features{}) {
		f = DefaultFeatures()
	}
	return &Driver{host: host, opts: opts, features: f, calls: map[string]int{}}
}

// begin counts a call and applies its fault.
func (d *Driver) begin(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	closed := d.closed
	d.calls[op]++
	n := d.calls[op]
	d.mu.Unlock()
	if closed {
		return fmt.Errorf("%w: the driver is closed", vm.ErrUnavailable)
	}
	if d.opts.Fault == nil {
		return nil
	}
	if err := d.opts.Fault(ctx, op, n); err != nil {
		return err
	}
	return ctx.Err()
}

// Calls is how often op was called on this driver.
func (d *Driver) Calls(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[op]
}

// Name is part of vm.Driver.
func (d *Driver) Name() string { return Name }

// Features is part of vm.Driver.
func (d *Driver) Features() vm.Features { return d.features }

// Create is part of vm.Driver.
func (d *Driver) Create(ctx context.Context, id string, cfg vm.Config) (vm.Machine, error) {
	m, err := d.create(ctx, id, cfg)
	if err != nil {
		return nil, fmt.Errorf("create machine %q: %w", id, err)
	}
	return m, nil
}

func (d *Driver) create(ctx context.Context, id string, cfg vm.Config) (*machine, error) {
	if err := d.begin(ctx, OpCreate); err != nil {
		return nil, err
	}
	if err := d.check(id, cfg); err != nil {
		return nil, err
	}
	i, err := d.host.add(id, cfg, nil, false, d.features.MacOSGuests, d.opts.Guest)
	if err != nil {
		return nil, err
	}
	return &machine{driver: d, instance: i}, nil
}

func (d *Driver) check(id string, cfg vm.Config) error {
	errs := []error{vm.ValidateID(id), cfg.Validate(d.features)}
	for slot, image := range cfg.Images {
		if image == "" {
			continue
		}
		info, err := os.Stat(image)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%w: image of slot %d: %w", vm.ErrInvalidConfig, slot, err))
		case info.Size() != d.features.SlotBytes:
			errs = append(errs, fmt.Errorf("%w: image of slot %d has %d bytes, want exactly %d", vm.ErrInvalidConfig, slot, info.Size(), d.features.SlotBytes))
		}
	}
	return errors.Join(errs...)
}

// Files of a snapshot.
const (
	memoryFile = "memory"
	stateFile  = "state"
)

// state is the content of a snapshot's state file.
type state struct {
	Compatibility string   `json:"compatibility"`
	Shape         vm.Shape `json:"shape"`
	KitDigest     string   `json:"kitDigest"`
	MemoryBytes   int64    `json:"memoryBytes"`
	MemorySHA256  string   `json:"memorySha256"`
	// MacOSDigest of the installation, for a macOS guest.
	MacOSDigest string `json:"macOSDigest,omitempty"`
}

// Restore is part of vm.Driver. Unlike other drivers it notices any change of a
// snapshot's files.
func (d *Driver) Restore(ctx context.Context, id, dir string, cfg vm.Config) (vm.Machine, error) {
	m, err := d.restore(ctx, id, dir, cfg)
	if err != nil {
		return nil, fmt.Errorf("restore machine %q from %s: %w", id, dir, err)
	}
	return m, nil
}

func (d *Driver) restore(ctx context.Context, id, dir string, cfg vm.Config) (*machine, error) {
	if err := d.begin(ctx, OpRestore); err != nil {
		return nil, err
	}
	if !d.features.Snapshots {
		return nil, vm.ErrNotSupported
	}
	if err := d.check(id, cfg); err != nil {
		return nil, err
	}
	memory, err := d.readSnapshot(dir, cfg)
	if err != nil {
		return nil, err
	}
	i, err := d.host.add(id, cfg, memory, true, d.features.MacOSGuests, d.opts.Guest)
	if err != nil {
		return nil, err
	}
	return &machine{driver: d, instance: i}, nil
}

func (d *Driver) readSnapshot(dir string, cfg vm.Config) ([]byte, error) {
	memory, err := os.ReadFile(filepath.Join(dir, memoryFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
	}
	want, err := d.describe(cfg, memory)
	if err != nil {
		return nil, err
	}
	if string(text) != string(want) {
		return nil, fmt.Errorf("%w: its state is not that of this memory, configuration and driver", vm.ErrSnapshotInvalid)
	}
	return memory, nil
}

func (d *Driver) describe(cfg vm.Config, memory []byte) ([]byte, error) {
	sum := sha256.Sum256(memory)
	s := state{
		Compatibility: d.features.Compatibility, Shape: cfg.Shape, KitDigest: cfg.Kit.Digest,
		MemoryBytes: int64(len(memory)), MemorySHA256: hex.EncodeToString(sum[:]),
	}
	if cfg.MacOS != nil {
		s.MacOSDigest = cfg.MacOS.Digest
	}
	return json.Marshal(s)
}

// Load is part of vm.Driver.
func (d *Driver) Load(ctx context.Context, id string) (vm.Machine, error) {
	if err := d.begin(ctx, OpLoad); err != nil {
		return nil, fmt.Errorf("load machine %q: %w", id, err)
	}
	i := d.host.find(id)
	if i == nil {
		return nil, fmt.Errorf("load machine %q: %w", id, vm.ErrNotFound)
	}
	return &machine{driver: d, instance: i}, nil
}

// List is part of vm.Driver.
func (d *Driver) List(ctx context.Context) ([]string, error) {
	if err := d.begin(ctx, OpList); err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	return slices.Sorted(maps.Keys(d.host.machines)), nil
}

// Close is part of vm.Driver. It ends the streams dialled through this driver, as
// the death of its process would.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	conns := d.conns
	d.conns = nil
	d.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	return nil
}

// machine is a driver's view of an instance.
type machine struct {
	driver   *Driver
	instance *instance
}

var (
	_ vm.Machine   = (*machine)(nil)
	_ vm.Pauser    = (*machine)(nil)
	_ vm.Saver     = (*machine)(nil)
	_ vm.Meter     = (*machine)(nil)
	_ vm.Describer = (*machine)(nil)
)

func (m *machine) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s machine %q: %w", doing, m.instance.id, err)
}

func (m *machine) begin(ctx context.Context, op string) error {
	if err := m.driver.begin(ctx, op); err != nil {
		return err
	}
	if !m.instance.host.present(m.instance) {
		return vm.ErrNotFound
	}
	return nil
}

// Config is part of vm.Describer.
func (m *machine) Config() vm.Config { return m.instance.cfg }

// ID is part of vm.Machine.
func (m *machine) ID() string { return m.instance.id }

// State is part of vm.Machine.
func (m *machine) State(ctx context.Context) (vm.State, error) {
	if err := m.begin(ctx, OpState); err != nil {
		return "", m.wrap("ask", err)
	}
	return m.instance.state(), nil
}

// Resume is part of vm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.begin(ctx, OpResume); err != nil {
		return m.wrap("resume", err)
	}
	return m.wrap("resume", m.instance.setPaused(false))
}

// Pause is part of vm.Pauser.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.begin(ctx, OpPause); err != nil {
		return m.wrap("pause", err)
	}
	if !m.driver.features.Pause {
		return m.wrap("pause", vm.ErrNotSupported)
	}
	return m.wrap("pause", m.instance.setPaused(true))
}

// DialGuest is part of vm.Machine.
func (m *machine) DialGuest(ctx context.Context, port uint32) (net.Conn, error) {
	if err := m.begin(ctx, OpDial); err != nil {
		return nil, m.wrap("dial guest of", err)
	}
	if port != vm.AgentPort {
		return nil, m.wrap("dial guest of", fmt.Errorf("%w: guest port %d, only %d exists", vm.ErrNotSupported, port, vm.AgentPort))
	}
	conn, err := m.instance.dial()
	if err != nil {
		return nil, m.wrap("dial guest of", err)
	}
	m.driver.mu.Lock()
	defer m.driver.mu.Unlock()
	m.driver.conns = append(m.driver.conns, conn)
	return conn, nil
}

// Stop is part of vm.Machine.
func (m *machine) Stop(ctx context.Context, grace time.Duration) error {
	if err := m.begin(ctx, OpStop); err != nil {
		return m.wrap("stop", err)
	}
	i := m.instance
	i.mu.Lock()
	guest, paused := i.guest, i.paused
	asking := grace > 0 && guest != nil && !paused && !i.hasExited() && m.driver.features.GracefulStop
	i.stopping = i.stopping || asking
	i.mu.Unlock()
	if asking {
		guest.PowerButton()
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-i.exited:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return m.wrap("stop", ctx.Err())
		}
	}
	i.end(vm.ExitStopped, "ended by force")
	return nil
}

// Wait is part of vm.Machine.
func (m *machine) Wait(ctx context.Context) (vm.Exit, error) {
	if err := m.begin(ctx, OpWait); err != nil {
		return vm.Exit{}, m.wrap("wait for", err)
	}
	select {
	case <-m.instance.exited:
		return m.instance.exit, nil
	case <-ctx.Done():
		return vm.Exit{}, m.wrap("wait for", ctx.Err())
	}
}

// Save is part of vm.Saver.
func (m *machine) Save(ctx context.Context, dir string) ([]string, error) {
	files, err := m.save(ctx, dir)
	return files, m.wrap("save", err)
}

func (m *machine) save(ctx context.Context, dir string) ([]string, error) {
	if err := m.begin(ctx, OpSave); err != nil {
		return nil, err
	}
	i := m.instance
	switch {
	case !m.driver.features.Snapshots:
		return nil, vm.ErrNotSupported
	case !i.cfg.Saveable:
		return nil, fmt.Errorf("%w: it was not made to be saved (Config.Saveable)", vm.ErrInvalidState)
	case i.state() != vm.StatePaused:
		return nil, fmt.Errorf("%w: it is %s, want paused", vm.ErrInvalidState, i.state())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%w: %s is not empty", vm.ErrInvalidConfig, dir)
	}
	var memory []byte
	i.mu.Lock()
	guest := i.guest
	i.mu.Unlock()
	if guest != nil {
		if memory, err = guest.Memory(); err != nil {
			return nil, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
		}
	}
	if memory == nil {
		memory = []byte{}
	}
	text, err := m.driver.describe(i.cfg, memory)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, memoryFile), memory, fs.FileMode(0o600)); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), text, fs.FileMode(0o600)); err != nil {
		return nil, err
	}
	return []string{memoryFile, stateFile}, nil
}

// Delete is part of vm.Machine.
func (m *machine) Delete(ctx context.Context) error {
	err := m.begin(ctx, OpDelete)
	if errors.Is(err, vm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return m.wrap("delete", err)
	}
	m.instance.end(vm.ExitStopped, "deleted")
	m.instance.host.remove(m.instance)
	return nil
}

// Usage is part of vm.Meter: a fake machine costs what its shape has.
func (m *machine) Usage(ctx context.Context) (vm.Usage, error) {
	if err := ctx.Err(); err != nil {
		return vm.Usage{}, m.wrap("measure", err)
	}
	if !m.instance.host.present(m.instance) {
		return vm.Usage{}, m.wrap("measure", vm.ErrNotFound)
	}
	return vm.Usage{PrivateBytes: m.instance.cfg.Shape.MemoryBytes / 4}, nil
}
