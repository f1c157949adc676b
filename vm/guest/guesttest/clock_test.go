// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// TestClockIsKept: a guest whose clock stood still, or runs ahead, has the host's again after one
// answer, and one that is right is left alone.
func TestClockIsKept(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	var k guest.ClockKeeper
	for i, step := range []struct{ behind, off time.Duration }{
		{0, 0}, {guest.MaxClockError / 2, 0}, {8 * time.Hour, -8 * time.Hour}, {-time.Hour, time.Hour}, {0, 0},
	} {
		a.StandStill(step.behind)
		if err := k.Ask(t.Context(), c.Agent); err != nil {
			t.Fatal(err)
		}
		off, err := k.Set(t.Context(), c.Agent)
		if err != nil || off.Round(time.Hour) != step.off {
			t.Errorf("%d: it was off by %s, %v, want %s", i, off, err, step.off)
		}
		if again, err := k.Set(t.Context(), c.Agent); again != 0 || err != nil {
			t.Errorf("%d: it was set again without a new answer: %s, %v", i, again, err)
		}
	}
	if ahead, sets := a.Clock(); ahead.Round(time.Hour) != 0 || sets != 2 {
		t.Errorf("the clock is ahead by %s and was set %d times, want 0 and 2", ahead, sets)
	}
	for _, bad := range []int64{0, -1} {
		if _, err := c.Agent.SetClock(t.Context(), connect.NewRequest(&agentv1.SetClockRequest{TimeUnixNano: bad})); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("time %d: %v", bad, err)
		}
	}
}
