// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
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
