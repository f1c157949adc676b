// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// recoveries keeps what was observed of recoveries; nothing else is.
type recoveries struct {
	Observer
	took []time.Duration
}

func (s *recoveries) ObserveSample(sample Sample, took time.Duration) {
	if sample == SampleRecovery {
		s.took = append(s.took, took)
	}
}

// The recovery is over with the last machine, not before all records were read, and told once.
func TestRecoveryIsMeasured(t *testing.T) {
	for name, tc := range map[string]struct {
		machines int
		first    bool // the first machine is there before all records were read
		want     []time.Duration
	}{
		"nothing was left":            {},
		"one":                         {machines: 1, want: []time.Duration{time.Second}},
		"one, before all are read":    {machines: 1, first: true, want: []time.Duration{time.Second}},
		"three":                       {machines: 3, want: []time.Duration{3 * time.Second}},
		"three, one before the other": {machines: 3, first: true, want: []time.Duration{3 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := &recoveries{}
				r := newRecovery(Options{Began: time.Now(), Logger: slog.New(slog.DiscardHandler), Observer: seen})
				settle := func() {
					time.Sleep(time.Second) // of the bubble's clock
					r.settle()
				}
				left := tc.machines
				for range tc.machines {
					r.expect()
				}
				if tc.first {
					settle()
					left--
				}
				r.settle() // all records were read
				for range left {
					settle()
				}
				if !slices.Equal(seen.took, tc.want) {
					t.Errorf("observed %v, want %v", seen.took, tc.want)
				}
			})
		})
	}
	var none *recovery
	none.expect()
	none.settle()
}

// A machine that is lost already is not to be adopted: a pod whose record cannot be read may be
// ended hours after the recovery.
func TestRecoveryCountsWhatIsAdopted(t *testing.T) {
	for _, tc := range []struct {
		name    string
		machine machineState
		want    int64
	}{
		{"none", machineState{}, 0},
		{"left", machineState{id: "pod-a-1", adopt: true}, 1},
		{"lost", machineState{id: "pod-a-1", adopt: true, lost: &loss{}}, 0},
	} {
		env := &environment{log: slog.New(slog.DiscardHandler), recovery: newRecovery(Options{Began: time.Now()})}
		w := newWorker(env, state{pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "a"}}, machine: tc.machine})
		if got := env.recovery.machines.Load(); got != tc.want {
			t.Errorf("%s: %d machines are waited for, want %d", tc.name, got, tc.want)
		}
		// It is the pod's before the worker has taken its first step: who looks for machines that
		// are nobody's does not wait for that.
		if r := w.view.Load().request; (r != nil) != (tc.machine.id != "") || r != nil && (r.MachineID != tc.machine.id || r.PodUID != "a") {
			t.Errorf("%s: it claims %+v", tc.name, r)
		}
	}
}
