// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	kuberecord "k8s.io/client-go/tools/record"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

type reaper struct{ Supply }

func (reaper) Reap(context.Context, string) error { return nil }

// No container outlives its machine, whoever said last that it runs.
func TestNothingRunsWithoutItsMachine(t *testing.T) {
	s := testState(corev1.RestartPolicyAlways, 3)
	s.machine.step, s.machine.lost = machineNone, &loss{reason: reasonMachineDied, message: "crashed"}
	s.containers[0].step = containerRunning
	s.containers[1].step, s.containers[1].everStarted = containerUnknown, true
	s.containers[2].step = containerUnknown
	w := newWorker(&environment{log: slog.New(slog.DiscardHandler), supply: reaper{}}, *s)
	w.release(t.Context())
	w.acts.Wait()
	for _, f := range w.take() {
		f(&w.s)
	}
	for _, c := range w.s.containers { // the last was begun by an earlier process, and may have run
		if c.step != containerExited || c.exit.ExitCode != 137 || c.exit.Reason != reasonMachineDied {
			t.Errorf("container %s is at step %d, exit %+v", c.name, c.step, c.exit)
		}
	}
}

type missingLogs struct {
	Logs
	copies *atomic.Int32
}

func (m missingLogs) Copy(context.Context, ContainerRef, Dial) error {
	m.copies.Add(1)
	return ErrNotFound
}

type noLease struct{ Lease }

// The output of a run that was removed from the machine is not asked for again.
func TestRemovedRunIsNotCopiedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := missingLogs{copies: &atomic.Int32{}}
		s := testState(corev1.RestartPolicyAlways, 1)
		w := newWorker(&environment{log: slog.New(slog.DiscardHandler), logs: logs}, *s)
		w.hold = &machineHold{lease: noLease{}}
		w.hold.ctx, w.hold.stop = context.WithCancel(t.Context())
		defer w.letGo()
		c := w.s.containers[0]
		c.step = containerExited
		w.copyOutput(c)
		time.Sleep(time.Hour)
		for _, f := range w.take() {
			f(&w.s)
		}
		if n := logs.copies.Load(); n != 1 || c.copying || !c.drained {
			t.Errorf("%d copies, copying %v, drained %v", n, c.copying, c.drained)
		}
	})
}

// What is reported after the process was told to end changes nothing: it may be due to that.
func TestNothingIsTakenInAtTheEnd(t *testing.T) {
	s := testState(corev1.RestartPolicyNever, 1)
	s.stage, s.machine = stageFinished, machineState{}
	w := newWorker(&environment{log: slog.New(slog.DiscardHandler), publish: func(*corev1.Pod) {}}, *s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.post(func(*state) { t.Error("it was taken in") })
	w.run(ctx)
}

type deafLease struct{ Lease }

func (deafLease) Guest(context.Context) (*Guest, error) { return nil, errors.New("no answer") }

// A SIGKILL that does not arrive is sent again: nothing else ends a container whose pod goes on.
func TestSIGKILLIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := steps(testState(corev1.RestartPolicyAlways, 1), "r")
		w := newWorker(&environment{log: slog.New(slog.DiscardHandler)}, *s)
		w.hold = &machineHold{lease: deafLease{}}
		w.s.containers[0].stop = &containerStop{}
		for i := range 3 {
			d := decide(&w.s, time.Now())
			if len(d.signals) != 1 || d.signals[0].signal != syscall.SIGKILL {
				t.Fatalf("try %d: %+v", i, d)
			}
			began := time.Now()
			w.signal(t.Context(), d.signals)
			if d := decide(&w.s, time.Now()); len(d.signals) != 0 {
				t.Fatalf("try %d is under way: %+v", i, d)
			}
			w.acts.Wait()
			if took := time.Since(began); took < killRetry {
				t.Errorf("it is tried again after %s", took)
			}
			for _, f := range w.take() {
				f(&w.s)
			}
		}
	})
}

// brokenLease is one whose connection breaks some times.
type brokenLease struct {
	Lease
	breaks atomic.Int32
}

func (l *brokenLease) Guest(ctx context.Context) (*Guest, error) {
	if l.breaks.Add(-1) >= 0 {
		return nil, errors.New("connection reset")
	}
	return l.Lease.Guest(ctx)
}

