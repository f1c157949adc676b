// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// The order of relief, when each step gives something and none enough: nothing that works goes
// before all that does not.
func TestOrderOfRelief(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 1000, warm: []int64{1, 1}, kept: []int64{1, 1}, pods: map[types.UID]int64{"small": 20, "big": 30}}
		collect := func(what string, gives int64) func(context.Context, int64) (int64, error) {
			return func(_ context.Context, need int64) (int64, error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.free += gives
				h.did("%s goes", what)
				given := gives
				gives = 0
				return given, nil
			}
		}
		startManager(t, h, func(o *Options) {
			o.CollectSnapshots, o.CollectImages = collect("snapshot", 1), collect("image", 1)
			o.Changed = func() { h.mu.Lock(); h.did("the node says so"); h.mu.Unlock() }
		})
		pass(3 * time.Second)
		h.set(0)
		pass(time.Minute)
		want := []string{
			"press DiskPressure", "warm goes, reserved false", "warm goes, reserved false", "snapshot goes", "snapshot goes", "image goes", "image goes",
			"the node says so", "warm goes, reserved true", "warm goes, reserved true", "pod big goes in 1s",
		}
		if got := h.since(); got != strings.Join(want, "; ") {
			t.Errorf("got  %s\nwant %s", got, strings.Join(want, "; "))
		}
	})
}

// A pod whose machine cannot be deleted is ended once; when its time is over, another has to go.
func TestMachineThatCannotBeDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 1000, pods: map[types.UID]int64{"other": 25, "stuck": 30}, stuck: map[types.UID]bool{"stuck": true}}
		startManager(t, h)
		pass(3 * time.Second)
		h.set(0)
		pass(20 * time.Second)
		if got := h.since(); got != "press DiskPressure; pod stuck goes in 1s" {
			t.Errorf("at first: %s", got)
		}
		pass(20 * time.Second)
		if got := h.since(); got != "pod other goes in 1s" {
			t.Errorf("when it is not gone: %s", got)
		}
		h.set(0) // again
		pass(time.Hour)
		if got := h.since(); got != "" {
			t.Errorf("it was ended again: %s", got)
		}
		h.mu.Lock()
		h.stuck["stuck"], h.pods["other2"] = false, 1
		h.mu.Unlock()
		pass(time.Minute)
		if got := h.since(); got != "" || len(h.pods) != 1 {
			t.Errorf("when it is gone at last: %s, pods %v", got, h.pods)
		}
	})
}

// A pod that has a long time to end does not keep the node waiting when it runs out of disk, or
// of something else.
func TestHardDoesNotWaitForSoft(t *testing.T) {
	for _, c := range []struct {
		name string
		then func(h *host)
		want string
	}{
		{"nothing happens", func(*host) {}, ""},
		{"hard", func(h *host) { h.free = 10 }, "pod big goes in 1s"},
		{"hard, of memory", func(h *host) { h.memory = 10 }, "press MemoryPressure; pod big goes in 1s"},
		{"over", func(h *host) { h.free = 1000 }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &host{free: 1000, pods: map[types.UID]int64{"small": 20, "big": 60}}
				startManager(t, h, func(o *Options) {
					o.MaxPodGrace = 10 * time.Minute
					o.Disk.Soft = Amount{Bytes: 50}
					o.Memory.Hard = Amount{Bytes: 20}
				})
				pass(3 * time.Second)
				h.set(40)
				pass(time.Minute)
				if got := h.since(); got != "press DiskPressure; pod big goes in 10m0s" {
					t.Fatalf("below the soft threshold: %s", got)
				}
				h.mu.Lock()
				c.then(h)
				h.mu.Unlock()
				pass(5 * time.Second)
				if got := h.since(); got != c.want {
					t.Errorf("then: %s, want %s", got, c.want)
				}
				if h.pods["small"] == 0 {
					t.Error("another pod has gone too")
				}
			})
		})
	}
}

