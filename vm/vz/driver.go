// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// Name is what Driver.Name returns.
const Name = "vz"

// What every Linux machine of this driver has.
const (
	// ImageSlots is the number of image slots; a shim makes as many.
	ImageSlots = 4
	// slotBytes and scratchBytes are those of every driver: image disks and the guest
	// kit's scratch are made for them.
	slotBytes    int64 = 64 << 30
	scratchBytes int64 = 16 << 30
)

// Options say where and how machines are made.
type Options struct {
	// StateDir is the state root; machines are under StateDir/machines. Required, and
	// short: macOS allows 104 bytes for the path of a socket.
	StateDir string
	// Shim is the command that becomes a machine's shim when "--dir" and the machine's
	// directory are appended: it calls shim.Run. Required.
	Shim []string
	// Host tells what the machines run on. Required.
	Host func() (framework.Host, error)
	// Arch is the guests' architecture. Empty: the host's.
	Arch string
	// MacOSGuests is how many macOS guests may run at once: Apple's limit is 2. 0: none
	// are made.
	MacOSGuests int
	// StopTimeout is how long a shim may take to end its machine by force before its
	// process is killed, which ends the machine as well. 0: ten seconds; the shim itself
	// gives the framework five.
	StopTimeout time.Duration
	// Logger gets what nobody can be told by an error. Nil: discarded.
	Logger *slog.Logger
}

// Driver makes machines with Virtualization.framework. See vm.Driver.
type Driver struct {
	opts     Options
	log      *slog.Logger
	program  string // of the shim, resolved
	features vm.Features

	machines *machinedir.Registry[*machine]
}

var _ vm.Driver = (*Driver)(nil)

