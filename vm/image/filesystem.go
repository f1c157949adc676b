// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// filesystem is the seam where a disk can fail: everything the store changes or
// relies on goes through it. Tests fail its operations one by one.
type filesystem interface {
	MkdirAll(path string) error
	Mkdir(path string) error
	// Create makes a new file, open for reading and writing.
	Create(path string) (file, error)
	Open(path string) (io.ReadCloser, error)
	// ReadFile reads a whole file; one larger than limit is an error.
	ReadFile(path string, limit int64) ([]byte, error)
	ReadDir(path string) ([]fs.DirEntry, error)
	Stat(path string) (fs.FileInfo, error)
	Rename(from, to string) error
	RemoveAll(path string) error
	SyncDir(path string) error
}

// file is an open file of a filesystem.
type file interface {
	io.ReadWriteSeeker
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// osFS is the real one. Files are only for their owner: images may be private.
type osFS struct{}

func (osFS) MkdirAll(path string) error { return os.MkdirAll(path, 0o700) }
func (osFS) Mkdir(path string) error    { return os.Mkdir(path, 0o700) }

func (osFS) Create(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) Open(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", path, errTooLong, limit)
	}
	return b, nil
}

func (osFS) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }
func (osFS) Stat(path string) (fs.FileInfo, error)      { return os.Lstat(path) }
func (osFS) Rename(from, to string) error               { return os.Rename(from, to) }
func (osFS) RemoveAll(path string) error                { return os.RemoveAll(path) }

func (osFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	// Some file systems cannot sync a directory and say EINVAL.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

var errTooLong = errors.New("file too long")

// writeFile makes a small file that is on the disk when it returns.
func writeFile(fsys filesystem, path string, data []byte) error {
	f, err := fsys.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// lockFile takes an advisory lock on a file, which it makes if create says so. It
// does not wait: errLocked means that another holds it. The lock ends when the
// file is closed, and with the process.
func lockFile(path string, exclusive, create bool) (*os.File, error) {
	flags := os.O_RDONLY
	if create {
		flags = os.O_RDWR | os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	how := syscall.LOCK_SH | syscall.LOCK_NB
	if exclusive {
		how = syscall.LOCK_EX | syscall.LOCK_NB
	}
	for {
		err = syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

var errLocked = errors.New("locked by another")

// freeBytes is what an unprivileged user may still write to path's file system.
func freeBytes(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return int64(st.Bavail * uint64(st.Bsize)), nil
}

// touch marks a path as used now. It is a hint for garbage collection, so a
// failure does no harm.
func touch(path string, now time.Time) { _ = os.Chtimes(path, now, now) }
