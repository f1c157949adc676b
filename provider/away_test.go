// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// TestServerAway has an API server that refuses everything for two minutes and for half an
// hour. Pods go on and end meanwhile, nothing is deleted, and seconds after it is
// back its statuses are right, though each was told in vain many times.
func TestServerAway(t *testing.T) {
	for _, away := range []time.Duration{2 * time.Minute, 30 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			var gone atomic.Bool
			var refused atomic.Int64
			w.client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
				if !gone.Load() {
					return false, nil, nil
				}
				refused.Add(1)
				return true, nil, errors.New("connection refused")
			})
			p := w.run()
			w.create(pod("stays", []string{"hang"}))
			w.create(pod("ends", []string{"do", "tick 60 1s"}))
			again := pod("restarts", []string{"do", "tick 60 1s"})
			again.Spec.RestartPolicy = corev1.RestartPolicyAlways
			w.create(again)
			for _, name := range []string{"stays", "ends", "restarts"} {
				w.await(name, "is ready", ready)
			}
			before := w.supply.ids()
			gone.Store(true)
			time.Sleep(away)
			// The machine of the pod that ended is given back, as on every day; no other.
			now := w.supply.ids()
			if len(now) != 2 || slices.ContainsFunc(now, func(id string) bool { return !slices.Contains(before, id) }) {
				t.Errorf("away for %s: machines are %q, were %q", away, now, before)
			}
			if refused.Load() < int64(away/(10*time.Second)) {
				t.Errorf("away for %s: the server was asked %d times", away, refused.Load())
			}
			gone.Store(false)
			back := time.Now()
			w.awaitPhase("ends", corev1.PodSucceeded)
			w.await("restarts", "shows that it was restarted", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount >= 1 })
			if took := time.Since(back); took > 6*time.Second {
				t.Errorf("away for %s: statuses are right %s after it was back", away, took)
			}
			if s := w.await("stays", "is ready", ready); s.Status.ContainerStatuses[0].RestartCount != 0 || s.DeletionTimestamp != nil {
				t.Errorf("away for %s: the pod that had nothing to do says %+v", away, s.Status)
			}
			if strings.Contains(w.events.String(), "Killing") {
				t.Errorf("away for %s: something was killed:\n%s", away, w.events)
			}
			p.stop()
		})
	}
}
