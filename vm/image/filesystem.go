// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// create makes a new file, open for reading and writing.
func create(fsys durable.FS, path string) (durable.File, error) {
	return fsys.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

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
