// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package garbage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// FreeSnapshots removes snapshots that nobody needs and that were unused for the grace
// period, the longest unused first, until need bytes are free; when all are not enough, also
// what builds and removals have left. It tells how many are.
func (c *Collector) FreeSnapshots(ctx context.Context, need int64, grace time.Duration) (freed int64, err error) {
	done, err := c.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	plan, err := c.config.Snapshots.GC(ctx, c.snapshotOptions(grace, true))
	if err != nil {
		return 0, fmt.Errorf("look at snapshots: %w", err)
	}
	opts := c.snapshotOptions(grace, false)
	opts.Only = choose(freeableSnapshots(plan.Decisions), need)
	report, err := c.config.Snapshots.GC(ctx, opts)
	return report.RemovedBytes, err
}

// FreeImages removes images that nobody needs, the longest unused first, until need bytes
// are free; when all are not enough, also what pulls have left. None is too young: all can
// be pulled again, as the kubelet has it. The snapshots that were made with an image go
// before it, and keep it when they were used within the grace period. It tells how many
// bytes of images are free.
func (c *Collector) FreeImages(ctx context.Context, need int64, grace time.Duration) (freed int64, err error) {
	done, err := c.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	refs, err := readReferences(c.config.FS, c.config.StateDir)
	if err != nil {
		return 0, fmt.Errorf("images are left alone: %w", err)
	}
	snapshots, err := c.config.Snapshots.GC(ctx, c.snapshotOptions(grace, true))
	if err != nil {
		return 0, fmt.Errorf("look at snapshots: %w", err)
	}
	images, err := c.config.Images.GC(ctx, image.GCOptions{Keep: c.keptNow(ctx, refs, snapshots.Decisions), DryRun: true})
	if err != nil {
		return 0, fmt.Errorf("look at images: %w", err)
	}
	digests := choose(freeableImages(snapshots.Decisions, images.Decisions), need)
	opts := c.snapshotOptions(grace, false)
	opts.Only = madeWith(snapshots.Decisions, images.Decisions, digests)
	snapshots, serr := c.config.Snapshots.GC(ctx, opts)
	if serr != nil && len(snapshots.Decisions) == 0 {
		return 0, serr // which images the snapshots need is not known
	}
	report, err := c.config.Images.GC(ctx, image.GCOptions{Only: digests, Keep: c.keptNow(ctx, refs, snapshots.Decisions)})
	return report.RemovedBytes, errors.Join(serr, err)
}

// candidate is one of what may go.
type candidate struct {
	name  string
	bytes int64
	used  time.Time
}

// choose names, of what may go, the longest unused that have need bytes; nil, which is no
// choice, when all have less. Pure.
func choose(may []candidate, need int64) []string {
	may = slices.SortedFunc(slices.Values(may), func(a, b candidate) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.name, b.name))
	})
	names := []string{} // nil would be all
	for _, c := range may {
		if need <= 0 {
			return names
		}
		names, need = append(names, c.name), need-c.bytes
	}
	if need > 0 {
		return nil
	}
	return names
}

// freeableSnapshots are those that may go. Pure.
func freeableSnapshots(all []snapshot.Decision) (may []candidate) {
	for _, d := range all {
		if d.Remove {
			may = append(may, candidate{d.Info.Name, d.Info.AllocatedBytes, d.Info.LastUsed})
		}
	}
	return may
}

// freeableImages are those that may go. One that a snapshot was made with was last used when
// the snapshot was. Pure.
func freeableImages(snapshots []snapshot.Decision, all []image.Decision) (may []candidate) {
	used := map[string]time.Time{}
	for _, d := range snapshots {
		if t := d.Info.Manifest.Template; t != nil {
			for _, i := range t.Images {
				if d.Info.LastUsed.After(used[i.Digest]) {
					used[i.Digest] = d.Info.LastUsed
				}
			}
		}
	}
	for _, d := range all {
		if !d.Remove {
			continue
		}
		c := candidate{d.Info.Digest, d.Info.SizeBytes, d.Info.LastUsed}
		if at := used[c.name]; at.After(c.used) {
			c.used = at
		}
		may = append(may, c)
	}
	return may
}

// madeWith names the snapshots that may go and were made with one of the images that go;
// digests nil is all that may. Pure.
func madeWith(snapshots []snapshot.Decision, images []image.Decision, digests []string) []string {
	goes := map[string]bool{}
	for _, d := range images {
		goes[d.Info.Digest] = d.Remove && (digests == nil || slices.Contains(digests, d.Info.Digest))
	}
	names := []string{} // nil would be all
	for _, d := range snapshots {
		t := d.Info.Manifest.Template
		if d.Remove && t != nil && slices.ContainsFunc(t.Images, func(i snapshot.ManifestImage) bool { return goes[i.Digest] }) {
			names = append(names, d.Info.Name)
		}
	}
	return names
}
