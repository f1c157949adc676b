// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/warmpool"
)

func TestJudgePod(t *testing.T) {
	for _, c := range []struct {
		name                           string
		readable, gone, deleting, kept bool
		want                           podVerdict
	}{
		{"runs on", true, false, false, false, podRecover},
		{"runs on, and its machine is there", true, false, false, true, podRecover},
		{"is being deleted: by its own grace", true, false, true, false, podRecover},
		{"was deleted meanwhile", true, true, false, false, podCleanup},
		{"was deleted meanwhile, and its machine is there", true, true, false, true, podCleanup},
		{"cannot be read, its machine lives", false, false, false, true, podHold},
		{"cannot be read, nothing lives", false, false, false, false, podAnew},
		{"cannot be read, is being deleted", false, false, true, true, podCleanup},
		{"cannot be read, is being deleted, nothing lives", false, false, true, false, podCleanup},
		{"cannot be read, was deleted", false, true, false, true, podCleanup},
		{"cannot be read, was deleted, nothing lives", false, true, false, false, podCleanup},
	} {
		if got := judgePod(c.readable, c.gone, c.deleting, c.kept); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	for policy, want := range map[corev1.RestartPolicy]bool{corev1.RestartPolicyNever: true, corev1.RestartPolicyAlways: false, corev1.RestartPolicyOnFailure: false} {
		p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: policy}}
		if hasRun(p) {
			t.Errorf("%s: a pod that never ran", policy)
		}
		p.Status.Phase = corev1.PodRunning
		if hasRun(p) != want {
			t.Errorf("%s: %v, want %v", policy, hasRun(p), want)
		}
		p.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Name: "waits"}, {Name: "runs", ContainerID: "firkin://runs-0"}}}
		if hasRun(p) != want {
			t.Errorf("%s, with one container that waits and one that runs: %v, want %v", policy, hasRun(p), want)
		}
	}
}

// An orphan is ended when it was seen twice, some time apart, without a break.
func TestSightings(t *testing.T) {
	t0 := time.Unix(1000, 0)
	orphan := func(ids ...string) (f []warmpool.Finding) {
		for _, id := range ids {
			f = append(f, warmpool.Finding{Machine: id, Verdict: warmpool.VerdictCleanup})
		}
		return f
	}
	kept := warmpool.Finding{Machine: "a", Verdict: warmpool.VerdictQuarantine}
	unasked := warmpool.Finding{Machine: "a", Verdict: warmpool.VerdictRetry}
	s := sightings{}
	for i, step := range []struct {
		after    time.Duration
		findings []warmpool.Finding
		want     []string
	}{
		{0, orphan("a"), nil},
		{confirmAfter - 1, orphan("a", "b"), nil},
		{1, orphan("a", "b"), []string{"a"}},
		{time.Hour, orphan("b"), []string{"b"}},
		{time.Hour, orphan("a"), nil}, // it was not there in between
		{time.Hour, []warmpool.Finding{kept}, nil},
		{time.Hour, orphan("a"), nil},
		{time.Hour, []warmpool.Finding{unasked}, nil},
		{time.Hour, orphan("a"), nil},
		{time.Hour, orphan("a"), []string{"a"}},
		{time.Hour, nil, nil},
	} {
		t0 = t0.Add(step.after)
		if got := s.due(step.findings, confirmAfter, t0); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
	if len(s) != 0 {
		t.Errorf("left: %v", s)
	}
}

func TestNextLook(t *testing.T) {
	const every = 8 * time.Minute
	different := map[time.Duration]bool{}
	for range 100 {
		d := nextLook(every, false, 0)
		if d < 7*time.Minute || d > 9*time.Minute {
			t.Fatalf("%s", d)
		}
		different[d] = true
	}
	if len(different) < 2 {
		t.Error("all nodes look at the same time")
	}
	for failures, want := range map[int]time.Duration{1: 2 * time.Second, 2: 4 * time.Second, 50: time.Minute} {
		if d := nextLook(every, false, failures); d != want {
			t.Errorf("after %d failures %s, want %s", failures, d, want)
		}
	}
	if d := nextLook(every, true, 0); d != confirmAfter {
		t.Errorf("to be confirmed: %s", d)
	}
	if d := nextLook(every, true, 50); d != time.Minute {
		t.Errorf("what cannot be reaped is tried again after %s", d)
	}
	if d := nextLook(time.Millisecond, true, 9); d > 2*time.Millisecond {
		t.Errorf("later than asked for: %s", d)
	}
}
