// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestResume: pools that are not drained after all are filled again, by what was wanted of them last.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 4, 0))
		pass(time.Minute)
		ready := func(when string, want int) {
			t.Helper()
			pass(time.Minute)
			if got := p.pool("a"); got.Ready != want || got.Desired != want {
				t.Errorf("%s: %d of %d are ready, want %d", when, got.Ready, got.Desired, want)
			}
		}
		drain := func() {
			t.Helper()
			if err := p.supply.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		p.supply.Resume() // nothing to undo
		ready("before", 4)
		drain()
		ready("drained", 0)
		p.supply.Resume()
		ready("resumed", 4)
		drain()
		p.supply.SetTargets([]Target{target("a", tmpl, 2, 0)})
		drain()
		p.supply.Resume()
		ready("one of two drains is undone", 0)
		p.supply.Resume()
		ready("with the targets of meanwhile", 2)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.supply.Drain(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("nobody waits for it: %v", err)
		}
		p.supply.Resume()
		ready("after a drain that failed", 2)
		p.stop()
	})
}
