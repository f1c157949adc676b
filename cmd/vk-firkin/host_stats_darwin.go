// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/provider/stats"
)

// hostUsage tells when the host was booted. What macOS knows of processor time and of
// network traffic is behind calls that need cgo: the collector counts the machines'.
func hostUsage(h *stats.Host) error {
	boot, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return fmt.Errorf("measure boot time: %w", err)
	}
	h.BootTime = time.Unix(boot.Unix())
	return nil
}
