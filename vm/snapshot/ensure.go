// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Ref pins a set: until Release it is not deleted. A quarantine does not ask pins:
// what was restored keeps working, new restores are refused.
type Ref struct {
	store   *Store
	set     *set
	release sync.Once
}

// Key is the key of the set.
func (r *Ref) Key() string { return r.set.manifest.Key }

// Manifest describes the set. Its members are not to be changed.
func (r *Ref) Manifest() Manifest { return r.set.manifest }

// Dir is the directory that the driver saved to and restores from.
func (r *Ref) Dir() string { return r.set.machineDir() }

// Release drops the pin. Idempotent.
func (r *Ref) Release() {
	r.release.Do(func() {
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		instance := r.set.manifest.Instance
		p := r.store.pins[instance]
		if p.n--; p.n > 0 {
			r.store.pins[instance] = p
		} else {
			delete(r.store.pins, instance)
		}
	})
}

// pin makes a Ref of a set. mu is held.
func (s *Store) pin(known *set) *Ref {
	p := s.pins[known.manifest.Instance]
	s.pins[known.manifest.Instance] = pin{key: known.manifest.Key, n: p.n + 1}
	return &Ref{store: s, set: known}
}

// pinned is how often this process uses an instance of a key. An unknown instance is any of
// them. mu is held.
func (s *Store) pinned(key, instance string) (n int) {
	for i, p := range s.pins {
		if p.key == key && (i == instance || instance == "") {
			n += p.n
		}
	}
	return n
}

// ensureRounds bounds how often a set may vanish between being made ready and
// being pinned. Twice is already a collision with a collection and a quarantine.
const ensureRounds = 5

// Ensure returns the snapshot of a spec, pinned, and builds it when it is missing
// or damaged. It is verified in full before its first use in this process and by
// its sizes before each further use. Any number of callers wait for one build;
// that of a base goes on when they give up, a template's is cut short with the last. built tells that this call had to wait for a
// build.
//
// Errors: *BuildError, *DiskPressureError, vm.ErrInvalidConfig, ErrReadOnly,
// ErrClosed, ctx.Err.
func (s *Store) Ensure(ctx context.Context, spec Spec) (ref *Ref, built bool, err error) {
	if err := s.writable(); err != nil {
		return nil, false, err
	}
	if s.driver == nil {
		return nil, false, fmt.Errorf("%w: no driver", ErrReadOnly)
	}
	if err := spec.Validate(s.features); err != nil {
		return nil, false, err
	}
	key := Key(spec, s.features)
	for range ensureRounds {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, built, ErrClosed
		}
		if known := s.sets[key]; known != nil && s.flights[key] == nil {
			ref, gone := s.pin(known), known.gone
			s.mu.Unlock()
			err := checkSizes(known.dir, known.manifest)
			if gone && err == nil {
				err = fmt.Errorf("%w: it could not be quarantined before", vm.ErrSnapshotInvalid)
			}
			if err == nil {
				return ref, built, nil
			}
			ref.Release()
			if !errors.Is(err, vm.ErrSnapshotInvalid) {
				return nil, built, err
			}
			if err := s.quarantine(ctx, key, known.manifest.Instance, err.Error()); err != nil {
				return nil, built, err
			}
			continue
		}
		f := s.flights[key]
		if f == nil {
			fctx, cancel := context.WithCancel(s.ctx)
			f = &flight{done: make(chan struct{}), cancel: cancel}
			s.flights[key] = f
			s.wg.Go(func() {
				defer cancel()
				build, err := s.prepare(fctx, key, spec)
				s.land(key, f, build, err)
			})
		}
		f.waiters++
		abandoned := f.abandoned
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			s.leave(f, spec)
			return nil, built, fmt.Errorf("wait for snapshot of shape %s: %w", spec.Shape, ctx.Err())
		case <-f.done:
		}
		if abandoned {
			continue // it was given up before this call came
		}
		built = built || f.build
		if f.err != nil {
			return nil, built, f.err
		}
	}
	return nil, built, fmt.Errorf("snapshot of shape %s does not stay: %w", spec.Shape, vm.ErrUnavailable)
}

