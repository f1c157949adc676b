// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestSnapshotGone: the snapshot of a targeted template that was put aside, without a
// restore from it having failed, is built anew at once; the machines that were restored
// from it stay in the pool.
func TestSnapshotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.host.setDelay(func(op, _ string) time.Duration {
			return map[string]time.Duration{"restore": time.Second, "build": time.Minute}[op]
		})
		p.run(target("a", template("a", "r1"), 2, 0), target("b", template("b", "r1"), 1, 0))
		pass(10 * time.Minute)
		builds := func() int { return p.host.count("build") }
		before, machines := builds(), p.host.ids()
		var key string
		for _, s := range p.supply.Status().Templates {
			if s.Name == "a" && s.Phase == TemplateReady {
				key = s.Key
			}
		}
		if key == "" || len(machines) != 3 {
			t.Fatalf("not ready: %+v, machines %v", p.supply.Status().Templates, machines)
		}
		p.supply.SnapshotGone("another")
		pass(10 * time.Minute)
		if got := builds(); got != before {
			t.Errorf("%d builds for a snapshot that nobody knows", got-before)
		}
		p.host.mu.Lock()
		delete(p.host.snapshots, key)
		p.host.mu.Unlock()
		p.supply.SnapshotGone(key)
		pass(30 * time.Second)
		for _, s := range p.supply.Status().Templates {
			if want := map[string]TemplatePhase{"a": TemplateBuilding, "b": TemplateReady}[s.Name]; s.Phase != want {
				t.Errorf("template %s is %s, want %s", s.Name, s.Phase, want)
			}
		}
		pass(10 * time.Minute)
		if got := builds(); got != before+1 {
			t.Errorf("%d builds, want 1", got-before)
		}
		for _, s := range p.supply.Status().Templates {
			if s.Phase != TemplateReady {
				t.Errorf("template %s is %s", s.Name, s.Phase)
			}
		}
		if got := p.host.ids(); !slices.Equal(got, machines) {
			t.Errorf("machines are %v, before they were %v", got, machines)
		}
		p.stop()
	})
}
