// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"fmt"
	"time"
)

// Resource is what a host may be short of. Stable: a label of metrics.
type Resource string

// The resources.
const (
	// Disk has machines, snapshots, logs and records.
	Disk Resource = "disk"
	// Images is the disk that has images, where it is another one.
	Images Resource = "images"
	Memory Resource = "memory"
)

// resources in the order in which they are relieved: memory first, since what lacks it is
// killed, while what lacks disk waits.
var resources = []Resource{Memory, Disk, Images}

// Level is what a kernel says by itself of its memory.
type Level int

// The levels.
const (
	LevelNormal Level = iota
	LevelWarning
	LevelCritical
)

// Reading is one measurement of one resource.
type Reading struct {
	// Available and Total are bytes.
	Available, Total int64
	// FreeInodes of Inodes; without Inodes the file system does not count them.
	FreeInodes, Inodes int64
	Level              Level
}

// Measurement is what the host has left.
type Measurement struct {
	Disk Reading
	// Images is nil where images are on the same disk.
	Images *Reading
	Memory Reading
}

func (m *Measurement) of(r Resource) *Reading {
	switch r {
	case Memory:
		return &m.Memory
	case Images:
		return m.Images
	case Disk:
	}
	return &m.Disk
}

// Amount is a number of bytes, or a part of the whole.
type Amount struct {
	Bytes   int64
	Percent float64
}

func (a Amount) of(total int64) int64 {
	if a.Percent > 0 {
		return int64(float64(total) * a.Percent / 100)
	}
	return a.Bytes
}

// Floors of one resource: exactly as much is enough. Zero is no floor.
type Floors struct {
	// Refill must be available for pools to be filled.
	Refill int64
	// Free must be available, or the node is under pressure.
	Free int64
	// Below Soft for SoftGrace, or below Hard, running pods are ended.
	Soft, Hard Amount
	SoftGrace  time.Duration
}

// Depth is how far the relief of a resource has to go.
type Depth int

// The depths: each includes those before.
const (
	// Ease: nothing is short.
	Ease Depth = iota
	// Brake: pools are not refilled.
	Brake
	// Shed: what nobody uses goes, and new pods are refused.
	Shed
	// Evict: running pods are ended.
	Evict
)

// marginPart is the part of a floor that must be available beyond it until what was done
// below it is undone: else a node would swing around the floor.
const marginPart = 10

// lowInodes is the part of a file system's inodes that must be free, in percent: the
// kubelet's default eviction threshold.
const lowInodes = 5

// standing is how a resource stands.
type standing struct {
	depth Depth
	// hard: pods are ended at once.
	hard bool
	// softSince is since when it has been below the soft threshold; zero: it is not.
	softSince time.Time
	// shedAt is when it was last so short.
	shedAt time.Time
	// lack is what must come free until no pod is refused, evictLack until none is ended.
	lack, evictLack int64
	// threshold is that below which pods are ended.
	threshold, available int64
	text                 string
}

// judge says how a resource stands that stood as was. Below a floor counts at once, above it
// only with a margin. After a shortage the pools wait for the transition period, like the
// node's condition. It is pure.
func judge(was standing, r Reading, f Floors, transition time.Duration, now time.Time) standing {
	soft, hard := f.Soft.of(r.Total), f.Hard.of(r.Total)
	free := max(f.Free, soft, hard)
	s := standing{available: r.Available, softSince: was.softSince, shedAt: was.shedAt}
	below := func(floor int64, already bool) bool {
		return floor > 0 && (r.Available < floor || already && r.Available < floor+floor/marginPart)
	}
	if below(max(f.Refill, free), was.depth >= Brake) || r.Level >= LevelWarning {
		s.depth = Brake
	}
	s.text = fmt.Sprintf("%d MiB free, %d MiB must be", r.Available>>20, free>>20)
	noInodes := false
	if r.Inodes > 0 { // some file systems have no fixed number and say that they have none at all
		least := r.Inodes / 100 * lowInodes
		if was.depth >= Shed {
			least += least / marginPart
		}
		if noInodes = r.FreeInodes < least; noInodes {
			s.text += fmt.Sprintf("; %d of %d inodes free, %d%% must be", r.FreeInodes, r.Inodes, lowInodes)
		}
	}
	if r.Level > LevelNormal {
		s.text += fmt.Sprintf("; the kernel says level %d", r.Level)
	}
	if below(free, was.depth >= Shed) || noInodes || r.Level >= LevelCritical {
		s.depth = Shed
		s.lack = max(free+free/marginPart-r.Available, 1)
	}
	if !below(soft, !was.softSince.IsZero()) {
		s.softSince = time.Time{}
	} else if s.softSince.IsZero() {
		s.softSince = now
	}
	switch {
	case below(hard, was.depth == Evict && was.hard) || r.Level >= LevelCritical:
		s.depth, s.hard, s.threshold = Evict, true, hard
	case !s.softSince.IsZero() && now.Sub(s.softSince) >= f.SoftGrace:
		s.depth, s.threshold = Evict, soft
	}
	if s.depth == Evict {
		s.evictLack = s.threshold - r.Available
		if s.evictLack <= 0 && r.Level < LevelCritical {
			s.evictLack += s.threshold / marginPart
		}
	}
	if s.depth >= Shed {
		s.shedAt = now
	} else if s.depth == Ease && !s.shedAt.IsZero() && now.Sub(s.shedAt) < transition {
		s.depth = Brake
	}
	return s
}
