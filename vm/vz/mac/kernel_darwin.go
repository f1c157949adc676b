// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// kernel is this Mac's.
type kernel struct{}

// String implements Sysctls.
func (kernel) String(name string) (string, error) {
	s, err := unix.Sysctl(name)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, err)
	}
	return s, nil
}

// Uint32 implements Sysctls.
func (kernel) Uint32(name string) (uint32, error) {
	v, err := unix.SysctlUint32(name)
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", name, err)
	}
	return v, nil
}

// fileSystem is the type that mount(8) shows.
func fileSystem(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", fmt.Errorf("find file system of %s: %w", path, err)
	}
	return unix.ByteSliceToString(st.Fstypename[:]), nil
}
