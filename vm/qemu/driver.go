// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// Name is what Driver.Name returns.
const Name = "qemu"

// restoreTimeout bounds the loading of a device state, half a megabyte: a damaged
// one may keep QEMU waiting for more.
const restoreTimeout = 60 * time.Second

// Options say where and how machines are made.
type Options struct {
	// StateDir is the state root; machines are under StateDir/machines. Required.
	StateDir string
	// CacheDir is where the choice of the accelerator is remembered. Empty: StateDir.
	CacheDir string
	// Arch is the guests' architecture, "amd64" or "arm64". Empty: the host's.
	Arch string
	// Accelerator is "kvm", "tcg", or empty for the best that can boot Kit.
	Accelerator string
	// Kit is booted to choose the accelerator. Without it, and without a remembered
	// choice for this host, machines are emulated.
	Kit vm.Kit
	// QEMU is the program. Empty: qemu-system-<arch> in PATH.
	QEMU string
	// Logger gets what nobody can be told by an error. Nil: discarded.
	Logger *slog.Logger
}

// Driver makes machines with QEMU. See vm.Driver.
type Driver struct {
	opts     Options
	log      *slog.Logger
	binary   string // resolved, as /proc/<pid>/exe shows it
	features vm.Features

	machines *machinedir.Registry[*machine]
}

var _ vm.Driver = (*Driver)(nil)

// Open opens a driver on a state directory, which is made if missing. With
// opts.Accelerator empty and a KVM device present it may boot opts.Kit once, which
// takes up to probeTimeout, and remembers the answer in opts.CacheDir.
//
// Several drivers may be open on one directory to look at it; only one may have
// machines loaded, since QEMU talks to one at a time.
//
// Errors: ErrNotSupported when QEMU is not installed or cannot run guests of that
// architecture with that accelerator; ErrInvalidConfig.
func Open(ctx context.Context, opts Options) (*Driver, error) {
	d := &Driver{opts: opts, log: opts.Logger, machines: machinedir.NewRegistry[*machine](filepath.Join(opts.StateDir, "machines"))}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.opts.Arch == "" {
		d.opts.Arch = runtime.GOARCH
	}
	if err := d.prepare(ctx); err != nil {
		return nil, fmt.Errorf("open qemu driver: %w", err)
	}
	return d, nil
}

// prepare finds the program, makes the directories and chooses the accelerator.
func (d *Driver) prepare(ctx context.Context) error {
	if !filepath.IsAbs(d.opts.StateDir) {
		return fmt.Errorf("%w: state directory %q, want an absolute path", vm.ErrInvalidConfig, d.opts.StateDir)
	}
	if d.opts.CacheDir == "" {
		d.opts.CacheDir = d.opts.StateDir
	}
	if d.opts.Arch != "amd64" && d.opts.Arch != "arm64" {
		return fmt.Errorf("%w: guest architecture %q, want amd64 or arm64", vm.ErrInvalidConfig, d.opts.Arch)
	}
	program, err := findProgram(ctx, d.opts)
	if err != nil {
		return err
	}
	d.binary = program.path
	for _, dir := range []string{filepath.Join(d.opts.StateDir, "machines"), d.opts.CacheDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return machinedir.NoSpace(err)
		}
	}
	if err := machinedir.EnsureSize(d.emptySlot(), slotBytes); err != nil {
		return fmt.Errorf("make the file behind empty image slots: %w", err)
	}
	d.sweepProbes(time.Now())
	accelerator, err := d.chooseAccelerator(ctx, program)
	if err != nil {
		return err
	}
	compatibility, err := compatibility(d.opts.Arch, accelerator, program)
	if err != nil {
		return err
	}
	d.features = vm.Features{
		Arch:          d.opts.Arch,
		Accelerator:   accelerator,
		Snapshots:     true,
		Pause:         true,
		GracefulStop:  true,
		SingleConn:    true,
		ImageSlots:    imageSlots,
		SlotBytes:     slotBytes,
		ScratchBytes:  scratchBytes,
		Compatibility: compatibility,
	}
	return nil
}

// emptySlot is what stands behind image slots without an image.
func (d *Driver) emptySlot() string { return filepath.Join(d.opts.StateDir, "empty-slot") }

// Name is part of vm.Driver.
func (d *Driver) Name() string { return Name }

// Features is part of vm.Driver.
func (d *Driver) Features() vm.Features { return d.features }

// Create is part of vm.Driver.
func (d *Driver) Create(ctx context.Context, id string, cfg vm.Config) (vm.Machine, error) {
	m, err := d.make(ctx, id, cfg, nil)
	if err != nil {
		return nil, fmt.Errorf("create machine %q: %w", id, err)
	}
	return m, nil
}

// Restore is part of vm.Driver.
func (d *Driver) Restore(ctx context.Context, id, dir string, cfg vm.Config) (vm.Machine, error) {
	if err := vm.ValidateID(id); err != nil {
		return nil, fmt.Errorf("restore machine %q: %w", id, err)
	}
	s, err := d.openSnapshot(dir, cfg)
	if err != nil {
		return nil, fmt.Errorf("restore machine %q from %s: %w", id, dir, err)
	}
	defer s.Close()
	m, err := d.make(ctx, id, cfg, s)
	if err != nil {
		return nil, fmt.Errorf("restore machine %q from %s: %w", id, dir, err)
	}
	return m, nil
}