// A connection that breaks when a pod is to end does not cost it its grace period. A machine
// that does not answer within that is given up, and one that is lost is not waited for.
func TestBrokenConnectionAtTheEnd(t *testing.T) {
	_, _, target := newTarget(t)
	for _, tt := range []struct {
		breaks int32
		grace  time.Duration
		lost   bool
	}{{0, time.Minute, false}, {2, time.Minute, false}, {1000, 300 * time.Millisecond, true}, {1, 0, true}} {
		s := steps(testState(corev1.RestartPolicyAlways, 1), "r")
		term(s, tt.grace, false)
		s.deletion.since = time.Now()
		w := newWorker(&environment{log: slog.New(slog.DiscardHandler), events: events{kuberecord.NewFakeRecorder(10)}}, *s)
		lease := &brokenLease{Lease: target.hold.lease}
		lease.breaks.Store(tt.breaks)
		w.hold = &machineHold{lease: lease}
		w.list(t.Context())
		if d := decide(&w.s, time.Now()); d.release {
			t.Errorf("%+v: released before it is known what runs", tt)
		}
		w.acts.Wait()
		for _, f := range w.take() {
			f(&w.s)
		}
		if got := w.s.machine.lost != nil; got != tt.lost || !w.s.deletion.listed || w.s.deletion.listing {
			t.Errorf("%+v: lost %v, deletion %+v", tt, got, w.s.deletion)
		}
	}
	s := steps(testState(corev1.RestartPolicyAlways, 1), "1")
	term(s, time.Minute, false)
	s.deletion.listing, s.machine.lost = true, &loss{reason: reasonMachineDied}
	if d := decide(s, t0); !d.release {
		t.Errorf("a lost machine is waited for: %+v", d)
	}
}

// A run that was told to end for another is followed by it although the process that said so
// does not see its end, nor is its hook run again.
func TestRecordKeepsStop(t *testing.T) {
	r := newRecords(t.TempDir(), durable.Host)
	s := steps(testState(corev1.RestartPolicyOnFailure, 2), "rr")
	s.pod.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	s.pod.Spec.Containers = []corev1.Container{{Name: "a", Image: "i"}, {Name: "b", Image: "i"}}
	w := newWorker(&environment{log: slog.New(slog.DiscardHandler), events: events{kuberecord.NewFakeRecorder(10)}, records: r}, *s)
	w.restartContainer(w.s.containers[0], "probe", time.Minute)
	w.stopContainer(w.s.containers[0], "sooner", time.Second)
	if !w.dirty {
		t.Fatal("it is not written down")
	}
	w.save()
	recs, faults, err := r.load()
	if err != nil || len(recs) != 1 || len(faults) > 0 {
		t.Fatal(recs, faults)
	}
	recs[0].Images = nil
	got := w.env.restoreState(t.Context(), recs[0], time.Now())
	a, b := got.containers[0], got.containers[1]
	if b.stop != nil || a.stop == nil || a.stop.grace != time.Second || a.stop.since.Sub(w.s.containers[0].stop.since).Abs() > time.Second {
		t.Fatalf("stops are %+v, %+v", a.stop, b.stop)
	}
	exit := terminationOf(a, &got, &agentv1.ContainerStatus{State: agentv1.ContainerState_CONTAINER_STATE_EXITED}, t0)
	if !restarts(got.plan.restartPolicy, &got.plan.containers[0], exit) {
		t.Errorf("nothing follows %+v", exit)
	}
}

// A pull, which may take as long as it likes, does not keep a pod from another machine; at the
// end it is waited for, as nothing may be pinned then any more.
func TestLostMachineDoesNotWaitForPulls(t *testing.T) {
	for stage, release := range map[stage]bool{stageSyncing: true, stageFinished: false} {
		s := steps(testState(corev1.RestartPolicyAlways, 1), "1")
		s.stage, s.machine.lost = stage, &loss{reason: reasonMachineDied}
		s.images[imageKey{ref: "debug"}] = &imageState{pulling: true}
		if d := decide(s, t0); d.release != release {
			t.Errorf("%s: %+v", stage, d)
		}
	}
}
