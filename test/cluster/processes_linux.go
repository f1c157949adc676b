// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// commandLines are the command lines of this host's processes, by their ids.
func commandLines() map[int]string {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	lines := map[int]string{}
	for _, e := range entries {
		b, err := os.ReadFile(e)
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(e))); err == nil {
			lines[pid] = strings.ReplaceAll(string(b), "\x00", " ")
		}
	}
	return lines
}