// A collection that takes long, or waits for another one, keeps the steps behind it waiting for
// a while and no longer; what it frees in the end counts.
func TestSlowCollection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 1000, pods: map[types.UID]int64{"a": 30}}
		turn := make(chan struct{})
		under := 0
		m := startManager(t, h, func(o *Options) {
			o.CollectSnapshots = func(ctx context.Context, need int64) (int64, error) {
				h.mu.Lock()
				under++
				if under > 1 {
					t.Error("it was begun twice at once")
				}
				h.mu.Unlock()
				defer func() { h.mu.Lock(); under--; h.mu.Unlock() }()
				select {
				case <-turn:
					return h.collect(ctx, need)
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
			o.CollectImages = func(ctx context.Context, need int64) (int64, error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.did("images are looked at")
				return 0, nil
			}
		})
		pass(3 * time.Second)
		h.set(0)
		h.mu.Lock()
		h.garbage = 500
		h.mu.Unlock()
		pass(8 * time.Second)
		if got := h.since(); got != "press DiskPressure" || short(t, m) {
			t.Errorf("it is not waited for: %s, short %v", got, short(t, m))
		}
		pass(8 * time.Second)
		if got := h.since(); got != "images are looked at; pod a goes in 1s" || !short(t, m) {
			t.Errorf("the others wait for it: %s, short %v", got, short(t, m))
		}
		h.set(0)
		pass(time.Minute)
		close(turn)
		pass(5 * time.Second)
		if got := h.since(); !strings.HasSuffix(got, "collected 110") || short(t, m) {
			t.Errorf("when it has its turn: %s, short %v", got, short(t, m))
		}
	})
}

// stuckWarm are warm machines of which the first three cannot be deleted.
type stuckWarm struct {
	*host
	shed int
}

func (s *stuckWarm) Shed(ctx context.Context, reserved bool) (bool, error) {
	s.mu.Lock()
	s.shed++
	stuck := s.shed <= 3
	if stuck {
		s.did("warm is stuck")
	}
	s.mu.Unlock()
	if !stuck {
		return s.host.Shed(ctx, reserved)
	}
	<-ctx.Done()
	return true, fmt.Errorf("wait for a warm machine to be gone: %w", ctx.Err())
}

// Warm machines that cannot be deleted cost no pod its life while there are others.
func TestWarmMachineThatCannotBeDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 1000, warm: []int64{15, 15}, pods: map[types.UID]int64{"a": 30}}
		startManager(t, h, func(o *Options) { o.Supply = &stuckWarm{host: h} })
		pass(3 * time.Second)
		h.set(0)
		pass(time.Minute)
		if got := h.since(); got != "press DiskPressure; warm is stuck; warm is stuck; warm is stuck; warm goes, reserved false; warm goes, reserved false" || len(h.pods) != 1 {
			t.Errorf("%s, pods %v", got, h.pods)
		}
	})
}

// A host that swings around a floor is not told about each time, and nobody is let in and out
// by turns.
func TestSwinging(t *testing.T) {
	for _, c := range []struct {
		name      string
		low, high int64
		presses   int // of pools
		changes   int // of what the node says
		short     bool
		pods      int
	}{
		{"around the floor of refills", 199, 219, 1, 0, false, 1},
		{"around the floor", 99, 109, 1, 1, true, 1},
		{"around the threshold", 19, 21, 1, 1, true, 0},
		{"above it all", 221, 240, 0, 0, false, 1},
		{"below the floor of refills", 120, 150, 1, 0, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &host{free: 1000, pods: map[types.UID]int64{"a": 5}}
				m := startManager(t, h)
				pass(3 * time.Second)
				for i := range 300 { // ten minutes
					h.set([]int64{c.low, c.high}[i%2])
					pass(2 * time.Second)
				}
				if got := h.since(); strings.Count(got, "press") != c.presses || h.changes != c.changes || short(t, m) != c.short || len(h.pods) != c.pods {
					t.Errorf("%s; %d changes, short %v, pods %v", got, h.changes, short(t, m), h.pods)
				}
				// And with room it is over.
				h.set(1000)
				pass(2 * time.Minute)
				if short(t, m) {
					t.Error("it is not over")
				}
				if got := h.since(); got != strings.Repeat("press ", min(c.presses, 1)) {
					t.Errorf("afterwards: %q", got)
				}
			})
		})
	}
}

// What cannot be measured is no reason to end anybody, and is measured again.
func TestPodsThatCannotBeMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 1000, pods: map[types.UID]int64{"a": 30}}
		broken := true
		startManager(t, h, func(o *Options) {
			o.Pods = func(ctx context.Context) ([]Pod, error) {
				if broken {
					return nil, errors.New("the driver does not answer")
				}
				return h.measurePods(ctx)
			}
		})
		h.set(0)
		pass(time.Minute)
		if got := h.since(); got != "press DiskPressure" {
			t.Errorf("%s", got)
		}
		broken = false
		pass(5 * time.Second)
		if got := h.since(); got != "pod a goes in 1s" {
			t.Errorf("%s", got)
		}
	})
}