// make claims the id and makes the machine, from s unless that is nil. If it fails
// nothing is left.
func (d *Driver) make(ctx context.Context, id string, cfg vm.Config, s *snapshot) (_ *machine, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := errors.Join(vm.ValidateID(id), cfg.Validate(d.features)); err != nil {
		return nil, err
	}
	if err := checkFiles(cfg); err != nil {
		return nil, err
	}
	release, err := d.machines.Claim(id)
	if err != nil {
		return nil, err
	}
	defer release()
	r := record{Version: recordVersion, ID: id, Created: time.Now().UTC(), Config: cfg}
	if s != nil {
		r.Snapshot = s.dir
	}
	m := newMachine(d, r)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.machines.Remove(id, d.binary))
		}
	}()
	if err := machinedir.WriteJSON(m.driver.machines.FS, m.dir, recordFile, m.record); err != nil {
		return nil, err
	}
	q, err := d.start(ctx, m, s)
	if err != nil {
		return nil, err
	}
	// From here on the watch owns the process.
	if err := d.machines.Add(id, m, func() { m.watch(q) }); err != nil {
		q.Close()
		m.abandon()
		return nil, err
	}
	return m, nil
}

// checkFiles checks what Config.Validate cannot see: that the files are there.
func checkFiles(cfg vm.Config) error {
	errs := []error{
		machinedir.CheckFile("guest kit's kernel", cfg.Kit.Kernel, 0),
		machinedir.CheckFile("guest kit's initramfs", cfg.Kit.Initramfs, 0),
		machinedir.CheckFile("guest kit's scratch", cfg.Kit.Scratch, scratchBytes),
	}
	for i, image := range cfg.Images {
		if image != "" {
			errs = append(errs, machinedir.CheckFile(fmt.Sprintf("image of slot %d", i), image, slotBytes))
		}
	}
	return errors.Join(errs...)
}

// Load is part of vm.Driver.
func (d *Driver) Load(ctx context.Context, id string) (vm.Machine, error) {
	m, err := d.machines.Load(ctx, id, func() (*machine, func(), error) { return d.find(id) })
	if errors.Is(err, vm.ErrUnreadable) {
		return d.machines.Unreadable(id, recordFile, d.binary, err), nil
	}
	if err != nil {
		return nil, fmt.Errorf("load machine %q: %w", id, err)
	}
	return m, nil
}

// errNotReady: a whole record of a machine whose maker died on the way.
var errNotReady = errors.New("its record does not say that it was")

// find makes a machine of what its directory says. One that has ended needs no watch.
func (d *Driver) find(id string) (m *machine, watch func(), err error) {
	var r record
	err = machinedir.ReadVersioned(d.machines.FS, d.machines.Dir(id), recordFile, recordVersion, &r)
	if errors.Is(err, vm.ErrUnavailable) {
		return nil, nil, err // it may run, and is not ours to touch
	}
	if err != nil || !r.Ready {
		if unknown := d.machines.Unfinished(id, err); unknown != nil {
			return nil, nil, unknown
		}
		if err == nil {
			err = errNotReady
		}
		d.log.Warn("Found a machine that was never made completely", "machine", id, "err", err)
		return newExited(d, record{ID: id}, vm.Exit{Reason: vm.ExitCrashed, Time: time.Now().UTC(), Detail: "it was never made completely: the process that made it ended on the way"}), nil, nil
	}
	r.ID = id
	m = newMachine(d, r)
	recorded := machinedir.ReadJSON(m.driver.machines.FS, m.dir, exitFile, &m.exit) == nil
	p, err := process.Find(r.Process)
	if errors.Is(err, process.ErrGone) {
		exit := m.exit
		if !recorded {
			exit = vm.Exit{Reason: vm.ExitCrashed, Time: time.Now().UTC(), Detail: "the hypervisor's process ended while nobody watched it"}
			if err := machinedir.NoteJSON(m.driver.machines.FS, m.dir, exitFile, exit); err != nil {
				d.log.Warn("Cannot record the exit of the machine", "machine", id, "err", err)
			}
		}
		return newExited(d, r, exit), nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	m.process = p
	if recorded {
		// The process that recorded this exit died before it could bring it about.
		m.ending = true
		if err := p.Kill(); err != nil {
			p.Close()
			return nil, nil, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
		}
	}
	return m, func() { m.watch(nil) }, nil
}

var _ vm.Describer = (*machine)(nil)

// Config is part of vm.Describer.
func (m *machine) Config() vm.Config { return m.record.Config }

// newExited is a machine that has ended.
func newExited(d *Driver, r record, exit vm.Exit) *machine {
	m := newMachine(d, r)
	m.exit, m.ending = exit, true
	close(m.exited)
	return m
}

// List is part of vm.Driver.
func (d *Driver) List(ctx context.Context) ([]string, error) { return d.machines.List(ctx) }

// Close is part of vm.Driver. Streams to guests that are still open are closed.
func (d *Driver) Close() error {
	for _, m := range d.machines.Close() {
		m.hangUp()
	}
	return nil
}
