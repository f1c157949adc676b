// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// scrubName is what the store remembers of its scrubs.
const scrubName = ".scrub.json"

// scrubFormat of .scrub.json.
var scrubFormat = durable.NewFormat(durable.FormatOptions[scrubRecord]{
	Kind: "scrub", Version: 1,
	Check: func(r *scrubRecord) error {
		if r.Members < 0 || r.Members > maxMembers {
			return fmt.Errorf("%d files", r.Members)
		}
		return nil
	},
})

// ScrubOptions say how sets are looked after.
type ScrubOptions struct {
	// Every is how long ago a set's files must have been read in full, at its publication,
	// before its first use in a process or by a scrub, to be read again.
	Every time.Duration
	// BytesPerSecond that are read at most. 0 is no limit.
	BytesPerSecond int64
	// Busy tells that there is something better to do; it is asked between reads. nil is
	// never.
	Busy func() bool
}

// Scrubbed is what was found out about one set.
type Scrubbed struct {
	Key   string
	Kind  Kind     // empty when the manifest could not be read
	Shape vm.Shape // zero when the manifest could not be read
	// Bytes that were read; holes are not.
	Bytes int64
	// Err is why the set was quarantined; nil: it is what was saved.
	Err error
}

// scrubRecord is .scrub.json.
type scrubRecord struct {
	durable.Header
	// Checked is when all files of an instance were last found whole.
	Checked map[string]time.Time `json:"checked,omitempty"`
	// Instance is being read, and the first Members of its files were found whole.
	Instance string `json:"instance,omitempty"`
	Members  int    `json:"members,omitempty"`
}

// Scrub reads the files of the published sets that are due, the longest unread first, at
// a low priority, and quarantines a set that is not what was saved: machines that were
// restored from it go on, and the next Ensure builds it anew. each, if not nil, is told of
// every set. What was read is remembered: a process that is ended goes on where it was,
// to the file. One set that cannot be read does not keep the others from being.
//
// It returns when the next set is due, zero when there is none. Errors: ErrReadOnly,
// ErrClosed, ctx.Err.
func (s *Store) Scrub(ctx context.Context, opts ScrubOptions, each func(Scrubbed)) (next time.Time, err error) {
	if err := s.writable(); err != nil {
		return time.Time{}, err
	}
	infos, err := s.List(ctx)
	if err != nil {
		return time.Time{}, err
	}
	// What another version made is whole for all that is known, and may be wanted again.
	infos = slices.DeleteFunc(infos, func(i Info) bool { return i.Status == StatusQuarantined || i.foreign })
	record := s.readScrub()
	s.mu.Lock()
	for instance, at := range s.verified {
		if at.After(record.Checked[instance]) {
			record.Checked[instance] = at
		}
	}
	s.mu.Unlock()
	record.forget(infos)
	due, next := chooseScrub(infos, record, opts.Every, s.opts.Now())
	var errs []error
	p := &pace{ctx: ctx, perSecond: opts.BytesPerSecond, busy: opts.Busy}
	for _, i := range due {
		p.read = 0
		damage, err := s.scrub(ctx, i, p, &record)
		if ctx.Err() != nil {
			return time.Time{}, errors.Join(errors.Join(errs...), ctx.Err())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("scrub snapshot %s: %w", shortKey(i.Key), err))
			continue
		}
		if again := s.opts.Now().Add(opts.Every); damage == nil && (next.IsZero() || again.Before(next)) {
			next = again
		}
		if each != nil {
			each(Scrubbed{Key: i.Key, Kind: i.Manifest.Kind, Shape: i.Manifest.Shape, Bytes: p.read, Err: damage})
		}
	}
	return next, errors.Join(errs...)
}

