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
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
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

// TestServerAwayAtTheStart has a process that begins while the API server is gone, from the
// beginning, or since it has listed the pods and the node is about to be registered. It waits for as long as it
// takes: whatever happened to pods meanwhile, no machine is ended or made. Then it adopts those of
// pods that exist, and ends that of the pod which does not any more.
func TestServerAwayAtTheStart(t *testing.T) {
	// client-go slows down who logs errors, by a clock that began outside of the bubble.
	handlers := utilruntime.ErrorHandlers
	utilruntime.ErrorHandlers = nil
	defer func() { utilruntime.ErrorHandlers = handlers }()
	for name, refuses := range map[string]func(clienttesting.Action) bool{
		"from the beginning": func(clienttesting.Action) bool { return true },
		"when it has only nodes left to ask for": func(a clienttesting.Action) bool {
			return a.GetResource().Resource == "nodes" && a.GetVerb() != "list" && a.GetVerb() != "watch"
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			var gone atomic.Bool
			var refused atomic.Int64
			w.client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
				if !gone.Load() || !refuses(a) {
					return false, nil, nil
				}
				refused.Add(1)
				return true, nil, errors.New("connection refused")
			})
			w.client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
				if !gone.Load() || !refuses(a) {
					return false, nil, nil
				}
				return true, nil, errors.New("connection refused")
			})
			first := w.run()
			w.create(pod("stays", []string{"hang"}))
			deleted := w.create(pod("deleted", []string{"hang"}))
			for _, name := range []string{"stays", "deleted"} {
				w.await(name, "is ready", ready)
			}
			before := w.supply.ids()
			first.stop()
			gone.Store(true)
			if name == "from the beginning" { // and by a server that nobody can ask
				if err := w.client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), deleted.Namespace, deleted.Name); err != nil {
					t.Fatal(err)
				}
			}
			second := w.begin()
			time.Sleep(2 * time.Minute)
			select {
			case err := <-second.done:
				t.Fatalf("%s: the process has ended: %v", name, err)
			case <-second.up:
				t.Errorf("%s: the node is said to be ready", name)
			default:
			}
			if now := w.supply.ids(); !slices.Equal(now, before) {
				t.Errorf("%s: machines are %q, were %q", name, now, before)
			}
			if refused.Load() < 4 {
				t.Errorf("%s: the server was asked %d times", name, refused.Load())
			}
			gone.Store(false)
			back := time.Now()
			<-second.up
			if took := time.Since(back); took > time.Minute {
				t.Errorf("%s: the node is ready %s after the server was back", name, took)
			}
			if name == "from the beginning" {
				w.eventually("the machine of the deleted pod is gone", func() bool { return len(w.supply.ids()) == 1 }, nil)
			}
			if s := w.await("stays", "is ready", ready); s.Status.ContainerStatuses[0].RestartCount != 0 || w.supply.acquired != 2 {
				t.Errorf("%s: the pod that stayed says %+v; %d machines were made", name, s.Status, w.supply.acquired)
			}
			second.stop()
		})
	}
}
