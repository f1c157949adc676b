// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import "time"

// The kubelet's back-off for images and crashing containers: 10 s, doubling to 5 min,
// forgotten when nothing failed for twice the longest delay.
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 5 * time.Minute
	backoffReset = 2 * backoffMax
)

// backoff is the crash loop's memory. Its zero value lets the first restart be at once,
// as the kubelet's does.
type backoff struct {
	Delay time.Duration `json:"delay,omitempty"`
	// Since is when the last restart was let through.
	Since time.Time `json:"since,omitempty"`
}

// wait returns when a run that ended at finished may be followed by the next.
func (b backoff) wait(finished time.Time) time.Time {
	if b.Delay == 0 || finished.Sub(b.Since) > backoffReset {
		return finished
	}
	if finished.Before(b.Since) { // a guest says when its run ended
		finished = b.Since
	}
	return finished.Add(b.Delay)
}

// next is the memory after a restart at now of a run that ended at finished.
func (b backoff) next(finished, now time.Time) backoff {
	d := backoffFirst
	if b.Delay > 0 && finished.Sub(b.Since) <= backoffReset {
		d = min(2*b.Delay, backoffMax)
	}
	return backoff{Delay: d, Since: now}
}

// retryDelay is first doubled for every failure before this one, at most limit.
func retryDelay(failures int, first, limit time.Duration) time.Duration {
	d := first
	for i := 1; i < failures && d < limit; i++ {
		d *= 2
	}
	return min(d, limit)
}
