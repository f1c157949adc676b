// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/garbage"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

const (
	// garbageEvery is how often what nobody needs is collected, and garbageLook how often it
	// is looked at for the metrics; both somewhat later each time, so that the nodes of a
	// fleet that were started together do not stay in step.
	garbageEvery  = time.Hour
	garbageLook   = 10 * time.Minute
	garbageJitter = 0.2
)

// makeGarbage makes the node's collector.
func (n *node) makeGarbage(context.Context) error {
	for _, kind := range garbage.Kinds() { // a scrape shows what has not happened yet as 0
		n.metrics.Reclaimable(string(kind), 0)
		n.metrics.Collected(string(kind), 0, 0)
	}
	n.garbage = garbage.New(garbage.Config{StateDir: n.StateDir, Snapshots: n.snapshots, Images: n.images, Live: liveNode{n}})
	return nil
}

// liveNode tells a collector what the node knows.
type liveNode struct{ n *node }

var _ garbage.Live = liveNode{}

// Wanted is part of garbage.Live.
func (l liveNode) Wanted() ([]string, bool) { return l.n.keptSnapshots(), l.n.ledger.Listed() }

// Machines is part of garbage.Live.
func (l liveNode) Machines() []string {
	var ids []string
	for _, e := range l.n.supply.Status().Account.Machines {
		ids = append(ids, e.Machine)
	}
	return ids
}

// Discard is part of garbage.Live.
func (l liveNode) Discard(ctx context.Context, machine string) error {
	return l.n.supply.Discard(ctx, machine)
}

// collectGarbage removes what nobody needs, until ctx ends. No error ends it. What
// is done when the disk is short, is in node_relief.go.
func (n *node) collectGarbage(ctx context.Context) {
	look := time.NewTimer(0)
	defer look.Stop()
	collectAt := time.Now().Add(wait.Jitter(garbageEvery, garbageJitter))
	for {
		opts := garbage.Options{Grace: n.GCGrace, DryRun: true}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			look.Reset(wait.Jitter(garbageLook, garbageJitter))
			if !time.Now().Before(collectAt) {
				collectAt = time.Now().Add(wait.Jitter(garbageEvery, garbageJitter))
				opts.DryRun = false
			}
		}
		if _, err := n.collect(ctx, opts); err != nil && ctx.Err() == nil {
			n.logger.Error("Could not collect all that nobody needs", "error", err)
		}
	}
}

// collect collects once and tells the metrics.
func (n *node) collect(ctx context.Context, opts garbage.Options) (garbage.Report, error) {
	report, err := n.garbage.Collect(ctx, opts)
	if ctx.Err() != nil {
		return report, err
	}
	for kind, r := range report.Reclaimable() {
		n.metrics.Reclaimable(string(kind), r.Bytes)
	}
	if opts.DryRun {
		return report, err
	}
	var bytes int64
	for kind, r := range report.Removed() {
		n.metrics.Collected(string(kind), r.Count, r.Bytes)
		bytes += r.Bytes
	}
	n.metrics.CollectionEnded(time.Now(), err)
	if bytes > 0 {
		n.logger.Info("Collected what nobody needs", "bytes", bytes)
	}
	return report, err
}

// scrubIdle is how long it is at most until new snapshots are looked for.
const scrubIdle = time.Hour

// scrubSnapshots reads snapshots in the background until ctx ends, and has those built
// anew that are not what was saved. No error ends it.
func (n *node) scrubSnapshots(ctx context.Context) {
	if n.ScrubEvery <= 0 {
		return
	}
	opts := snapshot.ScrubOptions{Every: n.ScrubEvery, BytesPerSecond: n.scrubRate, Busy: n.startsPods}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		var anew []vm.Shape
		next, err := n.snapshots.Scrub(ctx, opts, func(r snapshot.Scrubbed) {
			n.metrics.SnapshotScrubbed(r.Bytes, r.Err != nil)
			if r.Err != nil && r.Kind == snapshot.KindBase && slices.Contains(n.ladder, r.Shape) {
				anew = append(anew, r.Shape)
			}
		})
		if err != nil && ctx.Err() == nil {
			n.logger.Error("Could not read all snapshots", "error", err)
		}
		// Those of templates are built anew by the supply, which was told by an event.
		for _, shape := range anew {
			if err := n.supply.Prepare(ctx, []vm.Shape{shape}); err != nil && ctx.Err() == nil {
				n.logger.Error("Cannot build base snapshot anew", "shape", shape.String(), "error", err)
			}
		}
		pause := min(scrubIdle, n.ScrubEvery)
		if !next.IsZero() {
			pause = min(pause, time.Until(next))
		}
		timer.Reset(max(pause, time.Second)) // no busy loop, whatever the clock says
	}
}

// startsPods tells whether a machine is on its way, to a pod or to a pool.
func (n *node) startsPods() bool {
	return slices.ContainsFunc(n.supply.Status().Account.Machines, func(e warmpool.Entry) bool {
		return e.State == warmpool.StateReserved || e.State == warmpool.StateRestoring || e.State == warmpool.StateProbing
	})
}
