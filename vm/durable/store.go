// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
)

// Layout says where the record of an id is in a store's directory.
type Layout struct {
	// File is a record's name in a directory of its own, <id>/<File>. The directory is
	// the record's: Remove removes all that is in it.
	File string
	// Suffix ends a record's name when File is empty: <id><Suffix>.
	Suffix string
}

func (l Layout) path(dir, id string) string {
	if l.File != "" {
		return filepath.Join(dir, id, l.File)
	}
	return filepath.Join(dir, id+l.Suffix)
}

// id is what an entry of the directory is about; false for what is none of the store's.
func (l Layout) id(e fs.DirEntry) (string, bool) {
	if l.File != "" {
		return e.Name(), e.IsDir()
	}
	id, ok := strings.CutSuffix(e.Name(), l.Suffix)
	return id, ok && !e.IsDir()
}

// StoreOptions describe a directory of records.
type StoreOptions[T any] struct {
	FS     FS // default: Host
	Dir    string
	Layout Layout
	Format *Format[T]
	How    Durability
	// ValidID tells whether a name is an id; names of files that are none are left alone.
	// An id has no slash and does not begin with a dot, whatever this says.
	ValidID func(string) bool
	// IDOf is the id that a record itself says it is about.
	IDOf func(*T) string
}

// Store is a directory of records of one kind, one for each id. Safe for concurrent use,
// but for one id there may be one writer at a time.
//
// A record that could not be read stays: Write and Remove refuse to touch it, with its
// *Fault, until Discard or Forget has removed it, or Load could read it.
type Store[T any] struct {
	StoreOptions[T]

	dirs Dirs

	mu     sync.Mutex
	faults map[string]*Fault // guarded by mu; by id
}

// NewStore makes a store. It does not touch the disk.
func NewStore[T any](opts StoreOptions[T]) *Store[T] {
	if opts.FS == nil {
		opts.FS = Host
	}
	return &Store[T]{StoreOptions: opts, faults: map[string]*Fault{}}
}

// Path is where the record of an id is.
func (s *Store[T]) Path(id string) string { return s.Layout.path(s.Dir, id) }

func (s *Store[T]) valid(id string) bool {
	return id != "" && id[0] != '.' && !strings.ContainsAny(id, "/\x00") && (s.ValidID == nil || s.ValidID(id))
}

// Load reads all records, in the order of their ids, and removes what a process that died
// was writing. One that cannot be read is among the faults and does not hide the others.
// A directory without a record is removed, with Layout.File: its process died before
// the first write, or in the middle of a removal. The error means that nothing is known.
func (s *Store[T]) Load() (records []T, faults []*Fault, err error) {
	entries, err := s.FS.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if s.Layout.File == "" {
		if err := Sweep(s.FS, s.Dir); err != nil {
			return nil, nil, err
		}
	}
	for _, e := range entries {
		id, ok := s.Layout.id(e)
		if !ok || !s.valid(id) {
			continue
		}
		v, err := s.Read(id)
		if err == nil && s.Layout.File != "" {
			err = Sweep(s.FS, filepath.Join(s.Dir, id))
		}
		if errors.Is(err, fs.ErrNotExist) && s.Layout.File != "" {
			s.dirs.Forget(s.place(id))
			err = Remove(s.FS, s.place(id), s.How)
			if err == nil {
				s.settle(id, nil)
				continue
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went meanwhile
		}
		if err == nil {
			s.settle(id, nil)
			records = append(records, v)
			continue
		}
		fault := &Fault{ID: id, Path: s.Path(id), Err: err}
		s.settle(id, fault)
		faults = append(faults, fault)
	}
	return records, faults, nil
}

// settle notes what is known of a record.
func (s *Store[T]) settle(id string, fault *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fault == nil {
		delete(s.faults, id)
	} else {
		s.faults[id] = fault
	}
}

// untouchable is the fault of a record that must not be changed.
func (s *Store[T]) untouchable(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.faults[id]; f != nil {
		return f
	}
	return nil
}

// Read reads one record. Errors: those of Format.Read; one that is about another id is
// ErrCorrupt.
func (s *Store[T]) Read(id string) (T, error) {
	v, err := s.Format.Read(s.FS, s.Path(id))
	if err != nil {
		return v, err
	}
	if s.IDOf != nil {
		if own := s.IDOf(&v); own != id {
			return *new(T), fmt.Errorf("read %s: %w: it is of %.100q", s.Path(id), ErrCorrupt, own)
		}
	}
	return v, nil
}

// Write puts a record in the place of the id's former one, whole or not at all.
func (s *Store[T]) Write(id string, v T) error {
	if !s.valid(id) {
		return fmt.Errorf("write record: %.100q is no id", id)
	}
	if err := s.untouchable(id); err != nil {
		return err
	}
	path := s.Path(id)
	if err := s.dirs.Make(s.FS, filepath.Dir(path), s.How); err != nil {
		return err
	}
	return s.Format.Write(s.FS, path, v, s.How)
}

// Remove drops an id's record, with Layout.File its whole directory. Idempotent.
func (s *Store[T]) Remove(id string) error {
	if !s.valid(id) {
		return fmt.Errorf("remove record: %.100q is no id", id)
	}
	if err := s.untouchable(id); err != nil {
		return err
	}
	s.dirs.Forget(s.place(id))
	return Remove(s.FS, s.place(id), s.How)
}

// Discard is Remove for whoever knows that what the record speaks of is gone, or was told
// to let it go: it removes one that cannot be read as well.
func (s *Store[T]) Discard(id string) error {
	if !s.valid(id) {
		return fmt.Errorf("discard record: %.100q is no id", id)
	}
	s.dirs.Forget(s.place(id))
	if err := Remove(s.FS, s.place(id), s.How); err != nil {
		return err
	}
	s.settle(id, nil)
	return nil
}

// Forget is Discard of the record alone: what else is in its directory stays until Remove,
// or until a later Load.
func (s *Store[T]) Forget(id string) error {
	if !s.valid(id) {
		return fmt.Errorf("forget record: %.100q is no id", id)
	}
	if err := Remove(s.FS, s.Path(id), s.How); err != nil {
		return err
	}
	s.settle(id, nil)
	return nil
}

// place is all that belongs to an id's record.
func (s *Store[T]) place(id string) string {
	if s.Layout.File != "" {
		return filepath.Join(s.Dir, id)
	}
	return s.Path(id)
}
