// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cluster

import (
	"os/exec"
	"strconv"
	"strings"
)

// commandLines are the command lines of this host's processes, by their ids. Never run
// on a Mac.
func commandLines() map[int]string {
	out, _ := exec.Command("ps", "-axwwo", "pid=,command=").Output()
	lines := map[int]string{}
	for line := range strings.Lines(string(out)) {
		id, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		if pid, err := strconv.Atoi(id); err == nil {
			lines[pid] = command
		}
	}
	return lines
}
