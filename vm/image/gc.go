// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Pin keeps an image from garbage collection on behalf of an owner, until Unpin
// with the same owner or the Release of the returned image. An owner's pin counts
// once however often it is taken. Pins do not outlive the process: owners that
// persist, take them again after a restart. ErrNotFound: the image is not here.
func (s *Store) Pin(digest, owner string) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("pin image %s: %w", digest, ErrClosed)
	}
	if !validDigest(digest) {
		return nil, fmt.Errorf("pin image %.128q: %w: want sha256 and 64 hex digits", digest, ErrInvalidReference)
	}
	e, err := s.hold(digest)
	if errors.Is(err, errAbsent) {
		return nil, fmt.Errorf("pin image %s: %w", digest, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pin image %s: %w", digest, err)
	}
	if e.owners == nil {
		e.owners = map[string]struct{}{}
	}
	e.owners[owner] = struct{}{}
	l := &lease{digest: digest, record: e.record, path: e.path, give: func() { s.Unpin(digest, owner) }}
	return s.image(l, nil), nil
}

// Unpin gives up an owner's pin. It is idempotent.
func (s *Store) Unpin(digest, owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.images[digest]; ok {
		delete(e.owners, owner)
		s.letGo(e)
	}
}

// Info describes a cached image.
type Info struct {
	Digest string
	// ID is the digest of the configuration.
	ID string
	// Refs are the references that were last resolved to this image, sorted.
	Refs      []string
	SizeBytes int64
	Created   time.Time
	LastUsed  time.Time
	// Pinned by this process.
	Pinned bool
}

// List returns the images of this architecture, by digest.
func (s *Store) List() ([]Info, error) {
	refs, _, err := s.refs()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	byDigest := map[string][]string{}
	for _, r := range refs {
		byDigest[r.Digest] = append(byDigest[r.Digest], displayName(r.Ref))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Info, 0, len(s.images))
	for _, e := range s.images {
		names := byDigest[e.Digest]
		slices.Sort(names)
		out = append(out, Info{
			Digest: e.Digest, ID: e.ConfigDigest, Refs: names, SizeBytes: e.SizeBytes,
			Created: e.Created, LastUsed: e.lastUsed, Pinned: e.pinned(),
		})
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Digest, b.Digest) })
	return out, nil
}

// GCOptions choose what a collection removes.
type GCOptions struct {
	// Grace is how long nobody must have pulled or pinned an image. 0 is no time at all.
	Grace time.Duration
	// Keep are digests that somebody needs who has not pinned them, and who that is. It is
	// asked at first, and again before anything is removed. nil: nobody.
	Keep func() (map[string]string, error)
	// Only, when not nil, are the digests of the images that may go; nothing else does.
	Only []string
	// DryRun only tells.
	DryRun bool
}

// Decision is what a collection does with one image.
type Decision struct {
	Info Info
	// Remove: it goes.
	Remove bool
	// Young: only its age keeps it.
	Young bool
	// Reason for people, in every case.
	Reason string
}

// Leftover is what a pull or a removal that did not come to its end has left.
type Leftover struct {
	Name  string
	Bytes int64
}

// GCReport is what a collection did, or would do.
type GCReport struct {
	// Decisions, the longest unused first.
	Decisions []Decision
	Leftovers []Leftover
	// RemovedBytes is what was, or would be, freed on disk.
	RemovedBytes int64
}

// GC removes whole images that nobody has pinned and that were unused for the grace
// period, references to images that are gone, and what pulls and removals that failed have
// left. An image that another process uses stays. One that cannot be removed does not keep
// the others: the errors are joined.
func (s *Store) GC(ctx context.Context, opts GCOptions) (GCReport, error) {
	if s.collectOnly {
		if _, err := s.fsys.Lstat(s.dir); errors.Is(err, fs.ErrNotExist) {
			return GCReport{}, nil
		}
	}
	all, err := s.List()
	if err != nil {
		return GCReport{}, fmt.Errorf("collect images: %w", err)
	}
	slices.SortStableFunc(all, func(a, b Info) int { return a.LastUsed.Compare(b.LastUsed) })
	keep, err := opts.keep()
	if err != nil {
		return GCReport{}, fmt.Errorf("collect images: %w", err)
	}
	var report GCReport
	var errs []error
	for _, i := range all {
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		d := decide(i, opts, keep, s.opts.Now())
		if d.Remove && !opts.DryRun {
			if d, err = s.collect(i, opts); err != nil {
				errs = append(errs, fmt.Errorf("remove image %s: %w", i.Digest, err))
			}
		}
		if d.Remove {
			report.RemovedBytes += i.SizeBytes
		}
		report.Decisions = append(report.Decisions, d)
	}
	if opts.Only == nil {
		report.Leftovers, err = s.leftovers(opts.DryRun)
		errs = append(errs, err)
		for _, l := range report.Leftovers {
			report.RemovedBytes += l.Bytes
		}
	}
	if !opts.DryRun {
		errs = append(errs, s.forgetRefs())
	}
	if err := errors.Join(errs...); err != nil {
		return report, fmt.Errorf("collect images: %w", err)
	}
	return report, nil
}

