// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// TestMachineKeepsTheTime: a machine that stood still, as all do while a host sleeps, has the
// host's time again after the next beat; nobody else's clock is touched, and its pod goes on.
func TestMachineKeepsTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(func(o *provider.Options) { o.StuckTimeout = 0 }) // the default: a beat every ten seconds
		slept, awake := w.create(pod("slept", []string{"hang"})), w.create(pod("awake", []string{"hang"}))
		for _, name := range []string{"slept", "awake"} {
			w.await(name, "is ready", ready)
		}
		m, other := w.supply.machineOf(slept.UID).agent, w.supply.machineOf(awake.UID).agent
		m.StandStill(8 * time.Hour)
		time.Sleep(15 * time.Second)
		if ahead, sets := m.Clock(); ahead.Abs() > guest.MaxClockError || sets != 1 {
			t.Errorf("after 15 s the machine's clock is ahead by %s and was set %d times", ahead, sets)
		}
		time.Sleep(5 * time.Minute)
		if _, sets := m.Clock(); sets != 1 {
			t.Errorf("it was set %d times", sets)
		}
		if _, sets := other.Clock(); sets != 0 {
			t.Errorf("the clock of the machine beside it was set %d times", sets)
		}
		if now := w.await("slept", "is ready", ready); now.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("its pod says %+v", now.Status)
		}
		p.stop()
	})
}
