// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A node that is short of something does not wait for the hour that a pod has which ends already.
func TestEvictWhatEndsAlready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for given, want := range map[time.Duration]time.Duration{time.Hour: time.Minute, time.Second: time.Second} {
			since := time.Now()
			w := newWorker(&environment{log: slog.New(slog.DiscardHandler)}, state{
				pod: &corev1.Pod{}, kill: &podKill{reason: reasonDeadlineExceeded, ending: ending{since: since, grace: given}},
			})
			w.evict(reasonEvicted, "low on memory", time.Minute)
			for _, f := range w.take() {
				f(&w.s)
			}
			if left := w.s.kill.deadline().Sub(since); left != want || w.s.kill.reason != reasonDeadlineExceeded {
				t.Errorf("of %s it has %s left, for %s", given, left, w.s.kill.reason)
			}
		}
	})
}
