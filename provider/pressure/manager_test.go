// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/warmpool"
)

// host is a host whose disk is what a test says.
type host struct {
	mu      sync.Mutex
	free    int64
	memory  int64 // 0: plenty
	broken  error
	warm    []int64 // what each warm machine gives
	kept    []int64
	garbage int64
	pods    map[types.UID]int64
	ends    map[types.UID]time.Time // pods that end, and when their machines are gone
	stuck   map[types.UID]bool      // pods whose machines cannot be deleted
	log     []string
	changes int
}

// pass takes away what has ended. With mu held.
func (h *host) pass() {
	for uid, at := range h.ends {
		if !h.stuck[uid] && !time.Now().Before(at) {
			h.free += h.pods[uid]
			delete(h.pods, uid)
			delete(h.ends, uid)
		}
	}
}

func (h *host) did(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

func (h *host) measure() (Measurement, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pass()
	return Measurement{Disk: Reading{Available: h.free, Total: 1000}, Memory: Reading{Available: cmp.Or(h.memory, 1000), Total: 1000}}, h.broken
}

func (h *host) Press(s warmpool.Skip) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.did("press %s", s.Reason)
}

func (h *host) Shed(_ context.Context, reserved bool) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, list := range []*[]int64{&h.warm, &h.kept} {
		if len(*list) > 0 && (list == &h.warm || reserved) {
			h.free += (*list)[0]
			*list = (*list)[1:]
			h.did("warm goes, reserved %v", list == &h.kept)
			return true, nil
		}
	}
	return false, nil
}

func (h *host) collect(_ context.Context, need int64) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(h.garbage, need)
	h.garbage, h.free = h.garbage-n, h.free+n
	if n > 0 {
		h.did("collected %d", n)
	}
	return n, nil
}

func (h *host) measurePods(context.Context) ([]Pod, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pass()
	var list []Pod
	for uid, used := range h.pods {
		list = append(list, Pod{UID: uid, Name: string(uid), Used: Amounts{Disk: used}, EndsBy: h.ends[uid]})
	}
	return list, nil
}

func (h *host) evict(uid types.UID, _ string, grace time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ends == nil {
		h.ends = map[types.UID]time.Time{}
	}
	if end := time.Now().Add(grace); h.ends[uid].IsZero() || end.Before(h.ends[uid]) {
		h.ends[uid] = end
	}
	h.did("pod %s goes in %s", uid, grace)
}

func (h *host) set(free int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = free
}

// since returns what was done, and forgets it.
func (h *host) since() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := strings.Join(h.log, "; ")
	h.log = nil
	return s
}

func startManager(t *testing.T, h *host, change ...func(*Options)) *Manager {
	t.Helper()
	opts := Options{
		Measure: h.measure, Disk: Floors{Refill: 200, Free: 100, Hard: Amount{Bytes: 20}}, Memory: Floors{Free: 100}, Transition: time.Minute,
		Supply: h, CollectSnapshots: h.collect, CollectImages: nil, Pods: h.measurePods, Evict: h.evict,
		Changed: func() { h.mu.Lock(); h.changes++; h.mu.Unlock() },
	}
	for _, f := range change {
		f(&opts)
	}
	m, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func short(t *testing.T, m *Manager) bool {
	t.Helper()
	p, err := m.Pressure()
	if err != nil {
		t.Fatal(err)
	}
	return p.Disk.Short
}

// Each step is measured before the next, and no step more is taken than it needs.
func TestRelief(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 1000, warm: []int64{5, 5, 5}, kept: []int64{5}, garbage: 60, pods: map[types.UID]int64{"small": 10, "big": 30}}
		m := startManager(t, h)
		pass(3 * time.Second)
		if got := h.since(); got != "" || short(t, m) {
			t.Errorf("with room: %s", got)
		}
		h.set(150)
		pass(3 * time.Second)
		if got := h.since(); got != "press DiskPressure" || short(t, m) {
			t.Errorf("below the floor of refills: %s", got)
		}
		h.set(99)
		pass(10 * time.Second)
		if got := h.since(); got != "warm goes, reserved false; warm goes, reserved false; warm goes, reserved false" || short(t, m) {
			t.Errorf("below the floor: %s, short %v", got, short(t, m))
		}
		h.set(90) // no warm machine any more: what lacks is collected, and no more
		pass(10 * time.Second)
		if got := h.since(); got != "collected 20" || short(t, m) || h.changes != 0 {
			t.Errorf("with garbage: %s, short %v", got, short(t, m))
		}
		h.set(50)
		pass(2 * time.Minute)
		if got := h.since(); !strings.HasPrefix(got, "collected ") || !short(t, m) || len(h.kept) != 1 || len(h.pods) != 2 {
			t.Errorf("without: %s, short %v, %+v", got, short(t, m), h)
		}
		h.garbage = 0
		h.set(0)
		pass(10 * time.Second)
		if got := h.since(); got != "warm goes, reserved true; pod big goes in 1s" || !short(t, m) {
			t.Errorf("below the hard threshold: %s, short %v", got, short(t, m))
		}
		// Over, but not by the margin; then by it, but the pools wait.
		h.set(109)
		pass(5 * time.Second)
		if !short(t, m) {
			t.Error("the shortage is over without a margin")
		}
		before := h.changes
		h.set(1000)
		pass(5 * time.Second)
		if got := h.since(); got != "" || short(t, m) || h.changes == before {
			t.Errorf("with room again: %s, short %v", got, short(t, m))
		}
		pass(time.Minute)
		if got := h.since(); got != "press " {
			t.Errorf("after the transition period: %s", got)
		}
		if len(h.pods) != 1 {
			t.Errorf("pods %v", h.pods)
		}
	})
}

