// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package garbage finds what of a node's files nobody needs, and removes it.
//
// Each kind of thing has one pure decision: what is kept, and why. Snapshots and images
// are decided on in their stores, which know who uses them; what lies beside them is
// decided on here. Three rules hold for all kinds:
//
//   - By reference. What a machine, a pod, a record or a target speaks of stays. A record
//     refers to whatever it names, also one that cannot be read or that another version
//     wrote: references are looked for in its text.
//   - In whole sets. A snapshot goes with all its files or not at all, an image of a
//     template's snapshot not before the snapshot.
//   - With a grace period, which is counted from the last use.
//
// What could not be looked at is not gone: a kind whose references are not known is left
// alone, the others are collected all the same.
package garbage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// Kind of what is collected.
type Kind string

// The kinds, in the order in which they are collected: what goes first may be all that
// refers to what comes next.
const (
	// KindPod is the directory of a pod that has no record: what is left of its logs.
	KindPod Kind = "pod"
	// KindRecord is the record of a warm machine that does not exist.
	KindRecord Kind = "record"
	// KindMachine is the directory of a machine that nobody speaks of and in which no
	// process works: scratch disk, console, sockets.
	KindMachine  Kind = "machine"
	KindSnapshot Kind = "snapshot"
	KindImage    Kind = "image"
	// KindLeftover is what a write, a build, a pull or a removal that did not come to its
	// end has left.
	KindLeftover Kind = "leftover"
)

// Kinds are all of them.
func Kinds() []Kind {
	return []Kind{KindPod, KindRecord, KindMachine, KindSnapshot, KindImage, KindLeftover}
}

// Decision is what a collection does with one thing.
type Decision struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	// Bytes that it takes on disk.
	Bytes    int64     `json:"bytes"`
	LastUsed time.Time `json:"lastUsed,omitzero"`
	// Remove: it goes, or went.
	Remove bool `json:"remove"`
	// Young: nothing but its age keeps it.
	Young bool `json:"young,omitempty"`
	// Reason for people, in every case.
	Reason string `json:"reason"`
}

// Report is what a collection did, or would do.
type Report struct {
	// DryRun: nothing was removed.
	DryRun bool `json:"dryRun"`
	// Node: the running node did it, which knows what it uses.
	Node      bool       `json:"node"`
	Decisions []Decision `json:"decisions"`
	// Faults are what could not be looked at, or removed.
	Faults []string `json:"faults,omitempty"`
}

// Removed is what went, or would go, by kind.
func (r Report) Removed() map[Kind]Amount {
	return r.sum(func(d Decision) bool { return d.Remove })
}

// Reclaimable is what nothing but its age keeps, by kind: also what a dry run would have
// removed, or what could not be removed.
func (r Report) Reclaimable() map[Kind]Amount {
	return r.sum(func(d Decision) bool { return d.Young || d.Remove && r.DryRun })
}

// Amount of things.
type Amount struct {
	Count int
	Bytes int64
}

func (r Report) sum(of func(Decision) bool) map[Kind]Amount {
	sums := map[Kind]Amount{}
	for _, k := range Kinds() {
		sums[k] = Amount{}
	}
	for _, d := range r.Decisions {
		if of(d) {
			a := sums[d.Kind]
			sums[d.Kind] = Amount{a.Count + 1, a.Bytes + d.Bytes}
		}
	}
	return sums
}

// Options of one collection.
type Options struct {
	// DryRun only tells.
	DryRun bool `json:"dryRun"`
	// Grace is how long something must have been unused. 0 is no time at all.
	Grace time.Duration `json:"grace"`
}

// Live is what a running node knows beyond its files. Safe for concurrent use.
type Live interface {
	// Wanted are the keys of the snapshots that are to stay whatever their age, and whether
	// the node was told all templates that it is to have.
	Wanted() (keys []string, complete bool)
	// Machines are the machines that the node accounts for, also those in the making.
	Machines() []string
	// Discard deletes a machine that the node does not account for.
	Discard(ctx context.Context, machine string) error
}

// Config says whose files a collector looks after.
type Config struct {
	// StateDir is the state root.
	StateDir  string
	Snapshots *snapshot.Store
	Images    *image.Store
	// Live is the running node; nil: there is none, and what is on the disk is all.
	Live Live
	// FS is the disk with the state root. nil is durable.Host.
	FS durable.FS
	// Now; nil is time.Now.
	Now func() time.Time
}

// Collector collects. Safe for concurrent use; one collection at a time.
type Collector struct {
	config Config
	turn   chan struct{} // holds one while there is a collection
}

// New makes a collector.
func New(c Config) *Collector {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.FS == nil {
		c.FS = durable.Host
	}
	return &Collector{config: c, turn: make(chan struct{}, 1)}
}

