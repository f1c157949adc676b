// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// hostMemory is the memory of the host in bytes.
func hostMemory() (int64, error) { return meminfo("MemTotal") }

// hostMemoryAvailable is what could be given to programs without swapping.
func hostMemoryAvailable() (int64, error) { return meminfo("MemAvailable") }

func meminfo(key string) (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("measure memory: %w", err)
	}
	defer f.Close()
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		// proc(5): "MemTotal:       16384 kB"
		if rest, ok := strings.CutPrefix(scanner.Text(), key+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("measure memory: %s: %w", key, err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("measure memory: no %s in /proc/meminfo", key)
}

// hostProcesses are the processes and threads of the host, and how many there may be.
func hostProcesses() (used, limit int64, err error) {
	// proc(5): the fourth field of loadavg is "running/all".
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, 0, fmt.Errorf("count processes: %w", err)
	}
	fields := strings.Fields(string(load))
	if len(fields) < 4 {
		return 0, 0, fmt.Errorf("count processes: /proc/loadavg is %q", load)
	}
	_, all, _ := strings.Cut(fields[3], "/")
	if used, err = strconv.ParseInt(all, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("count processes: %w", err)
	}
	most, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0, 0, fmt.Errorf("count processes: %w", err)
	}
	if limit, err = strconv.ParseInt(strings.TrimSpace(string(most)), 10, 64); err != nil {
		return 0, 0, fmt.Errorf("count processes: %w", err)
	}
	return used, limit, nil
}
