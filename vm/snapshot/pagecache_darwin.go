// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"os"

	"golang.org/x/sys/unix"
)

// leaveAlone keeps what is read of a file out of the cache of files: with F_NOCACHE what
// is there is used, and nothing is added (fcntl(2)). Type-checked, never run on a Mac.
func leaveAlone(f *os.File) { _, _ = unix.FcntlInt(f.Fd(), unix.F_NOCACHE, 1) }

func sparePageCache(*os.File, int64, int64) func() { return func() {} }
