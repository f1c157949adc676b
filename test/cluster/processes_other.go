// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cluster

import (
	"os/exec"
	"strconv"
	"strings"
)

// hostProcesses are this host's processes, by their ids. Never run on a Mac.
func hostProcesses() map[int]hostProcess {
	out, _ := exec.Command("ps", "-axwwo", "pid=,ppid=,command=").Output()
	all := map[int]hostProcess{}
	for line := range strings.Lines(string(out)) {
		id, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		ppid, command, _ := strings.Cut(strings.TrimSpace(rest), " ")
		pid, err := strconv.Atoi(id)
		parent, perr := strconv.Atoi(ppid)
		if err == nil && perr == nil {
			all[pid] = hostProcess{parent: parent, command: command}
		}
	}
	return all
}
