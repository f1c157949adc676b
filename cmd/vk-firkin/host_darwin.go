// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/provider"
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

// pressureCritical is the kernel's highest level of memory pressure
// (kVMPressureCritical in xnu's vm_pressure.h; 1 is normal, 2 a warning).
const pressureCritical = 4

// hostMemoryPressure asks the kernel: what is free says little on macOS, which fills
// memory with what it can take back.
func hostMemoryPressure() (provider.Measured, error) {
	level, err := unix.SysctlUint32("kern.memorystatus_vm_pressure_level")
	if err != nil {
		return provider.Measured{}, fmt.Errorf("measure memory: %w", err)
	}
	free, err := unix.SysctlUint32("kern.memorystatus_level")
	if err != nil {
		return provider.Measured{}, fmt.Errorf("measure memory: %w", err)
	}
	return provider.Measured{Short: level >= pressureCritical, Message: fmt.Sprintf("memory pressure of level %d, %d%% of memory available", level, free)}, nil
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
