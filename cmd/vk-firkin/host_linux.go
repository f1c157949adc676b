// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vk-firkin/vk-firkin/provider/pressure"
)

// hostMemory is the memory of the host in bytes.
func hostMemory() (int64, error) { return meminfo("MemTotal") }

// hostMemoryAvailable is what could be given to programs without swapping.
func hostMemoryAvailable() (int64, error) { return meminfo("MemAvailable") }

// readMemory is what there is of memory.
func readMemory() (r pressure.Reading, err error) {
	if r.Total, err = hostMemory(); err != nil {
		return r, err
	}
	r.Available, err = hostMemoryAvailable()
	return r, err
}

// identify reads who the host is. Only root may read the hardware's UUID on some hosts.
func identify(context.Context) hostIdentity {
	first := func(paths ...string) string {
		for _, path := range paths {
			if b, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(b))) > 0 {
				return strings.Trim(string(b), " \n\x00")
			}
		}
		return ""
	}
	id := hostIdentity{machine: first("/etc/machine-id", "/var/lib/dbus/machine-id"), boot: first("/proc/sys/kernel/random/boot_id")}
	if id.system = first("/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid"); id.system == "" {
		id.system = id.machine
	}
	return id
}

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
	for _, bound := range []string{"pid_max", "threads-max"} {
		text, err := os.ReadFile("/proc/sys/kernel/" + bound)
		if err != nil {
			return 0, 0, fmt.Errorf("count processes: %w", err)
		}
		most, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("count processes: %w", err)
		}
		if limit == 0 || most < limit {
			limit = most
		}
	}
	return used, limit, nil
}
