// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A pod that the node ends is Failed with the reason, its containers had their grace, and
// its object stays.
func TestEviction(t *testing.T) {
	w := newWorld(t)
	pr := w.run()
	polite := w.create(inits(pod("polite", []string{"graceful", "0"}), []string{"side!", "graceful", "0"}))
	stubborn := w.create(pod("stubborn", []string{"hang"}))
	forced := pod("forced", []string{"hang"})
	forced.Spec.RestartPolicy = corev1.RestartPolicyAlways
	forced = w.create(forced)
	for _, n := range []string{"polite", "stubborn", "forced"} {
		w.await(n, "is ready", ready)
	}
	began := time.Now()
	pr.p.Evict(polite.UID, "Evicted", "the disk is full", time.Hour)
	pr.p.Evict(polite.UID, "Other", "too late", 0) // the first reason stays
	pr.p.Evict(forced.UID, "Evicted", "the disk is full", 0)
	pr.p.Evict(stubborn.UID, "Evicted", "the disk is full", 3*time.Second)
	for _, n := range []string{"polite", "stubborn", "forced"} {
		w.eventually(n+" is being evicted", func() bool { return w.events.has(n, "Evicted", "the disk is full") }, nil)
	}
	pr.stop() // what was begun goes on in the next process
	w.run()
	for _, n := range []string{"polite", "stubborn", "forced"} {
		p := w.awaitPhase(n, corev1.PodFailed)
		if p.Status.Reason != "Evicted" || p.Status.Message != "the disk is full" || ready(p) || status(p, "c0").State.Terminated == nil || status(p, "c0").RestartCount != 0 {
			t.Errorf("%s: status is %+v", n, p.Status)
		}
		if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonTerminationByKubelet
		}) {
			t.Errorf("%s: conditions are %+v", n, p.Status.Conditions)
		}
	}
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("a container that ignores SIGTERM was gone after %s, before its grace", took)
	}
	w.eventually("the machines are released", func() bool { return len(w.supply.ids()) == 0 }, nil)
	for _, n := range []string{"polite", "stubborn", "forced"} {
		w.delete(n, nil)
	}
	w.awaitNothing()
}

// One container can be ended without its pod.
func TestStopContainer(t *testing.T) {
	w := newWorld(t)
	pr := w.run()
	p := pod("p", []string{"graceful", "3"}, []string{"hang"})
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	p = w.create(p)
	w.await("p", "is ready", ready)
	pr.p.StopContainer(p.UID, "c0", "Container c0 failed liveness probe, will be restarted", time.Hour)
	got := w.await("p", "is ready again", func(p *corev1.Pod) bool { return ready(p) && status(p, "c0").RestartCount == 1 })
	if x := status(got, "c0").LastTerminationState.Terminated; x == nil || x.ExitCode != 3 || status(got, "c1").RestartCount != 0 {
		t.Errorf("status is %+v", got.Status)
	}
	if !w.events.has("p", "Killing", "failed liveness probe") {
		t.Errorf("no event:\n%s", w.events)
	}
	// What does not obey is killed, at once when the grace is shortened to nothing.
	pr.p.StopContainer(p.UID, "c1", "stop", time.Hour)
	pr.p.StopContainer(p.UID, "c1", "stop", 0)
	got = w.await("p", "is ready again", func(p *corev1.Pod) bool { return ready(p) && status(p, "c1").RestartCount == 1 })
	if x := status(got, "c1").LastTerminationState.Terminated; x == nil || x.ExitCode != 137 {
		t.Errorf("status is %+v", got.Status)
	}
	w.delete("p", ptr(int64(0)))
	w.awaitNothing()
}
