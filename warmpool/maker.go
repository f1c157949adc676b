// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// Source is what a machine is made from: a template, or the base of a shape.
type Source struct {
	Shape vm.Shape
	Kit   vm.Kit
	// Template is nil for a base snapshot.
	Template *Template
	// Images of the template, in slot order; none for a base snapshot.
	Images []SlotImage
}

// config is that of a machine made from it.
func (s Source) config() vm.Config {
	if s.Template != nil && s.Template.GuestOS == vm.GuestMacOS {
		cfg := vm.Config{Shape: s.Shape, GuestOS: vm.GuestMacOS}
		if len(s.Images) > 0 {
			cfg.MacOS = s.Images[0].MacOS
		}
		return cfg
	}
	cfg := vm.Config{Shape: s.Shape, Kit: s.Kit}
	for _, i := range s.Images {
		cfg.Images = append(cfg.Images, i.DiskPath)
	}
	return cfg
}

// Snapshot is a saved machine, pinned until Release.
type Snapshot interface {
	// Key names it in the store.
	Key() string
	// Release drops the pin. Idempotent.
	Release()
}

// Snapshots are the saved machines of the node. All errors are those of package
// snapshot.
type Snapshots interface {
	// Ensure returns the snapshot of a source, pinned, and builds it when it is
	// missing or damaged, which takes minutes. built: this call waited for a build.
	// A recipe that failed is a *recipe.StepError.
	Ensure(ctx context.Context, src Source) (snap Snapshot, built bool, err error)
	// Find returns what the snapshots of a template revision that are on the node
	// were made of, by reference and digest, best first. A tag may have moved since:
	// these digests are those that machines can be restored with.
	Find(ctx context.Context, t Template) ([][]SlotImage, error)
	// Origin tells what a machine was restored from; known is false for machines
	// that the store has no reference of. Until proven it must not be used.
	Origin(machine string) (proven, known bool)
	// Forget drops what the store keeps for a machine that was deleted. Idempotent.
	Forget(machine string) error
	// Builders are the ids of machines that belong to the store, sorted.
	Builders() []string
}

// Maker makes machines, and reaches those that there are.
type Maker interface {
	// Restore makes a running machine with its own clock, entropy and identity, that
	// has proved to be a restored one. See snapshot.Store.Restore for its errors.
	Restore(ctx context.Context, snap Snapshot, id string, cfg vm.Config, opts MakeOptions) (*Running, error)
	// Boot makes the same without any snapshot: cold, the template's recipe run in it.
	Boot(ctx context.Context, src Source, id string, cfg vm.Config, opts MakeOptions) (*Running, error)
	// Refresh gives a machine that stood paused the time of day and a name.
	Refresh(ctx context.Context, m vm.Machine, conn Conn, hostname string) error
	// Rehearse goes the way that a pod's container will go, so that the machine has
	// it hot, and proves that the machine is ready.
	Rehearse(ctx context.Context, m vm.Machine, conn Conn, images []SlotImage) error
	// Dial reaches the agent of a running machine and repeats until it answers, the
	// machine has ended (vm.ErrInvalidState), or ctx is done.
	Dial(ctx context.Context, m vm.Machine) (Conn, error)
}

// Store is what the supply takes its machines from: [FromStore] makes one.
type Store interface {
	Snapshots
	Maker
}

// Stage is a part of the making of a machine.
type Stage int

// The stages, in order.
const (
	// StageRestore: the driver makes the machine and lets it run.
	StageRestore Stage = iota
	// StageProbe: the agent answers, is refreshed and proves itself.
	StageProbe
)

// MakeOptions are what may differ between machines of one snapshot.
type MakeOptions struct {
	// Hostname of the machine; empty is the machine's id.
	Hostname string
	// Stage is called when a stage begins. May be nil.
	Stage func(Stage)
}

// Running is a machine that runs and whose agent answers. Both belong to the caller,
// who closes Conn, deletes Machine, then calls Snapshots.Forget.
type Running struct {
	Machine vm.Machine
	Conn    Conn
	// Restore is from the call to a running machine, Probe from there until it proved
	// itself.
	Restore, Probe time.Duration
}

// Conn is a connection to the agent of one machine.
type Conn interface {
	// Ping proves that the agent answers.
	Ping(ctx context.Context) error
	// PowerOff asks the guest to end itself. An error is also how a guest that was
	// quicker than its answer looks: then Err is not nil.
	PowerOff(ctx context.Context) error
	// Pause says that the machine stands still from now on, so that silence means
	// nothing, or with false that it runs again.
	Pause(paused bool)
	// Err is nil while the connection stands.
	Err() error
	// Close ends it; what runs in the guest goes on. Idempotent.
	Close() error
	// Client is the whole conversation; nil where there is none (tests).
	Client() *guest.Client
}
