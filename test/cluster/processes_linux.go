// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hostProcesses are this host's processes, by their ids.
func hostProcesses() map[int]hostProcess {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	all := map[int]hostProcess{}
	for _, e := range entries {
		b, err := os.ReadFile(e)
		if err != nil || len(b) == 0 {
			continue // it has ended
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(e), "stat"))
		if err != nil {
			continue
		}
		// proc(5): the parent is the second field after the name, which is in parentheses and
		// may have some in it.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(e)))
		parent, perr := strconv.Atoi(fields[1])
		if err == nil && perr == nil {
			dir, _ := os.Readlink(filepath.Join(filepath.Dir(e), "cwd"))
			all[pid] = hostProcess{parent: parent, command: strings.ReplaceAll(string(b), "\x00", " "), dir: dir}
		}
	}
	return all
}
