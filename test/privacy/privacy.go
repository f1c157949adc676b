// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package privacy finds files that others than their owner could use, for tests of what keeps
// secrets: the state and the cache of a node hold memory of machines, keys and output of pods.
package privacy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Open names what in root, and root itself, has a right for the group or for others. What goes
// away meanwhile is none of it; of a symbolic link it is the target that has rights.
func Open(root string) (open []string, files int, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		var info fs.FileInfo
		if err == nil {
			info, err = os.Lstat(path)
		}
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil
		}
		if err != nil {
			return err
		}
		files++
		if info.Mode().Perm()&0o077 != 0 {
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			open = append(open, fmt.Sprintf("%s %s", info.Mode(), rel))
		}
		return nil
	})
	return open, files, err
}
