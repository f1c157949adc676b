// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"time"
)

// backoff is the growing pause after failures in a row. The zero value is none. Pure
// data.
type backoff struct {
	failures int
	until    time.Time
	message  string
}

// pauses are the bounds of a growing pause.
type pauses struct{ first, most time.Duration }

// after returns the pause after so many failures in a row: twice the one before, within
// bounds. Pure.
func (p pauses) after(failures int) time.Duration {
	pause := p.first
	for i := 1; i < failures && pause < p.most; i++ {
		pause *= 2
	}
	return min(pause, p.most)
}

// failed returns the state after one more failure.
func (b backoff) failed(now time.Time, p pauses, message string) backoff {
	b.failures++
	b.until, b.message = now.Add(p.after(b.failures)), message
	return b
}

func (b backoff) waits(now time.Time) bool { return now.Before(b.until) }

// breakerThreshold is how many restores of a template in a row, in whatever pools,
// have to fail for its breaker to open.
const breakerThreshold = 3

// breaker stops the restores of a template that keeps failing: it opens, for longer
// each time, and then lets one try through at a time. The zero value is closed. Pure
// data.
type breaker struct {
	failures int // in a row
	backoff  backoff
}

func (b breaker) open(now time.Time) bool { return b.backoff.waits(now) }

// halfOpen: it was open and lets one try through.
func (b breaker) halfOpen(now time.Time) bool { return b.backoff.failures > 0 && !b.open(now) }

func (b breaker) failed(now time.Time, p pauses, message string) breaker {
	if b.open(now) {
		return b // it began before the breaker opened and tells nothing new
	}
	b.failures++
	if b.failures >= breakerThreshold {
		b.backoff = b.backoff.failed(now, p, message)
	}
	return b
}
