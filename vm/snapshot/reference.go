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

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Reference says that a machine was restored from a set. It is on disk from before
// the machine is made until Forget, and keeps the set from being deleted.
type Reference struct {
	Machine  string `json:"machine"`
	Key      string `json:"key"`
	Instance string `json:"instance"`
	// Proven: the machine has its own time, entropy and identity and has proved
	// what it is. A machine whose maker died before that must not be used.
	Proven bool `json:"proven"`
}

// referenceRecord is a reference on disk.
type referenceRecord struct {
	durable.Header
	Reference
}

var referenceFormat = durable.NewFormat(durable.FormatOptions[referenceRecord]{
	Kind: "snapshot-reference", Version: 1, Unversioned: 1, MaxBytes: 4 << 10, // one has about 250 bytes
	Check: func(r *referenceRecord) error {
		if vm.ValidateID(r.Machine) != nil || !isHex(r.Key, keyLength) || !isHex(r.Instance, instanceLength) {
			return errors.New("names of a machine, a key or an instance are none")
		}
		return nil
	},
})

// Reference returns the reference of a machine.
func (s *Store) Reference(machine string) (Reference, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.refs[machine]
	return r, ok
}

// Forget drops the reference of a machine that was deleted. Idempotent.
func (s *Store) Forget(machine string) error {
	r, ok := s.Reference(machine)
	if !ok {
		return nil
	}
	if err := durable.Remove(s.opts.FS, s.referencePath(r), durable.Synced); err != nil {
		return fmt.Errorf("forget reference of machine %q: %w", machine, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.refs, machine)
	s.dropSealKey(r.Instance)
	return nil
}

// refer writes a reference. It counts from before it is on disk; when it does not get
// there, the former one does. The store is not locked meanwhile: a disk takes its time.
func (s *Store) refer(r Reference) error {
	s.mu.Lock()
	before, known := s.refs[r.Machine]
	s.refs[r.Machine] = r
	s.mu.Unlock()
	path := s.referencePath(r)
	how := durable.Synced
	if r.Proven {
		// Who finds half of it, or what was there before, after a crash of the host finds a
		// machine that was never finished; and none survives that crash.
		how = durable.Unsynced
	}
	err := s.dirs.Make(s.opts.FS, filepath.Dir(path), how)
	if err == nil {
		err = referenceFormat.Write(s.opts.FS, path, referenceRecord{Reference: r}, how)
	}
	if err == nil {
		return nil
	}
	// Something may have come to the disk. If it stays there, it counts until Forget.
	removed := !known && durable.Remove(s.opts.FS, path, durable.Unsynced) == nil
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case known:
		s.refs[r.Machine] = before
	case removed:
		delete(s.refs, r.Machine)
	}
	return fmt.Errorf("write reference: %w", err)
}

func (s *Store) referencePath(r Reference) string {
	return filepath.Join(s.dir, refsDir, r.Key, r.Machine)
}

// loadReferences reads the references on disk and drops those of machines that the
// driver does not have. When the driver cannot be asked, all are believed.
func (s *Store) loadReferences(ctx context.Context) error {
	refs, faults, err := readReferences(s.opts.FS, filepath.Join(s.dir, refsDir))
	if err != nil {
		return err
	}
	for _, f := range faults {
		if !errors.Is(f, durable.ErrCorrupt) {
			// It may be read the next time, or by the vk-firkin that wrote it: a machine that
			// was finished must not be taken for one that was not.
			return fmt.Errorf("read reference of machine %q: %w", f.ID, f.Err)
		}
		s.opts.Logger.Warn("Taking a machine whose reference cannot be read for one that was never finished", "machine", f.ID, "path", f.Path, "error", f.Err)
	}
	if err := s.sweepReferences(); err != nil {
		return err
	}
	known, asked, err := s.machines(ctx)
	if err != nil {
		s.opts.Logger.Warn("Keeping all references of snapshots: the driver could not list its machines", "error", err)
		asked = false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range refs {
		if asked && !slices.Contains(known, r.Machine) {
			if err := durable.Remove(s.opts.FS, s.referencePath(r), durable.Unsynced); err != nil {
				return fmt.Errorf("drop reference of machine %q: %w", r.Machine, err)
			}
			continue
		}
		s.refs[r.Machine] = r
	}
	return nil
}

// sweepReferences removes what a process that died was writing.
func (s *Store) sweepReferences() error {
	dir := filepath.Join(s.dir, refsDir)
	keys, err := s.opts.FS.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read references: %w", err)
	}
	var errs []error
	for _, k := range keys {
		if k.IsDir() {
			errs = append(errs, durable.Sweep(s.opts.FS, filepath.Join(dir, k.Name())))
		}
	}
	return errors.Join(errs...)
}

