// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// FromStore takes machines from a snapshot store. It keeps nothing of its own.
func FromStore(store *snapshot.Store) Store { return storeMaker{store} }

type storeMaker struct{ store *snapshot.Store }

// spec is the snapshot that a source names.
func (s storeMaker) spec(src Source) (snapshot.Spec, error) {
	if src.Template != nil {
		return snapshot.Spec{}, fmt.Errorf("template %s: the snapshot store makes no template snapshots: %w", src.Template.ID(), vm.ErrNotSupported)
	}
	return snapshot.Spec{Kind: snapshot.KindBase, Shape: src.Shape, Kit: src.Kit}, nil
}

// Ensure is part of Snapshots.
func (s storeMaker) Ensure(ctx context.Context, src Source) (Snapshot, bool, error) {
	spec, err := s.spec(src)
	if err != nil {
		return nil, false, err
	}
	ref, built, err := s.store.Ensure(ctx, spec)
	if err != nil {
		return nil, built, err
	}
	return ref, built, nil
}

// Find is part of Snapshots.
func (s storeMaker) Find(context.Context, Template) ([][]SlotImage, error) { return nil, nil }

// Origin is part of Snapshots.
func (s storeMaker) Origin(machine string) (proven, known bool) {
	ref, known := s.store.Reference(machine)
	return ref.Proven, known
}

// Forget is part of Snapshots.
func (s storeMaker) Forget(machine string) error { return s.store.Forget(machine) }

// Builders is part of Snapshots.
func (s storeMaker) Builders() []string { return s.store.Builders() }

// Restore is part of Maker.
func (s storeMaker) Restore(ctx context.Context, snap Snapshot, id string, cfg vm.Config, opts MakeOptions) (*Running, error) {
	ref, ok := snap.(*snapshot.Ref)
	if !ok {
		return nil, fmt.Errorf("%w: a snapshot of another store", vm.ErrInvalidConfig)
	}
	running, err := s.store.Restore(ctx, ref, id, cfg, snapshot.RestoreOptions{
		Hostname: opts.Hostname,
		Phase: func(p snapshot.Phase) {
			if opts.Stage == nil {
				return
			}
			if p == snapshot.PhaseAgent {
				opts.Stage(StageProbe)
			} else {
				opts.Stage(StageRestore)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return &Running{
		Machine: running.Machine, Conn: guestConn{running.Guest},
		Restore: running.Timings.Restore, Probe: running.Timings.Agent,
	}, nil
}

// Boot is part of Maker.
func (s storeMaker) Boot(context.Context, Source, string, vm.Config, MakeOptions) (*Running, error) {
	return nil, fmt.Errorf("boot a machine cold: the snapshot store cannot: %w", vm.ErrNotSupported)
}

// Refresh is part of Maker.
func (s storeMaker) Refresh(context.Context, vm.Machine, Conn, string) error { return nil }

// Rehearse is part of Maker.
func (s storeMaker) Rehearse(ctx context.Context, _ vm.Machine, conn Conn, _ []SlotImage) error {
	return conn.Ping(ctx)
}

// Dial is part of Maker.
func (s storeMaker) Dial(ctx context.Context, m vm.Machine) (Conn, error) {
	client, err := s.store.Dial(ctx, m)
	if err != nil {
		return nil, err
	}
	return guestConn{client}, nil
}

// guestConn is a client of the agent as a Conn.
type guestConn struct{ client *guest.Client }

// Client is part of Conn.
func (c guestConn) Client() *guest.Client { return c.client }

// Ping is part of Conn.
func (c guestConn) Ping(ctx context.Context) error { return c.client.Ping(ctx) }

// Err is part of Conn.
func (c guestConn) Err() error { return c.client.Err() }

// Close is part of Conn.
func (c guestConn) Close() error { return c.client.Close() }

// PowerOff is part of Conn.
func (c guestConn) PowerOff(ctx context.Context) error {
	_, err := c.client.Agent.PowerOff(ctx, connect.NewRequest(&agentv1.PowerOffRequest{}))
	return err
}
