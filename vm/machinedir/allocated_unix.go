// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package machinedir

import (
	"os"
	"syscall"
)

// AllocatedBytes is what a file occupies on disk: stat counts blocks of 512 bytes.
func AllocatedBytes(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