// Open opens a driver on a state directory, which is made if missing. One process at a
// time may have it open.
//
// Errors: ErrNotSupported when the host has no framework that could do it;
// ErrInvalidConfig.
func Open(ctx context.Context, opts Options) (*Driver, error) {
	d := &Driver{
		opts: opts, log: opts.Logger, machines: machinedir.NewRegistry[*machine](filepath.Join(opts.StateDir, "machines")),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.opts.Arch == "" {
		d.opts.Arch = runtime.GOARCH
	}
	if d.opts.StopTimeout <= 0 {
		d.opts.StopTimeout = stopTimeout
	}
	if err := d.prepare(ctx); err != nil {
		return nil, fmt.Errorf("open vz driver: %w", err)
	}
	return d, nil
}

// longestSocket is what macOS allows for the path of a socket (sys/un.h).
const longestSocket = 104

// prepare checks the options, asks the host, and makes the directories.
func (d *Driver) prepare(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !filepath.IsAbs(d.opts.StateDir) || len(d.opts.Shim) == 0 || d.opts.Host == nil {
		return fmt.Errorf("%w: want an absolute state directory, a shim's command and a host", vm.ErrInvalidConfig)
	}
	if n := len(d.machines.Dir(strings.Repeat("x", vm.MaxIDBytes))) + len("/control.sock"); runtime.GOOS == "darwin" && n >= longestSocket {
		return fmt.Errorf("%w: state directory %s is too long: sockets in it would have paths of %d bytes, macOS allows %d; choose a shorter one (--state-dir)",
			vm.ErrInvalidConfig, d.opts.StateDir, n, longestSocket-1)
	}
	program, err := filepath.EvalSymlinks(d.opts.Shim[0])
	if err != nil {
		return fmt.Errorf("%w: the shim's program: %w", vm.ErrInvalidConfig, err)
	}
	d.program = program
	host, err := d.opts.Host()
	if err != nil {
		return fmt.Errorf("ask the host: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(d.opts.StateDir, "machines"), 0o700); err != nil {
		return machinedir.NoSpace(err)
	}
	if err := machinedir.EnsureSize(d.emptySlot(), slotBytes); err != nil {
		return fmt.Errorf("make the file behind empty image slots: %w", err)
	}
	d.features = vm.Features{
		Arch:          d.opts.Arch,
		Accelerator:   host.Accelerator,
		Snapshots:     host.SaveRestore,
		Pause:         true,
		GracefulStop:  true,
		SingleConn:    host.SingleConn,
		ImageSlots:    ImageSlots,
		SlotBytes:     slotBytes,
		ScratchBytes:  scratchBytes,
		MacOSGuests:   d.opts.MacOSGuests,
		Compatibility: compatibility(d.opts.Arch, host),
	}
	return nil
}

// compatibility is a digest over what must be equal for a snapshot to be restored: a
// saved file is encrypted to host and user, and a newer build of macOS may not read it.
func compatibility(arch string, host framework.Host) string {
	return layout.Digest([]byte(strings.Join([]string{
		Name, strconv.Itoa(layout.DeviceVersion), arch, host.ID, host.OSBuild, host.Accelerator,
	}, "\n")))
}

// emptySlot is what stands behind image slots without an image.
func (d *Driver) emptySlot() string { return filepath.Join(d.opts.StateDir, "empty-slot") }

// Name is part of vm.Driver.
func (d *Driver) Name() string { return Name }

// Features is part of vm.Driver.
func (d *Driver) Features() vm.Features { return d.features }

// Create is part of vm.Driver.
func (d *Driver) Create(ctx context.Context, id string, cfg vm.Config) (vm.Machine, error) {
	m, err := d.make(ctx, id, cfg, "")
	if err != nil {
		return nil, fmt.Errorf("create machine %q: %w", id, err)
	}
	return m, nil
}

// Restore is part of vm.Driver.
func (d *Driver) Restore(ctx context.Context, id, dir string, cfg vm.Config) (vm.Machine, error) {
	m, err := d.restore(ctx, id, dir, cfg)
	if err != nil {
		return nil, fmt.Errorf("restore machine %q from %s: %w", id, dir, err)
	}
	return m, nil
}

func (d *Driver) restore(ctx context.Context, id, dir string, cfg vm.Config) (*machine, error) {
	if err := vm.ValidateID(id); err != nil {
		return nil, err
	}
	if !d.features.Snapshots {
		return nil, fmt.Errorf("%w: saving and restoring needs macOS 14 or later on Apple silicon", vm.ErrNotSupported)
	}
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%w: snapshot directory %q, want an absolute path", vm.ErrInvalidConfig, dir)
	}
	// The shim looks again; here it costs no process.
	s, err := layout.ReadSnapshot(dir, cfg, d.features.Compatibility)
	if err != nil {
		return nil, err
	}
	// One that ends while the framework refuses was the reason all the same.
	before := d.hasRival(id, s.Identity.MachineIdentifier)
	m, err := d.make(ctx, id, cfg, dir)
	if errors.Is(err, control.ErrRestoreRefused) && (before || d.hasRival(id, s.Identity.MachineIdentifier)) {
		return nil, fmt.Errorf("%w: another machine with the snapshot's identifier lives, and the framework may refuse it for that alone: %v", vm.ErrHostNotReady, err) //nolint:errorlint // it must not be of the other kind as well
	}
	return m, err
}

// make claims the id and makes the machine, from a snapshot unless that is empty. If it
// fails nothing is left.
func (d *Driver) make(ctx context.Context, id string, cfg vm.Config, snapshot string) (_ *machine, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := errors.Join(vm.ValidateID(id), cfg.Validate(d.features)); err != nil {
		return nil, err
	}
	if cfg.Saveable && !d.features.Snapshots {
		return nil, fmt.Errorf("%w: saving and restoring needs macOS 14 or later on Apple silicon", vm.ErrNotSupported)
	}
	if err := checkFiles(cfg); err != nil {
		return nil, err
	}
	release, err := d.machines.Claim(id)
	if err != nil {
		return nil, err
	}
	defer release()
	m := newMachine(d, layout.Record{
		Version: layout.RecordVersion, ID: id, Created: time.Now().UTC(), Config: cfg,
		EmptySlot: d.emptySlot(), Snapshot: snapshot, Compatibility: d.features.Compatibility,
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, d.machines.Remove(id, d.program))
		}
	}()
	if err := machinedir.WriteJSON(m.driver.machines.FS, m.dir, layout.RecordFile, m.record); err != nil {
		return nil, err
	}
	if err := d.launch(ctx, m); err != nil {
		return nil, err
	}
	// From here on the watch owns the process.
	if err := d.machines.Add(id, m, m.watch); err != nil {
		m.abandon()
		return nil, err
	}
	return m, nil
}

// checkFiles checks what Config.Validate cannot see: that the files are there.
func checkFiles(cfg vm.Config) error {
	if cfg.GuestOS == vm.GuestMacOS {
		return errors.Join(
			machinedir.CheckFile("macOS disk", cfg.MacOS.Disk, 0),
			machinedir.CheckFile("macOS auxiliary storage", cfg.MacOS.AuxiliaryStorage, 0))
	}
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
		return d.machines.Unreadable(id, layout.RecordFile, d.program, err), nil
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
	var r layout.Record
	err = machinedir.ReadVersioned(d.machines.FS, d.machines.Dir(id), layout.RecordFile, layout.RecordVersion, &r)
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
		return newExited(d, layout.Record{ID: id}, vm.Exit{Reason: vm.ExitCrashed, Time: time.Now().UTC(), Detail: "it was never made completely: the process that made it ended on the way"}), nil, nil
	}
	r.ID = id
	m = newMachine(d, r)
	p, err := process.Find(r.Shim)
	if errors.Is(err, process.ErrGone) {
		return newExited(d, r, m.recordedExit("its shim ended while nobody watched it")), nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	m.process = p
	return m, m.watch, nil
}

// newExited is a machine that has ended.
func newExited(d *Driver, r layout.Record, exit vm.Exit) *machine {
	m := newMachine(d, r)
	m.exit = exit
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