func (o GCOptions) keep() (map[string]string, error) {
	if o.Keep == nil {
		return nil, nil //nolint:nilnil // nobody
	}
	return o.Keep()
}

// collect removes an image, if that is still the decision.
func (s *Store) collect(i Info, opts GCOptions) (Decision, error) {
	stays := func(reason string) Decision { return Decision{Info: i, Reason: reason} }
	keep, err := opts.keep()
	if err != nil {
		return stays(err.Error()), err
	}
	d := stays("in use meanwhile")
	gone, err := s.remove(i.Digest, func(e *entry) bool {
		fresh := i
		fresh.LastUsed, fresh.Pinned = e.lastUsed, e.pinned()
		d = decide(fresh, opts, keep, s.opts.Now())
		return d.Remove
	})
	switch {
	case err != nil:
		return stays(err.Error()), err
	case gone:
		s.opts.Logger.Info("Removed unused image", "digest", i.Digest, "bytes", i.SizeBytes)
	case d.Remove:
		d = stays("in use meanwhile")
	}
	return d, nil
}

// decide tells whether a collection removes an image, and why. Pure.
func decide(i Info, opts GCOptions, keep map[string]string, now time.Time) Decision {
	unused := now.Sub(i.LastUsed)
	switch who := keep[i.Digest]; {
	case i.Pinned:
		return Decision{Info: i, Reason: "in use by this process"}
	case who != "":
		return Decision{Info: i, Reason: who}
	case opts.Only != nil && !slices.Contains(opts.Only, i.Digest):
		return Decision{Info: i, Young: true, Reason: "not among those that are to go"}
	case unused < opts.Grace:
		return Decision{Info: i, Young: true, Reason: fmt.Sprintf("unused for %s, less than %s", unused.Round(time.Second), opts.Grace)}
	}
	return Decision{Info: i, Remove: true, Reason: fmt.Sprintf("unused for %s", unused.Round(time.Second))}
}

// leftovers removes, or only lists, what pulls and removals that failed have left; opening
// the store does the same, but a node may run for months.
func (s *Store) leftovers(dryRun bool) (left []Leftover, err error) {
	err = s.exclusive(func() error {
		all, err := s.fsys.ReadDir(s.dir)
		if err != nil {
			return err
		}
		var errs []error
		for _, d := range all {
			if !strings.HasPrefix(d.Name(), tmpPrefix) && !strings.HasPrefix(d.Name(), trashPrefix) {
				continue
			}
			path := filepath.Join(s.dir, d.Name())
			l := Leftover{Name: d.Name(), Bytes: allocatedBytes(path)}
			gone, err := s.sweep(path, dryRun)
			if err != nil {
				errs = append(errs, err)
			}
			if gone && err == nil {
				left = append(left, l)
			}
		}
		return errors.Join(errs...)
	})
	return left, err
}

// allocatedBytes is what the files of a directory take on disk, about: they may vanish
// meanwhile.
func allocatedBytes(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // an estimate
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512 // the unit of st_blocks, whatever the block size
			}
		}
		return nil
	})
	return n
}

// remove takes an image away unless it was pinned meanwhile, or may does not agree.
func (s *Store) remove(digest string, may func(*entry) bool) (bool, error) {
	s.mu.Lock()
	e, ok := s.images[digest]
	if !ok || e.pinned() || !may(e) {
		s.mu.Unlock()
		return false, nil
	}
	delete(s.images, digest)
	s.mu.Unlock()
	// Who wants the image from here on finds it on disk and locks it, which makes
	// discard give up, or does not find it and pulls it.
	err := s.exclusive(func() error { return s.discard(e.path) })
	if err == nil {
		return true, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // another process was faster
	}
	// It is still there: list it again.
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.images[digest]; !again {
		if fresh, rerr := s.read(digest); rerr == nil {
			s.images[digest] = fresh
		}
	}
	if errors.Is(err, durable.ErrLocked) {
		return false, nil
	}
	return false, err
}

// forgetRefs removes references to images that are gone.
func (s *Store) forgetRefs() error {
	return s.exclusive(func() error {
		refs, bad, err := s.refs()
		if err != nil {
			return err
		}
		for _, r := range refs {
			hex, err := digestHex(r.Digest)
			if err != nil {
				return err
			}
			switch _, err := s.fsys.Lstat(filepath.Join(s.dir, hex, recordName)); {
			case errors.Is(err, fs.ErrNotExist):
				bad = append(bad, s.refPath(r.Ref))
			case err != nil:
				return err
			}
		}
		for _, path := range bad {
			if err := s.fsys.RemoveAll(path); err != nil {
				return err
			}
		}
		return nil
	})
}
