// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package clock keeps intervals intervals on a host whose wall clock is set while it runs, or
// that sleeps. A time of time.Now has both clocks' readings, and compares by the
// monotonic one; a time from a file, a guest or the API has the wall clock's only. What is
// here turns the latter into the former once, when it is read, so that a clock which is set
// later changes nothing. It imports only the standard library.
package clock

import (
	"sync/atomic"
	"time"
)

// Anchor is a recorded time of the past as this process counts: later comparisons with
// time.Now see how long ago it was now, plus what has passed since. One from the future,
// which a clock that was set back leaves, is now. The zero time stays zero.
func Anchor(recorded, now time.Time) time.Time {
	if recorded.IsZero() {
		return recorded
	}
	return now.Add(-max(0, now.Sub(recorded)))
}

// Due is a recorded time at which something is to happen, as this process counts: no
// later than most from now, whatever the record says. The zero time stays zero.
func Due(recorded, now time.Time, most time.Duration) time.Time {
	if recorded.IsZero() {
		return recorded
	}
	return now.Add(min(recorded.Sub(now), most))
}

// StoodStill tells whether this process was stopped, or its host slept, between two looks that
// were at most expected apart. The monotonic clock goes on while a process is stopped;
// while a host sleeps only the wall clock does (Go reads mach_absolute_time on macOS and
// CLOCK_MONOTONIC on Linux). A wall clock that was set forward looks the same, and one that
// was set back says nothing.
func StoodStill(monotonic, wall, expected time.Duration) bool {
	return max(monotonic, wall) > expected
}

// Idle measures how long something did not happen. Safe for concurrent use.
type Idle struct {
	began time.Time
	last  atomic.Int64 // since began
}

// NewIdle begins to measure.
func NewIdle() *Idle { return &Idle{began: time.Now()} }

// Touch says that it happens now.
func (i *Idle) Touch() { i.last.Store(int64(time.Since(i.began))) }

// For is how long it did not happen.
func (i *Idle) For() time.Duration { return time.Since(i.began) - time.Duration(i.last.Load()) }
