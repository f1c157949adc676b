// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"net"
	"time"
)

// AgentPort is the guest port that the agent listens on, on every driver.
const AgentPort uint32 = 1024

// Driver makes machines on one hypervisor.
//
// All methods are safe for concurrent use. Calls that name different ids do not
// wait for each other. A cancelled ctx ends a call with ctx.Err() wrapped, and a
// Create or Restore that fails for any reason leaves nothing behind: no process,
// no file, no taken id.
type Driver interface {
	// Name is the driver's name: "qemu", "vz", "fake".
	Name() string

	// Features tells what this driver can do on this host. It is constant for the
	// life of the Driver.
	Features() Features

	// Create starts a machine cold from cfg.Kit. It returns when the hypervisor
	// runs the guest, which is before the agent answers; the machine is running.
	//
	// Errors: ErrAlreadyExists, ErrInvalidConfig, ErrNoSpace, ErrLimitExceeded,
	// ErrUnavailable.
	Create(ctx context.Context, id string, cfg Config) (Machine, error)

	// Restore makes a machine from the files that Saver.Save wrote to dir. The
	// machine is paused. cfg must have the shape and the kit of the saved machine;
	// cfg.Images are this machine's own. The driver never writes to dir and any
	// number of machines may be restored from it at once; dir must stay until the
	// last of them is deleted.
	//
	// Errors: those of Create; ErrSnapshotInvalid; ErrNotSupported without
	// Features.Snapshots; ErrHostNotReady, with which the snapshot is not to blame. A
	// snapshot that cannot be restored is an error, never a cold boot.
	Restore(ctx context.Context, id, dir string, cfg Config) (Machine, error)

	// Load returns the machine with this id, also one that an earlier process
	// made and one that has exited. It does not start anything. Of a machine whose own
	// record cannot be read it returns an Unreadable.
	//
	// Errors: ErrNotFound; ErrUnavailable when the machine may exist but could not
	// be asked.
	Load(ctx context.Context, id string) (Machine, error)

	// List returns the ids of all machines in the driver's state directory, in
	// lexical order: running, paused, exited and those that cannot be asked.
	List(ctx context.Context) ([]string, error)

	// Close waits for the driver's own goroutines and releases its handles. Streams
	// dialled through it end, machines keep running: it is what the death of the
	// process is. It is idempotent; other calls after it are ErrUnavailable.
	Close() error
}

// Machine is one virtual machine. All methods are safe for concurrent use. After
// Delete every method but ID and Delete returns ErrNotFound.
type Machine interface {
	// ID is the id given to Create or Restore.
	ID() string

	// State asks the hypervisor; it never blocks on the guest. It is how one finds out that a
	// hypervisor lives and does not answer: then it is ErrUnavailable, or ctx's error.
	State(ctx context.Context) (State, error)

	// Resume lets a paused machine run. A running machine is left as it is.
	//
	// Errors: ErrInvalidState when it has exited.
	Resume(ctx context.Context) error

	// DialGuest opens a byte stream to a port of the guest. Data written before
	// the guest listens may be lost: the protocol above repeats its greeting (see
	// vm/guest). Closing the connection, or the death of this process, ends the
	// stream in the guest as well. Where Features.SingleConn is set, a machine has
	// one stream at a time, a further dial returns ErrUnavailable, and only
	// AgentPort exists (others: ErrNotSupported). ErrInvalidState when the machine
	// has exited. A paused machine can be dialled; its guest answers once it runs.
	DialGuest(ctx context.Context, port uint32) (net.Conn, error)

	// Stop ends the machine: with a grace above zero it asks the guest to power
	// off and waits that long, then, or at once with zero, it ends it by force. A
	// paused machine is ended by force. It returns when the machine has exited, nil
	// if it had exited before.
	Stop(ctx context.Context, grace time.Duration) error

	// Wait blocks until the machine has exited and returns how. The exit is kept
	// until Delete: any number of callers, at any time, get the same one.
	Wait(ctx context.Context) (Exit, error)

	// Delete ends the machine by force if it still runs and releases everything it
	// holds on the host: process, disks, sockets, directory. Idempotent. When it
	// returns an error it may be called again, until nil.
	Delete(ctx context.Context) error
}

