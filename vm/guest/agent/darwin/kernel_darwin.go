// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// MacKernel is the kernel of this Mac. Unproven on hardware.
type MacKernel struct{}

var _ Kernel = MacKernel{}

// SetClock implements Kernel, like the methods below.
func (MacKernel) SetClock(t time.Time) error {
	if t.Unix() <= 0 {
		return fmt.Errorf("%s is not a time of today", t)
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	return os.NewSyscallError("settimeofday", unix.Settimeofday(&tv))
}

// Hostname is what hostname(1) prints.
func (MacKernel) Hostname() (string, error) { return unix.Sysctl("kern.hostname") }

// Release is what uname -r prints.
func (MacKernel) Release() (string, error) { return unix.Sysctl("kern.osrelease") }

// BootSession is drawn by the kernel at each boot, and is the same after a restore.
func (MacKernel) BootSession() (string, error) { return unix.Sysctl("kern.bootsessionuuid") }

// Sync starts to flush the disks.
func (MacKernel) Sync() error { return os.NewSyscallError("sync", unix.Sync()) }

// MemoryBytes is all memory of the machine.
func (MacKernel) MemoryBytes() (int64, error) {
	n, err := unix.SysctlUint64("hw.memsize")
	return int64(n), err //nolint:gosec // no Mac has 8 EiB
}

// DiskUsage counts what the volume cannot have, because others of its container have it,
// as used.
func (MacKernel) DiskUsage(dir string) (total, used int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, os.NewSyscallError("statfs", err)
	}
	size := int64(st.Bsize)
	return int64(st.Blocks) * size, int64(st.Blocks-st.Bavail) * size, nil //nolint:gosec // disks have less than 8 EiB
}
