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
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

// StoreOptions are what templates need beside the store.
type StoreOptions struct {
	// Image tells how the image of a digest, which is on the node and kept for whoever
	// asks, wants its programs to run.
	Image func(ctx context.Context, digest string) (recipe.Image, error)
	// Nameservers for the commands of templates, IP addresses.
	Nameservers []string
}

// FromStore takes machines from a snapshot store. It keeps nothing of its own.
func FromStore(store *snapshot.Store, opts StoreOptions) Store {
	return storeMaker{store: store, opts: opts}
}

type storeMaker struct {
	store *snapshot.Store
	opts  StoreOptions
}

// spec is the snapshot that a source names.
func (s storeMaker) spec(src Source) snapshot.Spec {
	spec := snapshot.Spec{Kind: snapshot.KindBase, Shape: src.Shape, Kit: src.Kit}
	if src.Template == nil {
		return spec
	}
	spec.Kind = snapshot.KindTemplate
	if cfg := src.config(); cfg.GuestOS == vm.GuestMacOS {
		spec.Kit, spec.GuestOS, spec.MacOS = vm.Kit{}, cfg.GuestOS, cfg.MacOS
	}
	t := &snapshot.TemplateSpec{Namespace: src.Template.Namespace, Name: src.Template.Name, Revision: src.Template.Revision}
	for _, i := range src.Images {
		t.Images = append(t.Images, snapshot.TemplateImage{Ref: i.Ref, Digest: i.Digest, Path: i.DiskPath})
	}
	t.Prepare = func(ctx context.Context, client *guest.Client) error {
		opts, err := s.recipeOptions(ctx, src.Images, spec.GuestOS == vm.GuestMacOS)
		if err != nil {
			return err
		}
		return recipe.Run(ctx, client, src.Template.Recipe, opts)
	}
	spec.Template = t
	return spec
}

// recipeOptions are how commands run in the first of a machine's images, or with host in
// the machine's own system.
func (s storeMaker) recipeOptions(ctx context.Context, images []SlotImage, host bool) (recipe.Options, error) {
	opts := recipe.Options{Nameservers: s.opts.Nameservers}
	if host {
		opts.Host = true // it has no configuration of an image either
		return opts, nil
	}
	if len(images) == 0 {
		return opts, fmt.Errorf("%w: a template without an image", vm.ErrInvalidConfig)
	}
	if s.opts.Image == nil {
		return opts, nil
	}
	var err error
	if opts.Image, err = s.opts.Image(ctx, images[0].Digest); err != nil {
		return opts, fmt.Errorf("read configuration of image %q: %w", images[0].Ref, err)
	}
	return opts, nil
}

// Ensure is part of Snapshots.
func (s storeMaker) Ensure(ctx context.Context, src Source) (Snapshot, bool, error) {
	ref, built, err := s.store.Ensure(ctx, s.spec(src))
	if err != nil {
		return nil, built, err
	}
	return ref, built, nil
}

// Find is part of Snapshots.
func (s storeMaker) Find(ctx context.Context, t Template) ([][]SlotImage, error) {
	manifests, err := s.store.FindTemplate(ctx, t.Namespace, t.Name, t.Revision)
	if err != nil {
		return nil, err
	}
	var found [][]SlotImage
	for _, m := range manifests {
		var images []SlotImage
		for _, i := range m.Template.Images {
			images = append(images, SlotImage{Ref: i.Ref, Digest: i.Digest})
		}
		found = append(found, images)
	}
	return found, nil
}

// Origin is part of Snapshots.
func (s storeMaker) Origin(machine string) (proven, known bool) {
	ref, known := s.store.Reference(machine)
	// One that cannot be read keeps its snapshot; it does not tell that the machine was never
	// proven.
	return ref.Proven, known && (ref.Proven || ref.Instance != "")
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
	return fromStore(s.store.Restore(ctx, ref, id, cfg, restoreOptions(opts)))
}

// Boot is part of Maker.
func (s storeMaker) Boot(ctx context.Context, src Source, id string, cfg vm.Config, opts MakeOptions) (*Running, error) {
	return fromStore(s.store.Boot(ctx, id, s.spec(src), cfg, restoreOptions(opts)))
}

func restoreOptions(opts MakeOptions) snapshot.RestoreOptions {
	return snapshot.RestoreOptions{
		Hostname: opts.Hostname,
		Phase: func(p snapshot.Phase) {
			if opts.Stage == nil {
				return
			}
			switch p {
			case snapshot.PhaseRestore, snapshot.PhaseBoot:
				opts.Stage(StageRestore)
			default:
				opts.Stage(StageProbe)
			}
		},
	}
}

// fromStore is a machine of the store in the supply's words.
func fromStore(r *snapshot.Running, err error) (*Running, error) {
	if err != nil {
		return nil, err
	}
	return &Running{
		Machine: r.Machine, Conn: guestConn{r.Guest},
		Restore: r.Timings.Restore, Probe: r.Timings.Agent + r.Timings.Prepare,
	}, nil
}

// Refresh is part of Maker.
func (s storeMaker) Refresh(ctx context.Context, m vm.Machine, conn Conn, hostname string) error {
	return s.store.Refresh(ctx, m, conn.Client(), hostname)
}

// Rehearse is part of Maker.
func (s storeMaker) Rehearse(ctx context.Context, _ vm.Machine, conn Conn, images []SlotImage) error {
	host := len(images) == 1 && images[0].MacOS != nil
	opts, err := s.recipeOptions(ctx, images, host)
	if err != nil {
		return err
	}
	return recipe.Rehearse(ctx, conn.Client(), opts, true)
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

// Pause is part of Conn.
func (c guestConn) Pause(paused bool) { c.client.Pause(paused) }

// Err is part of Conn.
func (c guestConn) Err() error { return c.client.Err() }

// Close is part of Conn.
func (c guestConn) Close() error { return c.client.Close() }

// PowerOff is part of Conn.
func (c guestConn) PowerOff(ctx context.Context) error {
	_, err := c.client.Agent.PowerOff(ctx, connect.NewRequest(&agentv1.PowerOffRequest{}))
	return err
}
