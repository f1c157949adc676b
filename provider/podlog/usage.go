// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"os"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/provider"
)

// Usage is what the log files of all runs of a container take on disk.
func (s *Store) Usage(c provider.ContainerRef) (bytes, files int64) {
	path, err := s.path(c)
	if err != nil {
		return 0, 0
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return 0, 0
	}
	for _, e := range entries {
		// One that is rotated away meanwhile is counted under its next name, or not.
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			bytes, files = bytes+info.Size(), files+1
		}
	}
	return bytes, files
}
