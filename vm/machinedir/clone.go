// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/vm"
)

// CopySparse copies from to a new file to, keeping holes and, where the
// filesystem can, sharing blocks.
func CopySparse(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return NoSpace(err)
	}
	defer func() {
		if cerr := dst.Close(); err == nil {
			err = NoSpace(cerr)
		}
	}()
	if clone(dst, src) {
		return nil
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return NoSpace(err)
	}
	for at := int64(0); at < info.Size(); {
		start, end, err := nextData(src, at, info.Size())
		if err != nil {
			return fmt.Errorf("find data of %s: %w", from, err)
		}
		if start >= end {
			break
		}
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		// Between files this is copy_file_range, inside the kernel.
		if _, err := io.CopyN(dst, src, end-start); err != nil {
			return NoSpace(err)
		}
		at = end
	}
	return nil
}

// SparseFile creates an empty file of size bytes without allocating any.
func SparseFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return NoSpace(err)
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return NoSpace(err)
	}
	return NoSpace(f.Close())
}

// EnsureSize makes path a file of size bytes, without allocating any.
func EnsureSize(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return NoSpace(err)
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return NoSpace(err)
	}
	return NoSpace(f.Close())
}

// CheckFile checks that path is absolute and names a regular file, of exactly size bytes
// unless that is 0. Errors are vm.ErrInvalidConfig and name what the file is.
func CheckFile(what, path string, size int64) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s: %w", vm.ErrInvalidConfig, what, err)
	case !filepath.IsAbs(path) || !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s %s, want the absolute path of a regular file", vm.ErrInvalidConfig, what, path)
	case size > 0 && info.Size() != size:
		return fmt.Errorf("%w: %s %s has %d bytes, want exactly %d", vm.ErrInvalidConfig, what, path, info.Size(), size)
	}
	return nil
}
