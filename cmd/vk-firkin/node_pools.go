// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/nodeledger"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/network"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// openSupply makes the supply over the snapshots, with its pools and their images.
func (n *node) openSupply(capacity warmpool.Budget) (err error) {
	floor, pending := n.refillMinFreeDisk, n.MaxPending
	if floor == 0 {
		floor = -1 // the supply's own zeros are its defaults
	}
	if pending == 0 {
		pending = -1
	}
	n.supply, err = warmpool.New(warmpool.Options{
		Driver: n.driver, Store: warmpool.FromStore(n.snapshots, warmpool.StoreOptions{Image: n.imageConfig, Nameservers: []string{network.Nameserver}}), Images: supplyImages{n.pinned}, Kit: n.kit, Logger: n.log("warmpool"),
		Capacity: capacity, RecordsDir: filepath.Join(n.StateDir, "warm"), QuarantineDir: quarantineDir(n.StateDir), Observer: n.metrics,
		Refills: n.Refills, QueueLength: pending, QueueWait: n.PendingTimeout,
		RefillFloorBytes: floor, FreeBytes: func() (int64, error) {
			_, free, err := hostDisk(n.StateDir)
			return free, err
		},
	})
	if err != nil {
		return err
	}
	n.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		return n.supply.Shutdown(ctx)
	})
	return nil
}

// imageConfig tells how an image that is on the node runs its programs.
func (n *node) imageConfig(_ context.Context, digest string) (recipe.Image, error) {
	img, err := n.images.Pin(digest, configOwner)
	if err != nil {
		return recipe.Image{}, err
	}
	defer n.images.Unpin(digest, configOwner)
	return recipe.Image{Env: img.Config.Env, User: img.Config.User, WorkingDir: img.Config.WorkingDir}, nil
}

// configOwner keeps an image while it is looked at.
const configOwner = "reading-its-configuration"

// makeLedger connects the supply with the cluster: pools, templates, status.
func (n *node) makeLedger(context.Context) error {
	api, err := nodeledger.NewClient(n.config, n.client)
	if err != nil {
		return err
	}
	n.ledger, err = nodeledger.New(nodeledger.Options{
		API: api, NodeName: n.NodeName, Supply: n.supply, Limits: nodeledger.Limits{ImageSlots: n.driver.Features().ImageSlots, MacOSGuests: n.driver.Features().MacOSGuests}, Logger: n.log("nodeledger"),
	})
	return err
}

// keepPools takes over the warm machines of an earlier process and keeps the pools
// full. What it cannot do is said, and pods are run all the same.
func (n *node) keepPools(ctx context.Context) {
	began := time.Now()
	if err := n.supply.Start(ctx); err != nil {
		if ctx.Err() == nil {
			n.logger.Error("Warm machines of an earlier process may be left over", "error", err)
		}
		return
	}
	n.logger.Info("Keeping warm pools", "took", time.Since(began).Round(time.Millisecond))
}

// keptSnapshots are the keys of snapshots that stay whatever their age: those of the
// node's own shapes, and of the templates that targets name.
func (n *node) keptSnapshots() []string {
	var keep []string
	for _, shape := range n.ladder {
		keep = append(keep, n.baseKey(shape))
	}
	for _, t := range n.supply.Status().Templates {
		if t.Key != "" {
			keep = append(keep, t.Key)
		}
	}
	for _, t := range n.ledger.Targets() {
		if t.Template.GuestOS == vm.GuestMacOS {
			continue // it begins with a boot
		}
		keep = append(keep, n.baseKey(t.Template.Shape)) // what the next build begins with
	}
	return keep
}

func (n *node) baseKey(shape vm.Shape) string {
	return snapshot.Key(snapshot.Spec{Kind: snapshot.KindBase, Shape: shape, Kit: n.kit}, n.driver.Features())
}

// capacityOf is what the host has for machines.
func capacityOf(memory, disk int64, macOSGuests int) warmpool.Budget {
	return warmpool.Budget{MilliCPU: int64(runtime.NumCPU()) * 1000, MemoryBytes: memory, DiskBytes: disk, Slots: int64(macOSGuests)}
}

// supplyImages lets a supply use the node's images for templates and the machines of
// pools. Their owners are not pods' UIDs: a template's name or a machine's id.
type supplyImages struct{ images *nodeImages }

var _ warmpool.Images = supplyImages{}

// Resolve is part of warmpool.Images. Templates have no pull secrets: what they use
// must be readable by the node.
func (s supplyImages) Resolve(ctx context.Context, owner, ref string, os vm.GuestOS) (warmpool.SlotImage, error) {
	held, _, err := s.images.pull(ctx, provider.PullRequest{Ref: ref, Policy: provider.DefaultPullPolicy(ref), Owner: types.UID(owner)}, os == vm.GuestMacOS)
	if err != nil {
		return warmpool.SlotImage{}, fmt.Errorf("get image %q: %w", ref, err)
	}
	i := slotImage(held)
	i.Ref = ref
	return i, nil
}

// Pin is part of warmpool.Images.
func (s supplyImages) Pin(_ context.Context, owner, digest string) (warmpool.SlotImage, error) {
	held, err := s.images.hold(types.UID(owner), digest)
	if err != nil {
		return warmpool.SlotImage{}, err
	}
	return slotImage(held), nil
}

// slotImage is an image in the supply's words.
func slotImage(i *image.Image) warmpool.SlotImage {
	out := warmpool.SlotImage{Digest: i.Digest, DiskPath: i.DiskPath}
	if m := i.MacOS; m != nil {
		out.MacOS = &vm.MacOS{
			Digest: i.Digest, Disk: i.DiskPath, AuxiliaryStorage: m.AuxiliaryStorage,
			HardwareModel: m.HardwareModel, MachineIdentifier: m.MachineIdentifier,
		}
	}
	return out
}

// Release is part of warmpool.Images.
func (s supplyImages) Release(owner string) { s.images.Unpin(types.UID(owner)) }
