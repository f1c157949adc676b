// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// zombie is SZOMB of sys/proc.h.
const zombie = 5

// processTable lists the machine's processes. The kernel tells their sessions by address
// only, so each is asked for. Unproven on hardware.
func processTable() ([]entry, error) {
	all, err := unix.SysctlKinfoProcSlice("kern.proc.all")
	if err != nil {
		return nil, err
	}
	out := make([]entry, 0, len(all))
	for _, k := range all {
		e := entry{pid: int(k.Proc.P_pid), ppid: int(k.Eproc.Ppid), dead: k.Proc.P_stat == zombie}
		if e.pid == 0 {
			continue // the kernel
		}
		if sid, err := unix.Getsid(e.pid); err == nil {
			e.sid = sid
		}
		out = append(out, e)
	}
	return out, nil
}

// measureTimeout is for a process that prints a table.
const measureTimeout = 10 * time.Second

// processUsage measures processes; those that have ended are left out. What the kernel
// has of them is behind interfaces that are not public; ps(1) has the right to them.
func processUsage(of []entry) (map[int]Usage, error) {
	if len(of) == 0 {
		return map[int]Usage{}, nil
	}
	pids := make([]string, len(of))
	for i, e := range of {
		pids[i] = strconv.Itoa(e.pid)
	}
	ctx, cancel := context.WithTimeout(context.Background(), measureTimeout)
	defer cancel()
	// It fails when one of them has ended, and prints the others.
	out, err := exec.CommandContext(ctx, "/bin/ps", "-o", "pid=,rss=,time=", "-p", strings.Join(pids, ",")).Output()
	if len(out) == 0 && err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("ps: %w", ctx.Err())
		}
		return map[int]Usage{}, nil
	}
	return ParseUsage(string(out))
}
