// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"fmt"
)

// Kinds of errors, for errors.Is. That there is no record is fs.ErrNotExist.
var (
	// ErrCorrupt: what is there is no record of this kind, or not a whole one.
	ErrCorrupt = errors.New("not a usable record")

	// ErrNewer: the record is of a version that this vk-firkin does not know yet. The
	// error is a *VersionError.
	ErrNewer = errors.New("written by a newer vk-firkin")

	// ErrOlder: the record is of a version that this vk-firkin does not know any more.
	// The error is a *VersionError.
	ErrOlder = errors.New("written by an older vk-firkin")

	// ErrLocked: another process has the directory. The error is a *LockedError.
	ErrLocked = errors.New("in use by another process")

	// ErrCannotLock: the file system has no locks.
	ErrCannotLock = errors.New("this file system cannot lock files: use a directory on a local disk")
)

// VersionError is a whole record that another vk-firkin wrote.
type VersionError struct {
	Kind    string
	Version int
	// Oldest and Newest are what this vk-firkin reads.
	Oldest, Newest int
}

func (e *VersionError) Error() string {
	if e.Version > e.Newest {
		return fmt.Sprintf("%v (version %d of a %s record, this one reads up to %d): start that one, or end with it what the record speaks of", ErrNewer, e.Version, e.Kind, e.Newest)
	}
	return fmt.Sprintf("%v (version %d of a %s record, this one reads from %d): start one that reads both first, or end with the older one what the record speaks of", ErrOlder, e.Version, e.Kind, e.Oldest)
}

// Is makes it ErrNewer or ErrOlder.
func (e *VersionError) Is(target error) bool {
	if e.Version > e.Newest {
		return target == ErrNewer
	}
	return target == ErrOlder
}

// Fault is a record that cannot be used. It is still where it was, and nothing is known
// of what it speaks of but its name.
type Fault struct {
	// ID is what the record is about, as the name of its file has it.
	ID string
	// Path is where it is.
	Path string
	// Err says why: ErrCorrupt, ErrNewer, ErrOlder, or an error of the disk, which may
	// have passed when it is read again.
	Err error
}

func (f *Fault) Error() string {
	return fmt.Sprintf("record of %q: %v", f.ID, f.Err) // which names the path
}

func (f *Fault) Unwrap() error { return f.Err }
