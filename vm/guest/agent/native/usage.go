// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process uses.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64
}

// Meter adds up the processor time of processes that come and go. The zero value is usable.
type Meter struct {
	last  map[int]Usage
	spent time.Duration
}

// Add takes what those that are there now have used, by process id, and returns what all
// that were ever added have. What one uses after it was last seen is lost. It keeps now.
func (m *Meter) Add(now map[int]Usage) time.Duration {
	for pid, before := range m.last {
		// A number may have been given out again.
		if u, ok := now[pid]; !ok || u.CPU < before.CPU {
			m.spent += before.CPU
		}
	}
	m.last = now
	total := m.spent
	for _, u := range now {
		total += u.CPU
	}
	return total
}

// ParseUsage reads what ps -o pid=,rss=,time= prints: the memory in KiB, and the time as
// macOS writes it, minutes:seconds.hundredths, or as others do, [days-]hours:minutes:seconds.
func ParseUsage(text string) (map[int]Usage, error) {
	out := map[int]Usage{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("ps printed %.80q", line)
		}
		pid, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, fmt.Errorf("ps printed %.80q: %w", line, err)
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("ps printed %.80q: %w", line, err)
		}
		cpu, err := parseCPUTime(f[2])
		if err != nil {
			return nil, fmt.Errorf("ps printed %.80q: %w", line, err)
		}
		out[pid] = Usage{CPU: cpu, MemoryBytes: kib << 10}
	}
	return out, nil
}

func parseCPUTime(text string) (time.Duration, error) {
	var total time.Duration
	if days, rest, ok := strings.Cut(text, "-"); ok {
		n, err := strconv.Atoi(days)
		if err != nil {
			return 0, err
		}
		total, text = time.Duration(n)*24*time.Hour, rest
	}
	parts := strings.Split(text, ":")
	unit := time.Second
	for i := len(parts) - 1; i >= 0; i-- {
		n, err := strconv.ParseFloat(parts[i], 64)
		if err != nil || n < 0 || unit > time.Hour {
			return 0, fmt.Errorf("%q is no time", text)
		}
		total += time.Duration(n * float64(unit))
		unit *= 60
	}
	return total, nil
}