// Unreadable is a machine of which only its id and its place are known: its own record is
// damaged, or another vk-firkin wrote it. It may run. Every method but ID and Delete is
// ErrUnreadable, and asking again does not help.
//
// Delete is for whoever knows that the machine is nobody's, or was told to end it. It ends
// processes only of which it is certain that they are this machine's; when it is not, it
// changes nothing and the error, an ErrUnavailable, names them.
type Unreadable interface {
	Machine
	// Unreadable is why, an ErrUnreadable.
	Unreadable() error
}

// Pauser is implemented by machines of drivers with Features.Pause.
type Pauser interface {
	// Pause stops the vCPUs; the guest does not notice. Idempotent.
	// Errors: ErrInvalidState when the machine has exited.
	Pause(ctx context.Context) error
}

// Saver is implemented by machines of drivers with Features.Snapshots.
type Saver interface {
	// Save writes the machine's memory, device state and scratch disk into dir,
	// which must exist and be empty, and returns the names of the files in it. The
	// machine must be paused and stays paused. Its Config must have had Saveable
	// set. Files are complete but not synced: the caller syncs and publishes. They
	// depend on no other file but those of the kit, and what the machine does after
	// the save does not change them.
	//
	// Errors: ErrInvalidState, ErrInvalidConfig (dir is not empty), ErrNoSpace,
	// ErrHostNotReady, ErrUnavailable. After an error the machine is still paused and the content of
	// dir is to be thrown away.
	Save(ctx context.Context, dir string) ([]string, error)
}

// Consoler is implemented by machines whose console output can be read, for
// diagnosis. What it returns comes from the guest and is hostile.
type Consoler interface {
	// Console returns the last output of the guest's console, at most 64 KiB.
	Console(ctx context.Context) ([]byte, error)
}

// Describer is implemented by machines that can tell what they were made of, also when an
// earlier process made them.
type Describer interface {
	// Config is what Create or Restore was given; the zero value when that is not known.
	Config() Config
}

// Meter is implemented by machines whose cost to the host can be measured.
type Meter interface {
	// Usage measures what the machine costs the host now.
	Usage(ctx context.Context) (Usage, error)
}

// Usage is what a machine costs its host.
type Usage struct {
	// PrivateBytes is memory that would be free if this machine were gone: pages
	// shared with the snapshot or with other machines do not count.
	PrivateBytes int64
	// CPUTime is the processor time used since the machine was made.
	CPUTime time.Duration
	// DiskBytes is what the machine's own files allocate.
	DiskBytes int64
}

// Features tells what a driver can do on this host. Data, read once.
type Features struct {
	// Arch is the guest architecture in GOARCH terms: "amd64" or "arm64".
	Arch string
	// Accelerator names how guest code is executed, for people: "kvm", "tcg", "vz".
	Accelerator string
	// Snapshots: machines can be saved and restored.
	Snapshots bool
	// Pause: machines implement Pauser.
	Pause bool
	// GracefulStop: Stop with a grace reaches the guest.
	GracefulStop bool
	// SingleConn: a machine has one stream to its guest at a time.
	SingleConn bool
	// ImageSlots is the number of image slots of every machine.
	ImageSlots int
	// SlotBytes is the exact size that a file given as a slot's image must have,
	// sparse where it has no data. It is the same for all machines because a
	// restored guest remembers the size of its disks.
	SlotBytes int64
	// ScratchBytes is the size of the scratch disk.
	ScratchBytes int64
	// MacOSGuests is how many macOS guests may run at once on this host. 0: none.
	MacOSGuests int
	// Compatibility is an opaque digest over everything about driver, hypervisor,
	// accelerator, device list and host that must be equal for a snapshot made by
	// one Driver to be restored by another.
	Compatibility string
}
