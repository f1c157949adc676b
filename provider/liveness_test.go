// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

func TestJudge(t *testing.T) {
	const none vm.State = "" // the hypervisor does not answer
	for _, c := range []struct {
		name string
		sighting
		want MachineHealth
	}{
		{"answers", sighting{0, false, vm.StateRunning}, MachineHealthy},
		{"answers, its hypervisor does not: active work goes on", sighting{0, false, none}, MachineHealthy},
		{"silent for a moment", sighting{29 * time.Second, false, vm.StateRunning}, MachineHealthy},
		{"silent for half the time", sighting{30 * time.Second, false, vm.StateRunning}, MachineSuspect},
		{"and its hypervisor as well", sighting{30 * time.Second, false, none}, MachineSuspect},
		{"silent until just before its time", sighting{time.Minute - 1, false, none}, MachineSuspect},
		{"silent for all its time", sighting{time.Minute, false, vm.StateRunning}, MachineStuck},
		{"and its hypervisor as well", sighting{time.Minute, false, none}, MachineStuck},
		{"paused for a moment", sighting{10 * time.Second, false, vm.StatePaused}, MachineHealthy},
		{"paused", sighting{time.Hour, false, vm.StatePaused}, MachineSuspect},
		{"silent, but nobody was there to listen", sighting{time.Hour, true, vm.StateRunning}, MachineHealthy},
		{"silent with its hypervisor, and nobody was there", sighting{time.Hour, true, none}, MachineHealthy},
		{"it has exited: whoever waits for that says so", sighting{time.Minute, false, vm.StateExited}, MachineStuck},
	} {
		if got := judge(c.sighting, time.Minute); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// rig is a machine that is watched, in a bubble.
type rig struct {
	*liveness
	silent, dead atomic.Bool // the agent, the hypervisor
	asked        atomic.Int64
	skew         atomic.Int64 // of the wall clock

	mu   sync.Mutex
	told []string // guarded by mu
}

// watch runs the watch of a machine with a minute's patience beside f.
func watch(t *testing.T, f func(*rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{liveness: newLiveness(time.Minute)}
		r.ask = func(ctx context.Context) error {
			r.asked.Add(1)
			for r.silent.Load() {
				if !sleep(ctx, time.Second) {
					return ctx.Err()
				}
			}
			return nil
		}
		r.look = func(ctx context.Context) (vm.State, error) {
			if r.dead.Load() {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return vm.StateRunning, nil
		}
		began := time.Now()
		r.tell = func(h MachineHealth, message string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, fmt.Sprintf("%s %s: %s", time.Since(began), h, message))
		}
		r.wall = func() time.Time { return time.Now().Round(0).Add(time.Duration(r.skew.Load())) }
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.beat(ctx) })
		wg.Go(func() { r.run(ctx) })
		f(r)
		cancel()
		wg.Wait()
	})
}

func (r *rig) want(t *testing.T, parts ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	ok := len(parts) == len(r.told)
	for i := range min(len(parts), len(r.told)) {
		ok = ok && strings.Contains(r.told[i], parts[i])
	}
	if !ok {
		t.Errorf("told %q, want %q", r.told, parts)
	}
}

func TestAnsweringMachineIsLeftAlone(t *testing.T) {
	watch(t, func(r *rig) {
		time.Sleep(24 * time.Hour)
		r.want(t)
		if n := r.asked.Load(); n < 24*60*6-10 || n > 24*60*6 {
			t.Errorf("asked %d times in a day, want every 10 s", n)
		}
	})
}

// TestShortStall is visible and changes nothing.
func TestShortStall(t *testing.T) {
	watch(t, func(r *rig) {
		r.silent.Store(true)
		time.Sleep(50 * time.Second)
		r.silent.Store(false)
		time.Sleep(time.Hour)
		r.want(t, "30s suspect: the machine's agent has not answered for 30s; its hypervisor answers that it is running; it is ended after 1m0s", "healthy: the machine answers again")
	})
}

func TestStuckMachine(t *testing.T) {
	watch(t, func(r *rig) {
		r.silent.Store(true)
		r.dead.Store(true)
		time.Sleep(time.Hour)
		r.want(t, "suspect", "stuck: the machine's agent has not answered for")
		if last := r.told[len(r.told)-1]; !strings.Contains(last, "its hypervisor does not answer either") || last[:3] != "1m0" && last[:3] != "1m5" {
			t.Errorf("told %q, want a minute and that the hypervisor does not answer", last)
		}
	})
}

// TestDeafAgent answers pings and lets nobody watch its containers: no use either.
func TestDeafAgent(t *testing.T) {
	watch(t, func(r *rig) {
		r.watching(true)
		time.Sleep(time.Hour)
		for range 100 {
			r.watching(false)
			time.Sleep(time.Second)
		}
		r.want(t, "1h0m30s suspect", "1h1m0s stuck")
	})
	watch(t, func(r *rig) { // broken and mended again and again is a bad line, not a stuck machine
		for range 100 {
			r.watching(false)
			time.Sleep(20 * time.Second)
			r.watching(true)
		}
		r.want(t)
	})
}

// TestHostSlept: a Mac whose lid was closed for a night finds no machine stuck, also one
// that was about to be; nor does a clock that was set.
func TestHostSlept(t *testing.T) {
	for _, by := range []time.Duration{8 * time.Hour, time.Hour} {
		watch(t, func(r *rig) {
			r.silent.Store(true)
			time.Sleep(58 * time.Second) // suspect, and at its end
			r.skew.Add(int64(by))
			time.Sleep(10 * time.Second)
			r.silent.Store(false)
			time.Sleep(time.Hour)
			r.want(t, "suspect", "healthy")
		})
	}
	watch(t, func(r *rig) { // set back: nothing begins anew, nothing ends early
		time.Sleep(time.Minute)
		r.skew.Add(-int64(time.Hour))
		time.Sleep(time.Hour)
		r.silent.Store(true)
		time.Sleep(2 * time.Minute)
		r.want(t, "suspect", "stuck")
	})
	watch(t, func(r *rig) { // a machine that is stuck all the same is found after the night
		r.silent.Store(true)
		time.Sleep(58 * time.Second)
		r.skew.Add(int64(8 * time.Hour))
		time.Sleep(time.Hour)
		r.want(t, "suspect", "healthy", "suspect", "stuck")
	})
}

// TestHypervisorThatCannotBeAsked is no reason for anything.
func TestHypervisorThatCannotBeAsked(t *testing.T) {
	watch(t, func(r *rig) {
		r.look = nil
		r.ask = func(context.Context) error { return errors.New("no route") }
		time.Sleep(time.Hour)
		r.want(t, "30s suspect: the machine's agent has not answered for 30s; it is ended after 1m0s", "1m0s stuck: the machine's agent has not answered for 1m0s: it is stuck")
	})
}

// TestHealthIsTold: each health has its event, but stuck, which is told by the loss.
func TestHealthIsTold(t *testing.T) {
	if healthEvents[MachineSuspect] == "" || healthEvents[MachineHealthy] == "" || slices.Contains([]string{healthEvents[MachineSuspect], healthEvents[MachineHealthy]}, reasonMachineStuck) {
		t.Errorf("events are %v", healthEvents)
	}
}
