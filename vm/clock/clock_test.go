// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package clock_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/clock"
	"github.com/vk-firkin/vk-firkin/vm/clock/clocktest"
)

// TestAnchor: how long ago a recorded time is does not change with a clock that is set
// after it was read.
func TestAnchor(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name     string
		recorded time.Time
		ago      time.Duration
	}{
		{"a minute ago", now.Round(0).Add(-time.Minute), time.Minute},
		{"now", now.Round(0), 0},
		{"in an hour: the clock was set back", now.Round(0).Add(time.Hour), 0},
		{"with a monotonic reading", now.Add(-time.Minute), time.Minute},
	} {
		anchored := clock.Anchor(c.recorded, now)
		for _, jump := range []time.Duration{0, time.Hour, -time.Hour} {
			if ago := clocktest.Jump(t, now.Add(time.Second), jump).Sub(anchored); ago != c.ago+time.Second {
				t.Errorf("%s, clock set by %s: %s ago, want %s", c.name, jump, ago, c.ago+time.Second)
			}
		}
	}
	if !clock.Anchor(time.Time{}, now).IsZero() {
		t.Error("the zero time is a time")
	}
}

func TestDue(t *testing.T) {
	now := time.Now()
	for in, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, -time.Minute: -time.Minute, time.Hour: 5 * time.Minute} {
		due := clock.Due(now.Round(0).Add(in), now, 5*time.Minute)
		for _, jump := range []time.Duration{0, time.Hour, -time.Hour} {
			if got := due.Sub(clocktest.Jump(t, now, jump)); got != want {
				t.Errorf("due in %s, clock set by %s: in %s, want %s", in, jump, got, want)
			}
		}
	}
	if !clock.Due(time.Time{}, now, time.Minute).IsZero() {
		t.Error("the zero time is a time")
	}
}

func TestStoodStill(t *testing.T) {
	for _, c := range []struct {
		name            string
		monotonic, wall time.Duration
		want            bool
	}{
		{"in time", time.Second, time.Second, false},
		{"the process was stopped", time.Minute, time.Minute, true},
		{"the host slept", time.Second, 8 * time.Hour, true},
		{"the clock was set forward", time.Second, time.Hour, true},
		{"the clock was set back", time.Second, -time.Hour, false},
		{"stopped, and the clock was set back", time.Minute, -time.Hour, true},
	} {
		if got := clock.StoodStill(c.monotonic, c.wall, 10*time.Second); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := clock.NewIdle()
		time.Sleep(time.Second)
		if i.For() != time.Second {
			t.Errorf("idle for %s", i.For())
		}
		i.Touch()
		time.Sleep(time.Minute)
		if i.For() != time.Minute {
			t.Errorf("idle for %s", i.For())
		}
	})
}