// Collect removes what nobody needs, or only tells. The report says what was done also
// when there is an error: one fault does not keep the rest from being collected. The error
// joins all faults.
func (c *Collector) Collect(ctx context.Context, opts Options) (Report, error) {
	report := Report{DryRun: opts.DryRun, Node: c.config.Live != nil}
	done, err := c.begin(ctx)
	if err != nil {
		return report, err
	}
	defer done()
	var errs []error
	add := func(d []Decision, err error) {
		report.Decisions = append(report.Decisions, d...)
		if err != nil {
			errs = append(errs, err)
			report.Faults = append(report.Faults, err.Error())
		}
	}
	refs, err := readReferences(c.config.FS, c.config.StateDir)
	if err != nil {
		add(nil, fmt.Errorf("machines, records of machines and images are left alone: %w", err))
	}
	add(c.collectPods(opts))
	if err == nil {
		add(c.collectRecords(opts))
		add(c.collectMachines(ctx, opts, refs))
	}
	snapshots, images, serr := c.collectSets(ctx, opts, refs, err == nil)
	for _, d := range snapshots.Decisions {
		add([]Decision{{
			Kind: KindSnapshot, Name: snapshotName(d.Info), Bytes: d.Info.AllocatedBytes, LastUsed: d.Info.LastUsed,
			Remove: d.Remove, Young: d.Young, Reason: d.Reason,
		}}, nil)
	}
	for _, d := range images.Decisions {
		add([]Decision{{
			Kind: KindImage, Name: imageName(d.Info), Bytes: d.Info.SizeBytes, LastUsed: d.Info.LastUsed,
			Remove: d.Remove, Young: d.Young, Reason: d.Reason,
		}}, nil)
	}
	for _, l := range snapshots.Leftovers {
		add([]Decision{{Kind: KindLeftover, Name: l.Name, Bytes: l.Bytes, Remove: true, Reason: "a build or a removal of a snapshot did not come to its end"}}, nil)
	}
	for _, l := range images.Leftovers {
		add([]Decision{{Kind: KindLeftover, Name: l.Name, Bytes: l.Bytes, Remove: true, Reason: "a pull or a removal of an image did not come to its end"}}, nil)
	}
	add(nil, serr)
	return report, errors.Join(errs...)
}

// begin waits for the caller's turn, which lasts until done.
func (c *Collector) begin(ctx context.Context) (done func(), err error) {
	select {
	case c.turn <- struct{}{}:
		return func() { <-c.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// collectSets collects snapshots and images. Without known references images are left
// alone.
func (c *Collector) collectSets(ctx context.Context, opts Options, refs references, known bool) (snapshots snapshot.GCReport, images image.GCReport, err error) {
	snapshots, err = c.config.Snapshots.GC(ctx, c.snapshotOptions(opts.Grace, opts.DryRun))
	if !known || err != nil && len(snapshots.Decisions) == 0 {
		return snapshots, images, err // which images the snapshots need is not known
	}
	images, ierr := c.config.Images.GC(ctx, image.GCOptions{Grace: opts.Grace, Keep: c.keptNow(ctx, refs, snapshots.Decisions), DryRun: opts.DryRun})
	return snapshots, images, errors.Join(err, ierr)
}

func (c *Collector) snapshotOptions(grace time.Duration, dryRun bool) snapshot.GCOptions {
	opts := snapshot.GCOptions{Grace: grace, DryRun: dryRun}
	if c.config.Live != nil { // without a node there is nobody who wants a template's
		opts.Wanted = func() snapshot.Wanted {
			keys, complete := c.config.Live.Wanted()
			return snapshot.Wanted{Keys: keys, Templates: !complete}
		}
	}
	return opts
}

// keptNow is keptImages of what is known, and when it is asked again, of what is there by
// then as well: a pod that came, a snapshot that was built.
func (c *Collector) keptNow(ctx context.Context, refs references, snapshots []snapshot.Decision) func() (map[string]string, error) {
	kept, asked := keptImages(refs, snapshots), false
	return func() (map[string]string, error) {
		if !asked {
			asked = true
			return kept, nil
		}
		refs, err := readReferences(c.config.FS, c.config.StateDir)
		if err != nil {
			return nil, err
		}
		infos, err := c.config.Snapshots.List(ctx)
		if err != nil {
			return nil, err
		}
		now := maps.Clone(kept)
		// None of these is about to go: what was to go is gone.
		var there []snapshot.Decision
		for _, i := range infos {
			there = append(there, snapshot.Decision{Info: i})
		}
		maps.Copy(now, keptImages(refs, there))
		return now, nil
	}
}

// keptImages are the images that somebody needs who has not pinned them, and why: those
// that records speak of, and those of templates' snapshots that stay. Pure.
func keptImages(refs references, snapshots []snapshot.Decision) map[string]string {
	keep := map[string]string{}
	for digest, who := range refs.digests {
		keep["sha256:"+digest] = who
	}
	for _, d := range snapshots {
		if d.Remove || d.Info.Status != snapshot.StatusReady || d.Info.Manifest.Template == nil {
			continue
		}
		for _, i := range d.Info.Manifest.Template.Images {
			keep[i.Digest] = "the snapshot of template " + d.Info.Manifest.Template.ID() + " was made with it"
		}
	}
	return keep
}

// snapshotName is what people find a snapshot by.
func snapshotName(i snapshot.Info) string {
	name := i.Name
	if i.Status != snapshot.StatusQuarantined {
		name = name[:min(12, len(name))] // as `vk-firkin snapshot ls` has it
	}
	switch m := i.Manifest; {
	case m.Template != nil:
		name += " (template " + m.Template.ID() + ")"
	case m.Kind != "":
		name += " (" + string(m.Kind) + " " + m.Shape.String() + ")"
	}
	return name
}

func imageName(i image.Info) string {
	if len(i.Refs) > 0 {
		return i.Refs[0] + "@" + i.Digest
	}
	return i.Digest
}
