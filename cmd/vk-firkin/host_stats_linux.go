// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/provider/stats"
)

// hostUsage adds what Linux tells of processors, memory and network.
func hostUsage(h *stats.Host) error {
	for path, parse := range map[string]func(*stats.Host, string) error{
		"/proc/stat": parseStat, "/proc/vmstat": parseVMStat, "/proc/net/dev": parseNetDev,
	} {
		text, err := os.ReadFile(path)
		if err == nil {
			err = parse(h, string(text))
		}
		if err != nil {
			return fmt.Errorf("measure the host: %s: %w", path, err)
		}
	}
	free, err := meminfo("MemFree")
	if err != nil {
		return err
	}
	inactive, err := meminfo("Inactive(file)")
	if err != nil {
		return err
	}
	if h.RSSBytes, err = meminfo("AnonPages"); err != nil {
		return err
	}
	// The kubelet's measures: all that is used, and that less inactive file cache.
	h.MemoryUsedBytes = h.MemoryTotalBytes - free
	h.WorkingSetBytes = max(h.MemoryUsedBytes-inactive, 0)
	h.MemoryAvailableBytes = h.MemoryTotalBytes - h.WorkingSetBytes
	if text, err := os.ReadFile("/proc/net/route"); err == nil {
		defaultFirst(h, string(text))
	}
	return nil
}

// userHz is the unit of /proc/stat on every architecture.
const userHz = 100

// parseStat reads proc_stat(5).
func parseStat(h *stats.Host, text string) error {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 9 && fields[0] == "cpu":
			// user nice system, without idle and iowait, irq softirq, without steal.
			var ticks int64
			for _, i := range []int{1, 2, 3, 6, 7} {
				n, err := strconv.ParseInt(fields[i], 10, 64)
				if err != nil {
					return err
				}
				ticks += n
			}
			h.CPUTime = time.Duration(ticks) * (time.Second / userHz)
		case len(fields) == 2 && fields[0] == "btime":
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return err
			}
			h.BootTime = time.Unix(n, 0)
		}
	}
	return nil
}

// parseVMStat reads the page faults of /proc/vmstat.
func parseVMStat(h *stats.Host, text string) error {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		var into *int64
		switch key {
		case "pgfault":
			into = &h.PageFaults
		case "pgmajfault":
			into = &h.MajorPageFaults
		default:
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return err
		}
		*into = n
	}
	return nil
}

// parseNetDev reads proc_net_dev(5): the interfaces but loopback.
func parseNetDev(h *stats.Host, text string) error {
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(fields) < 11 {
			continue
		}
		i := stats.Interface{Name: name}
		for at, into := range map[int]*uint64{0: &i.RxBytes, 2: &i.RxErrors, 8: &i.TxBytes, 10: &i.TxErrors} {
			n, err := strconv.ParseUint(fields[at], 10, 64)
			if err != nil {
				return err
			}
			*into = n
		}
		h.Network = append(h.Network, i)
	}
	return nil
}

// defaultFirst puts the interface of the default route, of /proc/net/route, first.
func defaultFirst(h *stats.Host, routes string) {
	for line := range strings.Lines(routes) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[1] != "00000000" {
			continue
		}
		for i := range h.Network {
			if h.Network[i].Name == fields[0] {
				h.Network[0], h.Network[i] = h.Network[i], h.Network[0]
				return
			}
		}
	}
}
