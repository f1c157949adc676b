// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// FS is every call by which something gets on the disk or is read from it. What is made
// is for the owner alone. Errors are those of package os: they can be told apart with
// errors.Is and the kinds of io/fs and syscall. All implementations are safe for
// concurrent use and pass durabletest.Conformance.
type FS interface {
	// OpenFile opens a file as os.OpenFile does; what it makes has mode 0600.
	OpenFile(path string, flag int) (File, error)
	// ReadDir lists a directory, sorted by name.
	ReadDir(path string) ([]fs.DirEntry, error)
	// Lstat does not follow a symbolic link.
	Lstat(path string) (fs.FileInfo, error)
	// Mkdir makes one directory with mode 0700.
	Mkdir(path string) error
	// Rename replaces what is at to, in one step.
	Rename(from, to string) error
	// Link gives a file a second name; fs.ErrExist when the name is taken.
	Link(from, to string) error
	// RemoveAll removes a file, or a directory with all that is in it. Nil when nothing
	// is there.
	RemoveAll(path string) error
	// SyncDir makes the names in a directory survive a crash of the host.
	SyncDir(path string) error
}

// File is an open file of an FS.
type File interface {
	io.Reader
	io.Writer
	io.Seeker
	io.Closer
	Truncate(size int64) error
	// Sync makes the content survive a crash of the host.
	Sync() error
}

// Host is the host's own file system.
var Host FS = hostFS{}

type hostFS struct{}

func (hostFS) OpenFile(path string, flag int) (File, error) {
	f, err := os.OpenFile(path, flag, 0o600) //nolint:gosec // the path is the caller's
	if err != nil {
		return nil, err // not f: a nil *os.File in an interface is not nil
	}
	return f, nil
}

func (hostFS) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }
func (hostFS) Lstat(path string) (fs.FileInfo, error)     { return os.Lstat(path) }
func (hostFS) Mkdir(path string) error                    { return os.Mkdir(path, 0o700) }
func (hostFS) Rename(from, to string) error               { return os.Rename(from, to) }
func (hostFS) Link(from, to string) error                 { return os.Link(from, to) }
func (hostFS) RemoveAll(path string) error                { return os.RemoveAll(path) }

func (hostFS) SyncDir(path string) error {
	d, err := os.Open(path) //nolint:gosec // the path is the caller's
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems cannot sync a directory and say EINVAL: nothing can be done then.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// IsNoSpace tells whether an error means that the disk, or the share of it that this
// user may fill, is full.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