// chooseScrub decides which sets are read now, the longest unread first, the one that was
// begun before all; and when the next of the others is due, zero for never. Pure.
func chooseScrub(infos []Info, r scrubRecord, every time.Duration, now time.Time) (due []Info, next time.Time) {
	last := func(i Info) time.Time {
		if at := r.Checked[i.Manifest.Instance]; at.After(i.Manifest.Created) {
			return at
		}
		return i.Manifest.Created // its files were read when it was published
	}
	for _, i := range infos {
		// A clock that was set back must not keep a set from being read for longer than
		// it should.
		at := last(i)
		if at.After(now) {
			at = time.Time{}
		}
		if i.Status == StatusDamaged || now.Sub(at) >= every || r.Members > 0 && r.Instance == i.Manifest.Instance {
			due = append(due, i)
		} else if again := at.Add(every); next.IsZero() || again.Before(next) {
			next = again
		}
	}
	slices.SortStableFunc(due, func(a, b Info) int {
		begun := func(i Info) int {
			if r.Members > 0 && i.Manifest.Instance == r.Instance {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(begun(a), begun(b)), last(a).Compare(last(b)), cmp.Compare(a.Key, b.Key))
	})
	return due, next
}

// scrub reads one set. damage is why it was quarantined; err is what has nothing to do
// with the set.
func (s *Store) scrub(ctx context.Context, i Info, p *pace, record *scrubRecord) (damage, err error) {
	damage = s.readSet(i, p, record)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case damage == nil:
		now := s.opts.Now().UTC()
		record.Checked[i.Manifest.Instance] = now
		s.mu.Lock()
		s.verified[i.Manifest.Instance] = now // its first use need not read it again
		s.mu.Unlock()
		record.Instance, record.Members = "", 0
		return nil, s.writeScrub(*record)
	case !errors.Is(damage, vm.ErrSnapshotInvalid) && !errors.Is(damage, syscall.EIO):
		return nil, damage // about the host: too many open files, for example
	}
	if record.Instance == i.Manifest.Instance {
		record.Instance, record.Members = "", 0
	}
	aside, err := s.putAside(ctx, i, damage)
	if err != nil || !aside {
		return nil, err
	}
	return damage, nil
}

// readSet reads the files of a set that were not read yet and compares them with its
// manifest.
func (s *Store) readSet(i Info, p *pace, record *scrubRecord) error {
	m, err := readManifest(i.dir)
	if err != nil {
		return err
	}
	if err := checkSizes(i.dir, m); err != nil {
		return err
	}
	if record.Instance != m.Instance || record.Members > len(m.Members) {
		record.Instance, record.Members = m.Instance, 0
	}
	for n := record.Members; n < len(m.Members); n++ {
		f := m.Members[n]
		size, sum, err := digestPaced(memberPath(i.dir, f), f.Sparse, p)
		if isNotExist(err) {
			return &IntegrityError{Key: m.Key, Member: f.Name, Problem: "is missing"}
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", f.Name, err)
		}
		if err := f.check(m.Key, size, sum); err != nil {
			return err
		}
		record.Members = n + 1
		if n+1 < len(m.Members) {
			if err := s.writeScrub(*record); err != nil {
				return err
			}
		}
	}
	return nil
}

// putAside quarantines a set that a scrub found damaged, unless another has its place
// meanwhile, or none: then there is nothing to do and it is false.
func (s *Store) putAside(ctx context.Context, i Info, damage error) (bool, error) {
	f, err := s.claim(ctx, i.Key)
	if err != nil {
		return false, err
	}
	defer s.land(i.Key, f, false, nil) // those who wait look again
	m, err := readManifest(i.dir)
	if err == nil && m.Instance != i.Manifest.Instance || err != nil && !errors.Is(err, vm.ErrSnapshotInvalid) {
		return false, err
	}
	about := i.Manifest.about(i.Key)
	err = s.moveToQuarantine(i.Key, i.Manifest.Instance, about, "scrub: "+damage.Error())
	if errors.Is(err, ErrNotFound) {
		return false, nil // collected meanwhile
	}
	return err == nil, err
}

// forget drops what the record has of sets that are gone.
func (r *scrubRecord) forget(infos []Info) {
	has := func(instance string) bool {
		return slices.ContainsFunc(infos, func(i Info) bool { return i.Manifest.Instance == instance })
	}
	for instance := range r.Checked {
		if !has(instance) {
			delete(r.Checked, instance)
		}
	}
	if r.Instance != "" && !has(r.Instance) {
		r.Instance, r.Members = "", 0
	}
}

// readScrub reads what earlier scrubs have done. Without it, and with one that cannot be
// understood, sets count as read when they were published: at worst they are read again.
func (s *Store) readScrub() scrubRecord {
	r, err := scrubFormat.Read(s.opts.FS, filepath.Join(s.dir, scrubName))
	if err != nil {
		if !isNotExist(err) {
			s.opts.Logger.Warn("Reading snapshots again: what was read last is not known", "error", err)
		}
		r = scrubRecord{}
	}
	if r.Checked == nil {
		r.Checked = map[string]time.Time{}
	}
	return r
}

// writeScrub keeps the record. It is not synced: what a crash of the host takes is read again.
func (s *Store) writeScrub(r scrubRecord) error {
	if err := scrubFormat.Write(s.opts.FS, filepath.Join(s.dir, scrubName), r, durable.Unsynced); err != nil {
		return fmt.Errorf("remember what was scrubbed: %w", err)
	}
	return nil
}
