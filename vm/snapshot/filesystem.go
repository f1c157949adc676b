// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

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
	return durable.IsNoSpace(err)
}
