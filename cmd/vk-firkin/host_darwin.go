// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/provider/pressure"
	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
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

// The kernel's levels of memory pressure (kVMPressureWarning and kVMPressureCritical in xnu's
// vm_pressure.h; 1 is normal).
const (
	pressureWarning  = 2
	pressureCritical = 4
)

// readMemory asks the kernel: what is free says little on macOS, which fills memory with
// what it can take back. It knows which part it could give away, and how hard that is.
func readMemory() (r pressure.Reading, err error) {
	level, err := unix.SysctlUint32("kern.memorystatus_vm_pressure_level")
	if err != nil {
		return r, fmt.Errorf("measure memory: %w", err)
	}
	percent, err := unix.SysctlUint32("kern.memorystatus_level")
	if err != nil {
		return r, fmt.Errorf("measure memory: %w", err)
	}
	if r.Total, err = hostMemory(); err != nil {
		return r, err
	}
	r.Available = r.Total / 100 * int64(min(percent, 100))
	switch {
	case level >= pressureCritical:
		r.Level = pressure.LevelCritical
	case level >= pressureWarning:
		r.Level = pressure.LevelWarning
	}
	return r, nil
}

// identify asks who the host is. Its hardware's UUID is all that a Mac keeps.
func identify(ctx context.Context) hostIdentity {
	hardware, _ := mac.This().HardwareUUID(ctx)
	boot, _ := unix.Sysctl("kern.bootsessionuuid")
	return hostIdentity{machine: hardware, system: hardware, boot: boot}
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
