// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// hostMemory is the memory of the host in bytes.
func hostMemory() (int64, error) {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0, fmt.Errorf("measure memory: %w", err)
	}
	return int64(n), nil
}

// hostMemoryAvailable is what is free: macOS counts in pages, and what it could take
// back from caches is not in it.
func hostMemoryAvailable() (int64, error) {
	pages, err := unix.SysctlUint32("vm.page_free_count")
	if err != nil {
		return 0, fmt.Errorf("measure memory: %w", err)
	}
	purgeable, err := unix.SysctlUint32("vm.page_purgeable_count")
	if err != nil {
		return 0, fmt.Errorf("measure memory: %w", err)
	}
	return (int64(pages) + int64(purgeable)) * int64(unix.Getpagesize()), nil
}

// hostProcesses are the processes of the host, and how many there may be.
func hostProcesses() (used, limit int64, err error) {
	all, err := unix.SysctlKinfoProcSlice("kern.proc.all")
	if err != nil {
		return 0, 0, fmt.Errorf("count processes: %w", err)
	}
	most, err := unix.SysctlUint32("kern.maxproc")
	if err != nil {
		return 0, 0, fmt.Errorf("count processes: %w", err)
	}
	return int64(len(all)), int64(most), nil
}
