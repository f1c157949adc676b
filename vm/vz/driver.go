// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// errClosed: the driver was closed.
var errClosed = fmt.Errorf("%w: the driver is closed", vm.ErrUnavailable)

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

	// life ends with Close.
	life     context.Context //nolint:containedctx // what every call ends with
	end      context.CancelFunc
	watchers sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	machines map[string]*machine
	making   map[string]chan struct{} // ids in Create or Restore; closed when that has ended
}

var _ vm.Driver = (*Driver)(nil)

// Open opens a driver on a state directory, which is made if missing. One process at a
// time may have it open.
//
// Errors: ErrNotSupported when the host has no framework that could do it;
// ErrInvalidConfig.
func Open(ctx context.Context, opts Options) (*Driver, error) {
	d := &Driver{
		opts: opts, log: opts.Logger, machines: map[string]*machine{}, making: map[string]chan struct{}{},
	}
	d.life, d.end = context.WithCancel(context.Background())
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
	if n := len(d.machineDir(strings.Repeat("x", vm.MaxIDBytes))) + len("/control.sock"); runtime.GOOS == "darwin" && n >= longestSocket {
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

func (d *Driver) open() error {
	if d.life.Err() != nil {
		return errClosed
	}
	return nil
}

func (d *Driver) machineDir(id string) string {
	return filepath.Join(d.opts.StateDir, "machines", id)
}

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
	release, err := d.claim(id)
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
			err = errors.Join(err, d.removeDir(id))
		}
	}()
	if err := machinedir.WriteJSON(m.dir, layout.RecordFile, m.record); err != nil {
		return nil, err
	}
	if err := d.launch(ctx, m); err != nil {
		return nil, err
	}
	// From here on the watcher owns the process.
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		m.abandon()
		return nil, errClosed
	}
	d.machines[id] = m
	d.watchers.Add(1)
	d.mu.Unlock()
	go m.watch()
	return m, nil
}

// claim takes an id by making its directory, and marks it as being made.
func (d *Driver) claim(id string) (release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	if err := os.Mkdir(d.machineDir(id), 0o700); errors.Is(err, fs.ErrExist) {
		return nil, vm.ErrAlreadyExists
	} else if err != nil {
		return nil, machinedir.NoSpace(err)
	}
	made := make(chan struct{})
	d.making[id] = made
	return func() {
		d.mu.Lock()
		delete(d.making, id)
		d.mu.Unlock()
		close(made)
	}, nil
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
	if err := vm.ValidateID(id); err != nil {
		return nil, fmt.Errorf("load machine %q: %w", id, errors.Join(vm.ErrNotFound, err))
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("load machine %q: %w", id, err)
		}
		d.mu.Lock()
		made := d.making[id]
		if made == nil {
			m, err := d.load(id)
			d.mu.Unlock()
			if err != nil {
				return nil, fmt.Errorf("load machine %q: %w", id, err)
			}
			return m, nil
		}
		d.mu.Unlock()
		select {
		case <-made:
		case <-ctx.Done():
		}
	}
}

// load finds a machine in memory or on disk. It needs d.mu.
func (d *Driver) load(id string) (*machine, error) {
	if d.closed {
		return nil, errClosed
	}
	if m := d.machines[id]; m != nil {
		return m, nil
	}
	if _, err := os.Stat(d.machineDir(id)); errors.Is(err, fs.ErrNotExist) {
		return nil, vm.ErrNotFound
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	var r layout.Record
	err := machinedir.ReadJSON(d.machineDir(id), layout.RecordFile, &r)
	if err == nil && r.Version != layout.RecordVersion {
		// Of another version of this program: it may run, and is not ours to touch.
		return nil, fmt.Errorf("%w: its record has version %d, this program reads %d", vm.ErrUnavailable, r.Version, layout.RecordVersion)
	}
	if err != nil || !r.Ready {
		d.log.Warn("Found a machine that was never made completely", "machine", id, "err", err)
		return d.adoptExited(layout.Record{ID: id}, vm.Exit{Reason: vm.ExitCrashed, Time: time.Now().UTC(), Detail: "it was never made completely: the process that made it ended on the way"}), nil
	}
	r.ID = id
	m := newMachine(d, r)
	p, err := process.Find(r.Shim)
	if errors.Is(err, process.ErrGone) {
		return d.adoptExited(r, m.recordedExit("its shim ended while nobody watched it")), nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	m.process = p
	d.machines[id] = m
	d.watchers.Add(1)
	go m.watch()
	return m, nil
}

// adoptExited keeps a machine that has ended. It needs d.mu.
func (d *Driver) adoptExited(r layout.Record, exit vm.Exit) *machine {
	m := newMachine(d, r)
	m.exit = exit
	close(m.exited)
	d.machines[r.ID] = m
	return m
}

// List is part of vm.Driver.
func (d *Driver) List(ctx context.Context) ([]string, error) {
	if err := errors.Join(ctx.Err(), d.open()); err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(d.opts.StateDir, "machines"))
	if err != nil {
		return nil, fmt.Errorf("list machines: %w: %w", vm.ErrUnavailable, err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && vm.ValidateID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Close is part of vm.Driver. Streams to guests that are still open are closed.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.end()
	d.watchers.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.machines {
		m.hangUp()
	}
	return nil
}

// removeDir deletes a machine's directory, and the shim that still works in it: that of
// a machine that was never made completely.
func (d *Driver) removeDir(id string) error {
	dir := d.machineDir(id)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	left, err := process.In(dir, d.program)
	if err != nil {
		return err
	}
	for _, p := range left {
		err = errors.Join(err, p.Kill())
		if err == nil {
			p.Wait()
			p.Reap()
		}
		p.Close()
	}
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove machine's directory: %w", err)
	}
	return nil
}

// forget drops a deleted machine, unless its id means another one by now.
func (d *Driver) forget(m *machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.machines[m.id] == m {
		delete(d.machines, m.id)
	}
}
