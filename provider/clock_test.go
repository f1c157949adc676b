// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kuberecord "k8s.io/client-go/tools/record"

	"github.com/vk-firkin/vk-firkin/vm/clock/clocktest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// jumps are what a clock is set by while the node process runs.
var jumps = []time.Duration{time.Hour, -time.Hour}

// TestClockJumpEndsNoPod: a pod with a deadline has its time by the monotonic clock, also
// one that an earlier process or the API told of.
func TestClockJumpEndsNoPod(t *testing.T) {
	now := time.Now()
	started := metav1.NewTime(now.Round(0).Add(-time.Minute))
	deadline := int64(600)
	fresh := &corev1.Pod{Spec: corev1.PodSpec{ActiveDeadlineSeconds: &deadline}}
	reported := fresh.DeepCopy()
	reported.Status.StartTime = &started
	e := environment{}
	recorded := e.restoreState(t.Context(), &record{Pod: fresh.DeepCopy(), StartTime: started.Time, Refusal: &refusal{}}, now)
	recorded.refusal = nil
	for name, s := range map[string]state{"seen now": newState(fresh, now), "reported": newState(reported, now), "of an earlier process": recorded} {
		for _, jump := range jumps {
			var d decision
			s.plan = &plan{}
			decideSyncing(&s, clocktest.Jump(t, now.Add(time.Second), jump), &d)
			if d.kill != nil || d.finish {
				t.Errorf("%s: a clock set by %s ends the pod", name, jump)
			}
			d = decision{}
			decideSyncing(&s, clocktest.Jump(t, now.Add(11*time.Minute), jump), &d)
			if d.kill == nil || d.kill.reason != reasonDeadlineExceeded {
				t.Errorf("%s: with a clock set by %s the deadline never comes", name, jump)
			}
		}
	}
}

// TestClockJumpAndEndings: grace periods that an earlier process began neither end at once
// nor last an hour longer.
func TestClockJumpAndEndings(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name  string
		since time.Time
		left  time.Duration
	}{
		{"10 s ago", now.Round(0).Add(-10 * time.Second), 50 * time.Second},
		{"in an hour: the clock was set back", now.Round(0).Add(time.Hour), time.Minute},
		{"an hour ago: it was set forward, or the node was away", now.Round(0).Add(-time.Hour), time.Minute - time.Hour},
	} {
		kill := (&killRecord{Since: c.since, Grace: time.Minute}).state(now)
		stop := (&stopRecord{Since: c.since, Grace: time.Minute}).state(now)
		for _, jump := range jumps {
			at := clocktest.Jump(t, now, jump)
			if l := kill.deadline().Sub(at); l != c.left {
				t.Errorf("kill %s: %s left after a jump by %s, want %s", c.name, l, jump, c.left)
			}
			if l := stop.deadline().Sub(at); l != c.left {
				t.Errorf("stop %s: %s left after a jump by %s, want %s", c.name, l, jump, c.left)
			}
		}
	}
}

// TestClockJumpAndBackoff: a crash loop goes on at its pace, whatever the guest's clock or
// the node's says.
func TestClockJumpAndBackoff(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name            string
		since, finished time.Time
		most            time.Duration
	}{
		{"no jump", now.Add(-time.Second), now.Round(0), 10 * time.Second},
		{"set back after the run began", clocktest.Jump(t, now.Add(-time.Second), time.Hour), now.Round(0), 10 * time.Second},
		{"set forward after the run began", clocktest.Jump(t, now.Add(-time.Second), -time.Hour), now.Round(0), 10 * time.Second},
		{"a guest that is an hour behind", now.Add(-time.Second), now.Round(0).Add(-time.Hour), 10 * time.Second},
		{"recorded, then set back", now.Round(0).Add(time.Hour), now.Round(0), 10 * time.Second},
	} {
		env := &environment{log: slog.New(slog.DiscardHandler), events: events{kuberecord.NewFakeRecorder(10)}}
		w := newWorker(env, state{pod: &corev1.Pod{}, containers: []*containerState{{name: "c", backoff: backoff{Delay: 10 * time.Second, Since: c.since},
			exit: &termination{FinishedAt: c.finished}}}})
		w.prepareRestart(0, now)
		for _, jump := range jumps {
			if wait := w.s.containers[0].notBefore.Sub(clocktest.Jump(t, now, jump)); wait > c.most {
				t.Errorf("%s: the next run waits %s after a jump by %s, want at most %s", c.name, wait, jump, c.most)
			}
		}
	}
	far := now.Round(0).Add(time.Hour)
	c := restoreContainer(&record{Containers: []containerRecord{{Name: "c", NotBefore: far, Backoff: backoff{Delay: time.Second, Since: far}}}}, "c", now)
	if wait := c.notBefore.Sub(now); wait > backoffMax {
		t.Errorf("after a restart the next run waits %s", wait)
	}
	if c.backoff.Since.After(now) {
		t.Errorf("the last run began in %s", c.backoff.Since.Sub(now))
	}
}

// TestGuestClockApart: the beginning of a run that this process asked for is believed within
// the guest's slack only, as initial delays of probes run from it.
func TestGuestClockApart(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name  string
		asked time.Time
		says  time.Duration
		want  time.Duration
	}{
		{"in step", now.Add(-2 * time.Second), -time.Second, -time.Second},
		{"a little behind", now.Add(-2 * time.Second), -30 * time.Second, -30 * time.Second},
		{"an hour behind: this host's clock was set forward", now.Add(-2 * time.Second), -time.Hour, 0},
		{"an hour ahead: it was set back", now.Add(-2 * time.Second), time.Hour, 0},
		{"adopted: it may have begun long ago", time.Time{}, -time.Hour, -time.Hour},
	} {
		st := &agentv1.ContainerStatus{StartedUnixNano: now.Add(c.says).UnixNano()}
		if got := startOf(&containerState{asked: c.asked}, st, now).Sub(now); got.Round(time.Second) != c.want {
			t.Errorf("%s: began %s, want %s", c.name, got, c.want)
		}
	}
}

func TestTokenLife(t *testing.T) {
	for _, c := range []struct {
		name              string
		left, asked, want time.Duration
	}{
		{"as asked", time.Hour, time.Hour, time.Hour},
		{"less than asked", 30 * time.Minute, time.Hour, 30 * time.Minute},
		{"this host is an hour behind the API server", 2 * time.Hour, time.Hour, time.Hour},
		{"this host is two hours ahead of it", -time.Hour, time.Hour, time.Hour},
		{"a week", 7 * 24 * time.Hour, 7 * 24 * time.Hour, maxTokenLife},
	} {
		if got := tokenLife(c.left, c.asked); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestClockJumpKeepsPressure: a pressure that has just ended is not over because of a clock.
func TestClockJumpKeepsPressure(t *testing.T) {
	now := time.Now()
	for _, jump := range jumps {
		h := pressureHold{period: 5 * time.Minute}
		h.settle(Pressure{Disk: Measured{Short: true}}, now)
		if !h.settle(Pressure{}, clocktest.Jump(t, now.Add(time.Minute), jump)).Disk.Short {
			t.Errorf("a clock set by %s ends it", jump)
		}
		if h.settle(Pressure{}, clocktest.Jump(t, now.Add(6*time.Minute), jump)).Disk.Short {
			t.Errorf("with a clock set by %s it never ends", jump)
		}
	}
}
