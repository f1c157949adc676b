// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// GCOptions choose what a collection removes.
type GCOptions struct {
	// Grace is how long a snapshot must have been unused. 0 is no time at all.
	Grace time.Duration
	// Keep are keys that somebody will want, whatever their age.
	Keep []string
	// KeepTemplates: so are all snapshots of templates. For a node that was not told yet
	// which templates it is to have.
	KeepTemplates bool
	// Only, when not nil, are the names of the snapshots that may go; nothing else does.
	Only []string
	// DryRun only tells.
	DryRun bool
}

// Decision is what a collection does with one snapshot.
type Decision struct {
	Info Info
	// Remove: it goes.
	Remove bool
	// Young: only its age keeps it.
	Young bool
	// Reason for people, in every case.
	Reason string
}

// GCReport is what a collection did, or would do.
type GCReport struct {
	Decisions []Decision
	// Leftovers are what builds and removals that failed have left, and that is gone now,
	// or would be.
	Leftovers []Leftover
	// RemovedBytes is what was, or would be, freed on disk.
	RemovedBytes int64
}

// Leftover is the directory of a build or a removal that did not come to its end.
type Leftover struct {
	Name  string
	Bytes int64
}

// GC removes snapshots that nothing refers to and that were unused for the grace
// period, whole sets only, quarantined ones too, and what failed builds and removals have
// left. One that cannot be removed does not keep the others: the errors are joined.
//
// Errors: ErrReadOnly unless DryRun, ErrClosed.
func (s *Store) GC(ctx context.Context, opts GCOptions) (GCReport, error) {
	if !opts.DryRun {
		if err := s.writable(); err != nil {
			return GCReport{}, err
		}
	}
	infos, err := s.List(ctx)
	if err != nil {
		return GCReport{}, err
	}
	var report GCReport
	var errs []error
	for _, info := range infos {
		d := decide(info, opts, s.opts.Now())
		if d.Remove && !opts.DryRun {
			if err := s.remove(ctx, info); err != nil {
				d.Remove, d.Reason = false, err.Error()
				if !errors.Is(err, ErrInUse) && !errors.Is(err, ErrNotFound) {
					errs = append(errs, err)
				}
			}
		}
		if d.Remove {
			report.RemovedBytes += info.AllocatedBytes
		}
		report.Decisions = append(report.Decisions, d)
	}
	if opts.Only == nil {
		report.Leftovers, err = s.sweep(ctx, opts)
		errs = append(errs, err)
		for _, l := range report.Leftovers {
			report.RemovedBytes += l.Bytes
		}
	}
	return report, errors.Join(errs...)
}

// sweep removes what builds and removals that failed have left; opening the store does
// the same, but a node may run for months.
func (s *Store) sweep(ctx context.Context, opts GCOptions) ([]Leftover, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("look for leftovers: %w", err)
	}
	var left []Leftover
	var errs []error
	for _, e := range entries {
		var age time.Duration
		if info, err := e.Info(); err == nil {
			age = s.opts.Now().Sub(info.ModTime())
		}
		building := strings.HasPrefix(e.Name(), buildingPrefix)
		if !building && !strings.HasPrefix(e.Name(), removingPrefix) || building && (s.isBuilding(e.Name()) || age < opts.Grace) {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		l := Leftover{Name: e.Name()}
		l.Bytes, _ = allocatedBytes(path)
		if !opts.DryRun {
			remove := func() error { return s.opts.fs.RemoveAll(path) }
			if building {
				remove = func() error { return s.removeBuilding(ctx, e.Name()) }
			}
			if err := remove(); err != nil {
				errs = append(errs, fmt.Errorf("remove leftover %s: %w", e.Name(), err))
				continue
			}
		}
		left = append(left, l)
	}
	return left, errors.Join(errs...)
}

// isBuilding tells whether a directory is that of a build under way.
func (s *Store) isBuilding(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.builders[builderIDPrefix+strings.TrimPrefix(name, buildingPrefix)]
}

// decide tells whether a collection removes a snapshot, and why. Pure.
func decide(i Info, opts GCOptions, now time.Time) Decision {
	unused := now.Sub(i.LastUsed)
	switch {
	case len(i.Machines) > 0:
		return Decision{Info: i, Reason: fmt.Sprintf("%d machines were restored from it", len(i.Machines))}
	case i.Pins > 0:
		return Decision{Info: i, Reason: "in use by this process"}
	case i.Status == StatusReady && slices.Contains(opts.Keep, i.Key):
		return Decision{Info: i, Reason: "wanted"}
	case i.Status == StatusReady && i.Manifest.Kind == KindTemplate && opts.KeepTemplates:
		return Decision{Info: i, Reason: "perhaps wanted: the node was not told its templates yet"}
	case opts.Only != nil && !slices.Contains(opts.Only, i.Name):
		return Decision{Info: i, Young: true, Reason: "not among those that are to go"}
	case unused < opts.Grace:
		return Decision{Info: i, Young: true, Reason: fmt.Sprintf("unused for %s, less than %s", unused.Round(time.Second), opts.Grace)}
	}
	return Decision{Info: i, Remove: true, Reason: fmt.Sprintf("unused for %s", unused.Round(time.Second))}
}

// Delete removes one snapshot, by a name as for Inspect.
//
// Errors: ErrInUse when a machine refers to it or this process uses it, ErrNotFound,
// ErrReadOnly, ErrClosed.
func (s *Store) Delete(ctx context.Context, name string) (Info, error) {
	if err := s.writable(); err != nil {
		return Info{}, err
	}
	info, err := s.Inspect(ctx, name)
	if err != nil {
		return Info{}, err
	}
	return info, s.remove(ctx, info)
}

// remove deletes a set that nothing uses: first under its name in one step, then
// its content, so that a crash leaves no half set.
func (s *Store) remove(ctx context.Context, info Info) error {
	f, err := s.claim(ctx, info.Key)
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	defer s.land(info.Key, f, false, nil)
	if err := s.unused(info); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	if info.Status != StatusQuarantined {
		s.drop(info.Key)
	}
	trash := filepath.Join(s.dir, removingPrefix+randomHex(16))
	if err := s.opts.fs.Rename(info.dir, trash); err != nil {
		if isNotExist(err) {
			err = ErrNotFound
		}
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	if info.Status != StatusQuarantined {
		// Only goes when empty, which is what is meant.
		_ = os.Remove(filepath.Join(s.dir, refsDir, info.Key))
	}
	removed := info.Manifest.about(info.Key)
	removed.Type, removed.Message = EventRemoved, fmt.Sprintf("Removed unused snapshot %s", shortKey(info.Name))
	s.emit(removed)
	if err := s.opts.fs.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	return nil
}

// unused checks pins and references again, now that nobody else changes the key.
func (s *Store) unused(info Info) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.sets[info.Key]; known != nil && known.pins > 0 && info.Status != StatusQuarantined {
		return fmt.Errorf("%w by this process", ErrInUse)
	}
	var machines []string
	for _, r := range s.refs {
		if r.holds(info.Key, info.Manifest.Instance) {
			machines = append(machines, r.Machine)
		}
	}
	if len(machines) > 0 {
		slices.Sort(machines)
		return fmt.Errorf("%w by machines %s: delete their pods first", ErrInUse, strings.Join(machines, ", "))
	}
	return nil
}