// leave gives up waiting for a flight. The build of a template that nobody waits for is
// cut short: its commands may run for as long as their user lets them, and keep others
// from being built. A base is of use to the next pod, whoever that is.
func (s *Store) leave(f *flight, spec Spec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.waiters--
	if f.waiters == 0 && spec.Template != nil && f.cancel != nil {
		f.abandoned = true
		f.cancel()
	}
}

// land ends a flight.
func (s *Store) land(key string, f *flight, build bool, err error) {
	s.mu.Lock()
	delete(s.flights, key)
	f.build, f.err = build, err
	s.mu.Unlock()
	close(f.done)
}

// prepare makes the set of a key known and verified: from disk, else by a build.
// It is the only one to change the key meanwhile.
func (s *Store) prepare(ctx context.Context, key string, spec Spec) (build bool, err error) {
	dir := filepath.Join(s.dir, key)
	if _, err := s.opts.FS.Lstat(dir); err == nil {
		set, err := s.load(ctx, dir, key, spec)
		if err == nil {
			s.publishKnown(key, set)
			return false, nil
		}
		if !errors.Is(err, vm.ErrSnapshotInvalid) {
			return false, fmt.Errorf("load snapshot %s: %w", shortKey(key), err)
		}
		if err := s.moveToQuarantine(key, "", spec.about(key), err.Error()); err != nil {
			return false, err
		}
	} else if !isNotExist(err) {
		return false, fmt.Errorf("load snapshot %s: %w", shortKey(key), err)
	}
	var base *Ref
	if from, ok := spec.base(); ok {
		// Before the turn to build is taken: the base may have to be built first.
		if base, _, err = s.Ensure(ctx, from); err != nil {
			return true, fmt.Errorf("build snapshot of %s: %w", spec, err)
		}
		defer base.Release()
	}
	select {
	case s.builds <- struct{}{}:
	case <-ctx.Done():
		return true, ErrClosed
	}
	defer func() { <-s.builds }()
	set, err := s.build(ctx, key, spec, base)
	if err != nil {
		if ctx.Err() != nil {
			return true, fmt.Errorf("%w: %w", ErrClosed, err)
		}
		failed := spec.about(key)
		failed.Type, failed.Message, failed.Err = EventBuildFailed, err.Error(), err
		s.emit(failed)
		return true, err
	}
	s.publishKnown(key, set)
	return true, nil
}

func (s *Store) publishKnown(key string, set *set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sets[key] = set
	s.verified[set.manifest.Instance] = s.opts.Now()
}

// load reads and verifies a set on disk.
func (s *Store) load(ctx context.Context, dir, key string, spec Spec) (*set, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	if err := m.matches(key, spec, s.driver.Name(), s.features); err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
	}
	if n := s.failuresOf(m.Instance); n >= s.opts.RestoreFailures {
		return nil, fmt.Errorf("%w: %d restores in a row have failed, of this process or an earlier one", vm.ErrSnapshotInvalid, n)
	}
	if err := s.verifyOnce(ctx, dir, m); err != nil {
		return nil, err
	}
	sealKey, err := readBounded(filepath.Join(dir, sealKeyName), sealKeyBytes)
	if err != nil {
		return nil, fmt.Errorf("read seal key: %w", err)
	}
	return &set{dir: dir, manifest: m, sealKey: sealKey}, nil
}

// verifyOnce reads a set unless this process has: then its sizes are looked at, as before
// every use.
func (s *Store) verifyOnce(ctx context.Context, dir string, m Manifest) error {
	s.mu.Lock()
	_, known := s.verified[m.Instance]
	s.mu.Unlock()
	if known {
		return checkSizes(dir, m)
	}
	return verifySet(ctx, dir, m)
}

// Lengths in hex digits and bytes.
const (
	instanceLength = 32
	sealKeyBytes   = 32
)

// randomHex returns n random hex digits, n even.
func randomHex(n int) string {
	b := make([]byte, n/2)
	_, _ = rand.Read(b) // never fails: it ends the process instead
	return hex.EncodeToString(b)
}
