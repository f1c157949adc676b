// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// GCOptions choose what a collection removes.
type GCOptions struct {
	// Grace is how long a snapshot must have been unused. 0 is no time at all.
	Grace time.Duration
	// Wanted is what stays whatever its age. It is asked at first, and again before anything
	// is removed. nil: nothing.
	Wanted func() Wanted
	// Only, when not nil, are the names of the snapshots that may go; nothing else does.
	Only []string
	// DryRun only tells.
	DryRun bool
}

// Wanted are the snapshots that somebody will want.
type Wanted struct {
	// Keys of them.
	Keys []string
	// Templates: all snapshots of templates are. For a node that was not told yet which
	// templates it is to have.
	Templates bool
}

func (o GCOptions) wanted() Wanted {
	if o.Wanted == nil {
		return Wanted{}
	}
	return o.Wanted()
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
	wanted := opts.wanted()
	for _, info := range infos {
		d := decide(info, opts, wanted, s.opts.Now())
		if d.Remove && !opts.DryRun {
			err := s.remove(ctx, info, func(now Info) bool {
				d = decide(now, opts, opts.wanted(), s.opts.Now())
				return d.Remove
			})
			switch {
			case err == nil || !d.Remove: // it was used, or wanted, since it was listed
			default:
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
	entries, err := s.opts.FS.ReadDir(s.dir)
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
		if building && errors.Is(s.builderIsGone(ctx, e.Name()), errBuilderMayExist) {
			continue
		}
		if !opts.DryRun {
			remove := func() error { return s.opts.FS.RemoveAll(path) }
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
func decide(i Info, opts GCOptions, wanted Wanted, now time.Time) Decision {
	unused := now.Sub(i.LastUsed)
	switch {
	case len(i.Machines) > 0:
		return Decision{Info: i, Reason: fmt.Sprintf("%d machines were restored from it", len(i.Machines))}
	case i.Pins > 0:
		return Decision{Info: i, Reason: "in use by this process"}
	case i.Status == StatusReady && slices.Contains(wanted.Keys, i.Key):
		return Decision{Info: i, Reason: "wanted"}
	case i.Status == StatusReady && i.Manifest.Kind == KindTemplate && wanted.Templates:
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
	return info, s.remove(ctx, info, nil)
}

// remove deletes a set that nothing uses, if may, when not nil, says so of what the set is
// now: first under its name in one step, then its content, so that a crash leaves no half
// set.
func (s *Store) remove(ctx context.Context, info Info, may func(Info) bool) error {
	if info.Status != StatusQuarantined { // one of those has a name of its own, and its key may be built anew for long
		f, err := s.claim(ctx, info.Key)
		if err != nil {
			return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
		}
		defer s.land(info.Key, f, false, nil)
	}
	// It was listed some time ago, and whoever changed the key meanwhile was waited for.
	now, err := s.again(info)
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	if may != nil && !may(now) {
		return fmt.Errorf("remove snapshot %s: %w meanwhile", shortKey(info.Name), ErrInUse)
	}
	if err := s.unused(now); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	trash := filepath.Join(s.dir, removingPrefix+randomHex(16))
	if err := s.opts.FS.Rename(info.dir, trash); err != nil {
		if isNotExist(err) {
			err = ErrNotFound
		}
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	var errs []error
	if info.Status != StatusQuarantined {
		s.drop(info.Key)
		errs = append(errs, s.removeReferenceDir(info.Key))
	}
	removed := info.Manifest.about(info.Key)
	removed.Type, removed.Message = EventRemoved, fmt.Sprintf("Removed unused snapshot %s", shortKey(info.Name))
	s.emit(removed)
	// Not before it has lost its name for good: half of it must not come back under it.
	for _, dir := range []string{filepath.Dir(info.dir), s.dir} {
		errs = append(errs, s.opts.FS.SyncDir(dir))
	}
	if err = errors.Join(errs...); err == nil {
		err = s.opts.FS.RemoveAll(trash)
	}
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", shortKey(info.Name), err)
	}
	return nil
}

// again is what is known of a set now. The error is ErrNotFound when it is gone, ErrInUse
// when another has its place.
func (s *Store) again(info Info) (Info, error) {
	if _, err := s.opts.FS.Lstat(info.dir); isNotExist(err) {
		return Info{}, ErrNotFound
	} else if err != nil {
		return Info{}, err
	}
	refs, err := s.references()
	if err != nil {
		return Info{}, err
	}
	if info.Status == StatusQuarantined {
		return s.describeQuarantined(info.Name, refs), nil
	}
	now := s.describe(info.Key, refs)
	if now.Manifest.Instance != info.Manifest.Instance {
		return Info{}, fmt.Errorf("%w: it was built anew meanwhile", ErrInUse)
	}
	return now, nil
}

// unused checks pins and references again, now that nobody else changes the key.
func (s *Store) unused(info Info) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pinned(info.Key, info.Manifest.Instance) > 0 {
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
