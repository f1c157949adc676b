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
	"time"
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

// GCOptions say what may go. The zero value lets everything stay.
type GCOptions struct {
	// UnusedFor: images that nobody has pulled or pinned for longer go. 0: age does not
	// matter.
	UnusedFor time.Duration
	// MaxBytes: the least recently used go until all together are not above it. 0:
	// size does not matter; 1 or so: everything that may go.
	MaxBytes int64
	// DryRun: only tell.
	DryRun bool
}

// GC removes whole images that nobody has pinned, and references to images that
// are gone. It returns what it removed, or would. An image that another process
// uses stays.
func (s *Store) GC(ctx context.Context, opts GCOptions) ([]Info, error) {
	all, err := s.List()
	if err != nil {
		return nil, fmt.Errorf("collect images: %w", err)
	}
	var removed []Info
	var errs []error
	for _, i := range chooseGarbage(all, opts, s.opts.Now()) {
		if err := ctx.Err(); err != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		if !opts.DryRun {
			ok, err := s.remove(i.Digest)
			if err != nil {
				errs = append(errs, fmt.Errorf("remove image %s: %w", i.Digest, err))
			}
			if !ok || err != nil {
				continue
			}
			s.opts.Logger.Info("Removed unused image", "digest", i.Digest, "bytes", i.SizeBytes)
		}
		removed = append(removed, i)
	}
	if !opts.DryRun {
		errs = append(errs, s.forgetRefs())
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("collect images: %w", err)
	}
	return removed, nil
}

// chooseGarbage decides what goes, the least recently used first.
func chooseGarbage(all []Info, opts GCOptions, now time.Time) []Info {
	var total int64
	for _, i := range all {
		total += i.SizeBytes
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Info) int { return a.LastUsed.Compare(b.LastUsed) })
	var out []Info
	for _, i := range all {
		old := opts.UnusedFor > 0 && now.Sub(i.LastUsed) > opts.UnusedFor
		over := opts.MaxBytes > 0 && total > opts.MaxBytes
		if i.Pinned || !old && !over {
			continue
		}
		total -= i.SizeBytes
		out = append(out, i)
	}
	return out
}

// remove takes an image away unless it was pinned meanwhile.
func (s *Store) remove(digest string) (bool, error) {
	s.mu.Lock()
	e, ok := s.images[digest]
	if !ok || e.pinned() {
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
	if errors.Is(err, errLocked) {
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
			if _, err := s.fsys.Stat(filepath.Join(s.dir, hex, recordName)); err != nil {
				bad = append(bad, s.refPath(r.Ref))
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
