// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// leaveAlone tells the kernel to read nothing of the file that was not asked for: it would
// be in the cache by the time that it is looked at.
func leaveAlone(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM) }

// sparePageCache looks which pages of a part of a file are cached before it is read, and
// returns what drops those that the reading has added. It is a favour to others: where the
// kernel does not tell, nothing is dropped.
func sparePageCache(f *os.File, off, length int64) func() {
	page := int64(os.Getpagesize())
	start := off - off%page
	length += off - start
	if length <= 0 {
		return func() {}
	}
	mapped, err := unix.Mmap(int(f.Fd()), start, int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return func() {}
	}
	defer func() { _ = unix.Munmap(mapped) }()
	cached := make([]byte, (length+page-1)/page)
	// mincore(2): one byte for each page, of which bit 0 says that it is in memory.
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(length), uintptr(unsafe.Pointer(&cached[0]))); errno != 0 {
		return func() {}
	}
	return func() {
		for i := 0; i < len(cached); {
			if cached[i]&1 != 0 {
				i++
				continue
			}
			first := i
			for i < len(cached) && cached[i]&1 == 0 {
				i++
			}
			_ = unix.Fadvise(int(f.Fd()), start+int64(first)*page, int64(i-first)*page, unix.FADV_DONTNEED)
		}
	}
}
