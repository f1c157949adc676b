// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// tick is the unit of /proc/PID/stat: USER_HZ is 100 on every architecture we run on.
const tick = 10 * time.Millisecond

// processTable lists the machine's processes.
func processTable() ([]entry, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		f := statFields(pid)
		if len(f) < 22 {
			continue // it has ended meanwhile
		}
		e := entry{pid: pid, dead: f[0] == "Z" || f[0] == "X"}
		e.ppid, _ = strconv.Atoi(f[1])
		e.sid, _ = strconv.Atoi(f[3])
		out = append(out, e)
	}
	return out, nil
}

// statFields are the fields of /proc/PID/stat (proc(5)) after the name, which is in
// parentheses and may hold anything: the first is the state, field 3 of the manual.
func statFields(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	var out []string
	for _, f := range bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]) {
		out = append(out, string(f))
	}
	return out
}

// processUsage measures processes; those that have ended are left out.
func processUsage(of []entry) (map[int]Usage, error) {
	out := map[int]Usage{}
	for _, e := range of {
		f := statFields(e.pid)
		if len(f) < 22 {
			continue
		}
		number := func(field int) int64 {
			n, _ := strconv.ParseInt(f[field-3], 10, 64)
			return n
		}
		out[e.pid] = Usage{CPU: time.Duration(number(14)+number(15)) * tick, MemoryBytes: number(24) * int64(os.Getpagesize())}
	}
	return out, nil
}
