// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// DefaultMinFreeBytes is what must stay free on the store's disk to build or
// restore: a restored machine writes to its scratch disk for as long as it lives.
const DefaultMinFreeBytes int64 = 10 << 30

// Timeouts bound every step that crosses a process. Zero fields take the default.
type Timeouts struct {
	// Create is for starting the hypervisor of a builder. Default 1 minute.
	Create time.Duration
	// Boot is from there until the agent answers. A cold boot takes about 6 s under
	// emulation on an idle host; default 3 minutes, for a busy one.
	Boot time.Duration
	// MacOSBoot is Boot for a macOS guest: its agent is started by launchd once the system is
	// up. Default 10 minutes; the first boot after an installation takes longer than others.
	MacOSBoot time.Duration
	// Settle is how long the agent is given to notice that the host has hung up. An idle
	// guest takes milliseconds; default 1 second, for a busy host under emulation.
	Settle time.Duration
	// Save is for the driver to write memory and device state. Default 5 minutes: a
	// slow disk and 8 GiB of memory.
	Save time.Duration
	// Restore is for the driver to make the paused machine. Default 1 minute.
	Restore time.Duration
	// Agent is from resuming a restored machine until its agent answers. It takes
	// milliseconds; default 30 seconds, for a busy host.
	Agent time.Duration
	// Call is for one small call to driver or agent. Default 20 seconds.
	Call time.Duration
	// Wake is for all of Store.Wake: a machine that does not answer in this time is not worth
	// more of a pod's. It takes milliseconds; default 10 seconds, for a busy host.
	Wake time.Duration
	// Delete is for deleting a machine on a way out. Default 30 seconds.
	Delete time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Create, time.Minute)
	set(&t.Boot, 3*time.Minute)
	set(&t.MacOSBoot, 10*time.Minute)
	set(&t.Settle, time.Second)
	set(&t.Save, 5*time.Minute)
	set(&t.Restore, time.Minute)
	set(&t.Agent, 30*time.Second)
	set(&t.Call, 20*time.Second)
	set(&t.Wake, 10*time.Second)
	set(&t.Delete, 30*time.Second)
	return t
}

// EventType tells what happened to a snapshot.
type EventType string

// The things that happen to snapshots.
const (
	EventBuilt       EventType = "Built"
	EventBuildFailed EventType = "BuildFailed"
	EventQuarantined EventType = "Quarantined"
	EventRemoved     EventType = "Removed"
)

// Event is for the node's operator: the provider turns it into an event of the Node.
type Event struct {
	Type  EventType
	Key   string
	Kind  Kind     // empty when the manifest could not be read
	Shape vm.Shape // zero when the manifest could not be read
	// Template is "namespace/name"; empty for a base.
	Template string
	// Message tells cause and consequence.
	Message string
	// Duration of a build, and Save that of the driver's save in it.
	Duration, Save time.Duration
	// Err is why a build failed, a *BuildError.
	Err error
}

// Options of a store.
type Options struct {
	// Driver builds and restores. Without one the store can only be looked at and
	// cleaned, and references of machines are all believed, unless Machines tells better.
	Driver vm.Driver
	// Machines lists the machines of the host where there is no Driver to be asked; nil is
	// not known.
	Machines func(ctx context.Context) ([]string, error)
	// Logger gets what has no caller to be returned to. nil discards.
	Logger *slog.Logger
	// Now is the clock of manifests and collection. nil is time.Now.
	Now func() time.Time
	// FreeBytes measures the disk that holds path. nil is [FreeBytes].
	FreeBytes func(path string) (int64, error)
	// MinFreeBytes must be free to build or restore; exactly this much is enough.
	// 0 is DefaultMinFreeBytes, negative is no floor.
	MinFreeBytes int64
	// Builds is how many snapshots are built at once. 0 is 1: a build boots a
	// machine and reads all its memory.
	Builds int
	// RestoreFailures is how many restores in a row may fail without a clear cause before
	// the snapshot is put aside, even if its files are what was saved. 0 is 2: one may be a
	// busy host, two are the snapshot.
	RestoreFailures int
	// Network is given to every restored machine; nil leaves it with loopback only.
	Network *agentv1.Network
	// OnEvent is called for each event, from any goroutine, without locks held. It
	// must not block. nil is nothing.
	OnEvent func(Event)
	// Timeouts of the steps.
	Timeouts Timeouts
	// Dial talks to the agent over a stream of Machine.DialGuest, which it owns from
	// then on, also when it fails. nil is guest.Dial.
	Dial func(ctx context.Context, conn net.Conn) (*guest.Client, error)

	// FS is the disk. nil is durable.Host.
	FS durable.FS
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FreeBytes == nil {
		o.FreeBytes = FreeBytes
	}
	if o.MinFreeBytes == 0 {
		o.MinFreeBytes = DefaultMinFreeBytes
	}
	if o.Builds <= 0 {
		o.Builds = 1
	}
	if o.RestoreFailures <= 0 {
		o.RestoreFailures = 2
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, conn net.Conn) (*guest.Client, error) {
			return guest.Dial(ctx, conn, guest.Options{})
		}
	}
	if o.FS == nil {
		o.FS = durable.Host
	}
	o.Timeouts = o.Timeouts.withDefaults()
	return o
}

// checkDriver refuses a driver that cannot make snapshots.
func checkDriver(d vm.Driver) error {
	var errs []error
	f := d.Features()
	if !f.Snapshots || !f.Pause {
		errs = append(errs, fmt.Errorf("driver %q on this host cannot save and restore machines: %w", d.Name(), vm.ErrNotSupported))
	}
	if f.Compatibility == "" {
		errs = append(errs, fmt.Errorf("driver %q does not tell what its snapshots depend on: %w", d.Name(), vm.ErrInvalidConfig))
	}
	return errors.Join(errs...)
}
