// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// clone makes the new file dst share all blocks of src: clonefile(2) on APFS, about a
// millisecond whatever the size. It wants to make the file itself, so the empty one
// gives way to it. Type-checked, never run on a Mac.
func clone(dst, src *os.File) bool {
	temp := dst.Name() + ".clone"
	// Of the open file and not of its name, which may be a link: that would be cloned, and
	// the machine would write to what it points to.
	if err := unix.Fclonefileat(int(src.Fd()), unix.AT_FDCWD, temp, 0); err != nil {
		return false
	}
	// The clone has the mode of its source, which nobody may write.
	err := os.Chmod(temp, 0o600)
	if err == nil {
		err = os.Rename(temp, dst.Name())
	}
	if err != nil {
		_ = os.Remove(temp)
		return false
	}
	return true
}

// seekHole and seekData are SEEK_HOLE and SEEK_DATA of macOS's sys/unistd.h, which has
// them the other way round than Linux.
const (
	seekHole = 3
	seekData = 4
)

// nextData finds the first range of data at or after at. start == end: none left.
func nextData(f *os.File, at, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), at, seekData)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if err != nil {
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, seekHole)
	return start, end, err
}
