// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func hook(command ...string) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: command}}
}

func TestPostStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		// The next container waits for the hook, and the first does not show as running before.
		p := pod("p", []string{"hang"}, []string{"hang"})
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: hook("sleep", "700ms")}
		w.create(p)
		w.await("p", "has its hook", func(p *corev1.Pod) bool {
			return strings.HasPrefix(status(p, "c0").ContainerID, "firkin://") && status(p, "c0").State.Waiting != nil && status(p, "c1").ContainerID == ""
		})
		got := w.await("p", "is ready", ready)
		first, second := status(got, "c0").State.Running.StartedAt, status(got, "c1").State.Running.StartedAt
		if second.Sub(first.Time) < 700*time.Millisecond {
			t.Errorf("the second container began %s after the first", second.Sub(first.Time))
		}
		// One that fails ends its container; the pod goes on without it.
		bad := pod("bad", []string{"graceful", "0"}, []string{"hang"})
		bad.Spec.RestartPolicy = corev1.RestartPolicyAlways
		bad.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: hook("exit", "1")}
		w.create(bad)
		w.await("bad", "restarts its first container", func(p *corev1.Pod) bool {
			return status(p, "c0").RestartCount >= 1 && status(p, "c1").State.Running != nil && p.Status.Phase == corev1.PodRunning
		})
		if !w.events.has("bad", "Warning", "FailedPostStartHook") {
			t.Errorf("no event:\n%s", w.events)
		}
		// A pod that is deleted does not wait for its hook.
		slow := pod("slow", []string{"graceful", "0"})
		slow.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: hook("sleep", "1h")}
		w.create(slow)
		w.await("slow", "has its hook", func(p *corev1.Pod) bool { return strings.HasPrefix(status(p, "c0").ContainerID, "firkin://") })
		began := time.Now()
		w.delete("slow", ptr(int64(30)))
		w.awaitGone("slow")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
		w.delete("bad", ptr(int64(0)))
		w.delete("p", ptr(int64(0)))
		w.awaitNothing()
	})
}

func TestPreStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		hooked := func(name string, h *corev1.LifecycleHandler, command ...string) {
			p := pod(name, command)
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: h}
			w.create(p)
		}
		hooked("waits", hook("sleep", "1s"), "graceful", "0")
		hooked("fails", hook("exit", "1"), "graceful", "0")
		hooked("hangs", hook("sleep", "1h"), "graceful", "0")
		hooked("forced", hook("sleep", "1h"), "graceful", "0")
		hooked("hurried", hook("sleep", "1h"), "graceful", "0")
		for _, n := range []string{"waits", "fails", "hangs", "forced", "hurried"} {
			w.await(n, "is ready", ready)
		}
		for _, tt := range []struct {
			name        string
			grace       int64
			least, most time.Duration
		}{
			{"waits", 30, time.Second, 10 * time.Second}, // the signal comes after the hook
			{"fails", 30, 0, 10 * time.Second},
			{"hangs", 2, 2 * time.Second, 10 * time.Second}, // the hook has the grace and no more
			{"forced", 0, 0, 5 * time.Second},
		} {
			began := time.Now()
			w.delete(tt.name, &tt.grace)
			w.awaitGone(tt.name)
			if tt.name == "forced" {
				w.eventually("one machine is left", func() bool { return len(w.supply.ids()) == 1 }, nil)
			}
			if took := time.Since(began); took < tt.least || took > tt.most {
				t.Errorf("%s took %s", tt.name, took)
			}
		}
		for _, n := range []string{"fails", "hangs"} {
			if !w.events.has(n, "Warning", "FailedPreStopHook") {
				t.Errorf("no event of %s:\n%s", n, w.events)
			}
		}
		if w.events.has("forced", "FailedPreStopHook") || w.events.has("waits", "FailedPreStopHook") {
			t.Errorf("an event too much:\n%s", w.events)
		}
		// A second deletion with less grace ends the hook.
		w.delete("hurried", ptr(int64(3600)))
		w.eventually("it is being stopped", func() bool { return w.events.has("hurried", "Killing") }, nil)
		began := time.Now()
		w.delete("hurried", ptr(int64(1)))
		w.awaitGone("hurried")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
		w.awaitNothing()
	})
}