// What fills the disk is not the pods': they go on, and the node says so.
func TestNobodyInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{pods: map[types.UID]int64{"a": 9, "b": 9}}
		m := startManager(t, h)
		pass(time.Hour)
		if h.changes != 1 {
			t.Errorf("the node's status was looked at %d times", h.changes)
		}
		p, err := m.Pressure()
		if err != nil || !p.Disk.Short || !strings.Contains(p.Disk.Message, "would not") || len(h.pods) != 2 {
			t.Errorf("%+v, %v, pods %v", p.Disk, err, h.pods)
		}
		// A pod that grows to what lacks is ended at the next look for it.
		h.mu.Lock()
		h.pods["b"] = 30
		h.mu.Unlock()
		pass(2 * time.Minute)
		if got := h.since(); !strings.HasSuffix(got, "pod b goes in 1s") {
			t.Error(got)
		}
	})
}

// A host that cannot be measured is left as it is, and taken up again.
func TestNotMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 50}
		m := startManager(t, h)
		pass(5 * time.Second)
		h.mu.Lock()
		h.broken, h.free = errors.New("stale handle"), 1000
		h.mu.Unlock()
		pass(time.Hour)
		if got := h.since(); got != "press DiskPressure" || !short(t, m) {
			t.Errorf("%s, short %v", got, short(t, m))
		}
		h.mu.Lock()
		h.broken = nil
		h.mu.Unlock()
		pass(5 * time.Second)
		if got := h.since(); got != "press " || short(t, m) {
			t.Errorf("%s, short %v", got, short(t, m))
		}
	})
}

// A host that could never be measured is not said to have enough.
func TestNeverMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startManager(t, &host{broken: errors.New("stale handle")})
		pass(time.Minute)
		if p, err := m.Pressure(); err == nil {
			t.Errorf("it says %+v", p)
		}
	})
}

// Pools say what keeps them from being filled now, not what did at first.
func TestAnotherShortage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 1000, memory: 50}
		startManager(t, h)
		pass(5 * time.Second)
		h.mu.Lock()
		h.free, h.memory = 150, 0
		h.mu.Unlock()
		pass(2 * time.Minute)
		h.set(1000)
		pass(5 * time.Second)
		if got := h.since(); got != "press MemoryPressure; press DiskPressure; press " {
			t.Error(got)
		}
	})
}

// Before it runs, it says what it measures.
func TestBeforeRun(t *testing.T) {
	h := &host{free: 50}
	m, err := New(Options{Measure: h.measure, Disk: Floors{Free: 100}, Supply: h, Pods: h.measurePods, Evict: h.evict})
	if err != nil {
		t.Fatal(err)
	}
	if !short(t, m) || len(h.log) != 0 {
		t.Errorf("it did %v", h.log)
	}
	if _, err := New(Options{}); err == nil {
		t.Error("nothing is required")
	}
}

// A shortage that comes again is met from the first step on, however soon it comes.
func TestNextShortage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{free: 50, garbage: 10}
		m := startManager(t, h)
		pass(5 * time.Second)
		if got := h.since(); got != "press DiskPressure; collected 10" || !short(t, m) {
			t.Errorf("%s, short %v", got, short(t, m))
		}
		h.set(1000)
		pass(5 * time.Second)
		h.mu.Lock()
		h.garbage, h.free = 500, 50
		h.mu.Unlock()
		pass(5 * time.Second)
		if got := h.since(); got != "collected 60" || short(t, m) {
			t.Errorf("%s, short %v", got, short(t, m))
		}
	})
}