// sweepReferenceDirs removes the directories of references to sets that are gone. That of a
// set that is there tells when it was used last.
func (s *Store) sweepReferenceDirs() error {
	dir := filepath.Join(s.dir, refsDir)
	keys, err := s.opts.FS.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read references: %w", err)
	}
	var errs []error
	for _, k := range keys {
		if _, err := s.opts.FS.Lstat(filepath.Join(s.dir, k.Name())); k.IsDir() && isNotExist(err) {
			errs = append(errs, s.removeReferenceDir(k.Name()))
		}
	}
	return errors.Join(errs...)
}

// removeReferenceDir removes the directory of the references to a key, unless there are any.
// Nobody may be about to write one.
func (s *Store) removeReferenceDir(key string) error {
	dir := filepath.Join(s.dir, refsDir, key)
	left, err := s.opts.FS.ReadDir(dir)
	if isNotExist(err) {
		return nil
	}
	if err != nil || len(left) > 0 {
		return err
	}
	s.dirs.Forget(dir)
	return s.opts.FS.RemoveAll(dir)
}

// readReferences reads all references under a directory, sorted by machine. One
// that cannot be read still counts, as not proven: it keeps its set alive. It is among
// the faults as well.
func readReferences(fsys durable.FS, dir string) (refs []Reference, faults []*durable.Fault, err error) {
	keys, err := fsys.ReadDir(dir)
	if isNotExist(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read references: %w", err)
	}
	for _, k := range keys {
		if !k.IsDir() || !isHex(k.Name(), keyLength) {
			continue
		}
		machines, err := fsys.ReadDir(filepath.Join(dir, k.Name()))
		if err != nil {
			if isNotExist(err) {
				continue // removed since
			}
			return nil, nil, fmt.Errorf("read references: %w", err)
		}
		for _, m := range machines {
			if vm.ValidateID(m.Name()) != nil {
				continue
			}
			path := filepath.Join(dir, k.Name(), m.Name())
			r, err := readReference(fsys, path, k.Name(), m.Name())
			if isNotExist(err) {
				continue // removed since
			}
			if err != nil {
				faults = append(faults, &durable.Fault{ID: m.Name(), Path: path, Err: err})
			}
			refs = append(refs, r)
		}
	}
	slices.SortFunc(refs, func(a, b Reference) int { return cmp.Compare(a.Machine, b.Machine) })
	return refs, faults, nil
}

// readReference returns, with an error, what the name of the file says.
func readReference(fsys durable.FS, path, key, machine string) (Reference, error) {
	r, err := referenceFormat.Read(fsys, path)
	if err == nil && (r.Key != key || r.Machine != machine) {
		err = fmt.Errorf("read %s: %w: it is of machine %q and key %s", path, durable.ErrCorrupt, r.Machine, shortKey(r.Key))
	}
	if err != nil {
		return Reference{Machine: machine, Key: key}, err
	}
	return r.Reference, nil
}

// holds tells whether the reference keeps this instance of a key. An unknown
// instance, on either side, is any of them.
func (r Reference) holds(key, instance string) bool {
	return r.Key == key && (r.Instance == instance || r.Instance == "" || instance == "")
}
