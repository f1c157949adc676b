// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// patience is for a template to be built or an entry to be restored.
const patience = 3 * time.Minute

// node is the node's side of a warm pool: everything below the provider.
type node struct {
	supply *warmpool.Supply
	asked  int
	closes []func() error
}

// newNode makes it in a folder of its own, not the temp directory: real snapshots are on
// a disk.
func newNode(ctx context.Context, kitDir string) (n *node, err error) {
	n = &node{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	k, err := kit.Load(kitDir)
	if err != nil {
		return n, err
	}
	dir, err := os.MkdirTemp(".", ".bench-")
	if err != nil {
		return n, err
	}
	n.onClose(func() error { return os.RemoveAll(dir) })
	if dir, err = filepath.Abs(dir); err != nil {
		return n, err
	}
	driver, err := qemu.Open(ctx, qemu.Options{StateDir: filepath.Join(dir, "s"), Arch: k.Arch, Kit: k})
	if err != nil {
		return n, err
	}
	n.onClose(driver.Close)
	store, err := snapshot.Open(ctx, filepath.Join(dir, "snapshots"), snapshot.Options{Driver: driver, MinFreeBytes: -1})
	if err != nil {
		return n, err
	}
	n.onClose(store.Close)
	disk, err := n.image(ctx, dir, driver.Features())
	if err != nil {
		return n, err
	}
	n.supply, err = warmpool.New(warmpool.Options{
		Driver: driver, Store: warmpool.FromStore(store, warmpool.StoreOptions{}), Images: disk, Kit: k,
		Capacity: warmpool.Budget{MilliCPU: 64000, MemoryBytes: 8 << 30}, RecordsDir: filepath.Join(dir, "warm"),
	})
	if err != nil {
		return n, err
	}
	n.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return errors.Join(n.supply.Drain(ctx), n.supply.Shutdown(ctx))
	})
	return n, n.supply.Start(ctx)
}

func (n *node) onClose(f func() error) { n.closes = append(n.closes, f) }

// close undoes what was made, the last first.
func (n *node) close() error {
	var errs []error
	for i := len(n.closes) - 1; i >= 0; i-- {
		errs = append(errs, n.closes[i]())
	}
	n.closes = nil
	return errors.Join(errs...)
}

// one is the one image that there is.
type one warmpool.SlotImage

// Resolve, Pin and Release are of warmpool.Images.
func (o one) Resolve(context.Context, string, string, vm.GuestOS) (warmpool.SlotImage, error) {
	return warmpool.SlotImage(o), nil
}
func (o one) Pin(context.Context, string, string) (warmpool.SlotImage, error) {
	return warmpool.SlotImage(o), nil
}
func (o one) Release(string) {}

func (n *node) image(ctx context.Context, dir string, f vm.Features) (one, error) {
	busybox, err := images.Busybox(ctx, filepath.Join(dir, "cache"))
	if err != nil {
		return one{}, err
	}
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		return one{}, err
	}
	n.onClose(registry.Close)
	ref, err := registry.Push("busybox:1", busybox)
	if err != nil {
		return one{}, err
	}
	store, err := image.Open(filepath.Join(dir, "images"), image.Options{SlotBytes: f.SlotBytes, Arch: f.Arch, InsecureRegistries: []string{registry.Addr()}, MinFreeBytes: 1})
	if err != nil {
		return one{}, err
	}
	n.onClose(store.Close)
	img, err := store.Pull(ctx, ref, image.PullOptions{Policy: image.PullIfNotPresent})
	if err != nil {
		return one{}, err
	}
	return one{Ref: ref, Digest: img.Digest, DiskPath: img.DiskPath}, nil
}

func template(name string) warmpool.Template {
	return warmpool.Template{
		Namespace: "bench", Name: name, Revision: "1", Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, Images: []string{"busybox"},
		Recipe: recipe.Recipe{Setup: []recipe.Command{{Args: []string{"/bin/sh", "-c", "echo " + name + " > /prepared"}}}},
	}
}

// The pools: the measured one, and the one that is filled beside it.
const (
	measured = "bench/measured"
	other    = "bench/other"
)

func (n *node) target(others int) {
	n.supply.SetTargets([]warmpool.Target{
		{Pool: measured, Template: template("measured"), Desired: 2, Priority: 1, MaxSurge: 1},
		{Pool: other, Template: template("other"), Desired: others, MaxSurge: 1},
	})
}

func (n *node) pool(name string) warmpool.PoolStatus {
	for _, p := range n.supply.Status().Pools {
		if p.Pool == name {
			return p
		}
	}
	return warmpool.PoolStatus{}
}

// until waits for a state of the pools.
func (n *node) until(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %+v", what, ctx.Err(), n.supply.Status())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// fill builds both templates and fills the measured pool.
func (n *node) fill(ctx context.Context) error {
	n.target(1)
	if err := n.until(ctx, "fill the pools", func() bool { return n.pool(measured).Ready == 2 && n.pool(other).Ready == 1 }); err != nil {
		return err
	}
	n.target(0)
	return n.until(ctx, "empty the other pool", func() bool { return n.pool(other).Ready == 0 && len(n.supply.Ledger().Machines) == 2 })
}

// checkouts measures some checkouts, each from a full pool, while something else happens
// from before each until after it.
func (n *node) checkouts(ctx context.Context, k kind, count int) ([]time.Duration, error) {
	refill := k == kindRefill
	var all []time.Duration
	for len(all) < count {
		n.target(0)
		if err := n.until(ctx, "a quiet node", func() bool {
			m := n.pool(measured)
			return m.Ready == 2 && m.Restoring == 0 && len(n.supply.Ledger().Machines) == 2
		}); err != nil {
			return nil, err
		}
		if refill {
			n.target(1)
			// Not always at the same point of it.
			if err := n.until(ctx, "a refill", func() bool { return n.pool(other).Restoring > 0 }); err != nil {
				return nil, err
			}
			time.Sleep(time.Duration(len(all)) * 100 * time.Millisecond) //nolint:forbidigo // into the refill, by chance
		}
		end := func() {}
		if k == kindCompute {
			var err error
			if end, err = computing(ctx); err != nil {
				return nil, err
			}
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // until it does; nothing tells
		}
		took, err := n.checkout(ctx)
		end()
		if err != nil {
			return nil, err
		}
		if refill && n.pool(other).Restoring == 0 {
			continue // it was over: this one does not count
		}
		all = append(all, took)
	}
	return all, nil
}

func (n *node) checkout(ctx context.Context) (time.Duration, error) {
	n.asked++
	t := template("measured")
	began := time.Now()
	lease, err := n.supply.Acquire(ctx, warmpool.Request{MachineID: fmt.Sprintf("pod-%d", n.asked), PodUID: "bench", Shape: t.Shape, Template: &t, Refs: t.Images})
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	if lease.Path() != warmpool.PathWarm {
		err = fmt.Errorf("it came by %s", lease.Path())
	}
	return took, errors.Join(err, lease.Release(ctx, 0))
}
