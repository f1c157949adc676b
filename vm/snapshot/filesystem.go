// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// fileSystem is where publishing can fail: the calls that change the store. Tests
// make call N fail, for every N. All paths are absolute.
type fileSystem interface {
	Mkdir(path string) error
	// WriteFile creates the file with mode 0600, writes and syncs it.
	WriteFile(path string, data []byte) error
	// Sync makes a file's content, or a directory's entries, survive a crash.
	Sync(path string) error
	Rename(from, to string) error
	RemoveAll(path string) error
}

// hostFS is the real file system.
type hostFS struct{}

func (hostFS) Mkdir(path string) error      { return os.Mkdir(path, 0o700) }
func (hostFS) Rename(from, to string) error { return os.Rename(from, to) }
func (hostFS) RemoveAll(path string) error  { return os.RemoveAll(path) }

func (hostFS) WriteFile(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func (hostFS) Sync(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.Sync()
}

// FreeBytes is how many bytes an ordinary user may still write to the file system
// that holds path. It is the default of Options.FreeBytes.
func FreeBytes(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("measure free space of %q: %w", path, err)
	}
	return int64(st.Bavail * uint64(st.Bsize)), nil
}

// hasHoles tells whether a file takes less of the disk than its size.
func hasHoles(path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Blocks*512 < info.Size(), nil // 512 is the unit of st_blocks
}

// allocatedBytes is what the files of a directory really take, holes left out.
func allocatedBytes(dir string) (int64, error) {
	var n int64
	err := fs.WalkDir(os.DirFS(dir), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
			n += st.Blocks * 512 // the unit of st_blocks, whatever the block size
		}
		return nil
	})
	return n, err
}

// noSpace tells whether the host's disk is the cause.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
