// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"reflect"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/warmpool"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// testState is a pod of n containers, all images there, its machine held and prepared.
func testState(policy corev1.RestartPolicy, n int) *state {
	key := imageKey{"i", PullIfNotPresent}
	s := &state{
		pod: &corev1.Pod{}, startTime: t0,
		plan:    &plan{restartPolicy: policy, images: []imageKey{key}},
		images:  map[imageKey]*imageState{key: {image: &Image{ID: "id", Digest: "d"}}},
		machine: machineState{generation: 1, id: "pod-1", step: machineHeld, acquired: true, prepared: true, synced: true, path: "restore", slots: []string{"d"}},
	}
	s.pod.UID, s.pod.Name, s.pod.Namespace = "uid", "pod", "ns"
	for i := range n {
		name := string(rune('a' + i))
		s.plan.containers = append(s.plan.containers, containerPlan{spec: &corev1.Container{Name: name, Image: "i"}, image: key, stopSignal: syscall.SIGTERM})
		s.containers = append(s.containers, &containerState{name: name})
	}
	return s
}

func exited(c *containerState, code int32, drained bool) {
	c.step, c.everStarted, c.drained, c.drainBy = containerExited, true, drained, t0.Add(drainWait)
	c.exit = &termination{ExitCode: code, Reason: reasonError, StartedAt: t0.Add(-time.Minute), FinishedAt: t0}
}

func TestDecide(t *testing.T) {
	key := imageKey{"i", PullIfNotPresent}
	none := func(d decision) decision { d.start = -1; return d }
	for _, tt := range []struct {
		name   string
		policy corev1.RestartPolicy
		n      int
		change func(*state)
		want   decision
	}{
		{"new pod: pull", "Never", 1, func(s *state) { s.images[key].image = nil; s.machine = machineState{} }, none(decision{pull: []imageKey{key}})},
		{"pull under way", "Never", 1, func(s *state) { *s.images[key] = imageState{pulling: true}; s.machine = machineState{} }, none(decision{})},
		{"pull backs off", "Never", 1, func(s *state) { *s.images[key] = imageState{retryAt: t0.Add(time.Second)}; s.machine = machineState{} }, none(decision{wake: t0.Add(time.Second)})},
		{"invalid image is not tried again", "Never", 1, func(s *state) { *s.images[key] = imageState{fatal: true}; s.machine = machineState{} }, none(decision{})},
		{"images there: acquire", "Never", 1, func(s *state) { s.machine = machineState{} }, none(decision{acquire: true})},
		{"template: the machine comes first", "Never", 1, func(s *state) { template(s); s.images[key].image = nil; s.machine = machineState{} }, none(decision{acquire: true})},
		{"template: acquire under way", "Never", 1, func(s *state) {
			template(s)
			s.images[key].image = nil
			s.machine = machineState{step: machineAcquiring}
		}, none(decision{})},
		{"template: machine there, its images with it", "Never", 1, func(s *state) { template(s); s.machine.prepared = false }, none(decision{prepare: true})},
		{"template: an adopted machine's image is gone from the node", "Never", 1, func(s *state) { template(s); s.images[key].image = nil }, none(decision{pull: []imageKey{key}})},
		{"template: lost machine goes first", "Always", 1, func(s *state) { template(s); s.images[key].image = nil; s.machine.lost = &loss{} }, none(decision{release: true})},
		{"template missing: look at once", "Never", 0, func(s *state) { waiting(s, t0) }, none(decision{admit: true})},
		{"template missing: look again later", "Never", 0, func(s *state) { waiting(s, t0.Add(time.Second)) }, none(decision{wake: t0.Add(time.Second)})},
		{"template missing: deleted", "Never", 0, func(s *state) { waiting(s, t0); s.deletion = &deletion{ending: ending{since: t0}} }, none(decision{terminate: true})},
		{"template missing: terminating", "Never", 0, func(s *state) { waiting(s, t0); term(s, time.Minute, false) }, none(decision{cleanup: true})},
		{"acquire backs off", "Never", 1, func(s *state) { s.machine = machineState{retryAt: t0.Add(time.Second)} }, none(decision{wake: t0.Add(time.Second)})},
		{"acquire under way", "Never", 1, func(s *state) { s.machine.step = machineAcquiring }, none(decision{})},
		{"machine there: prepare", "Never", 1, func(s *state) { s.machine.prepared = false }, none(decision{prepare: true})},
		{"prepare under way", "Never", 1, func(s *state) { s.machine.prepared, s.machine.preparing = false, true }, none(decision{})},
		{"nothing starts before the machine said what it has", "Never", 1, func(s *state) { s.machine.synced = false }, none(decision{})},
		{"first container", "Never", 2, func(*state) {}, decision{start: 0}},
		{"one at a time", "Never", 2, func(s *state) { s.containers[0].step = containerStarting }, none(decision{})},
		{"second container", "Never", 2, func(s *state) { s.containers[0].step = containerRunning }, decision{start: 1}},
		{"a failing container holds nobody up", "Never", 2, func(s *state) { s.containers[0].notBefore = t0.Add(time.Second) }, decision{start: 1, wake: t0.Add(time.Second)}},
		{"at rest", "Never", 1, func(s *state) { s.containers[0].step = containerRunning }, none(decision{})},
		{"an unknown container is not started", "Always", 1, func(s *state) { s.containers[0].step = containerUnknown }, none(decision{})},
		{"exit waits for output", "Never", 1, func(s *state) { exited(s.containers[0], 1, false) }, none(decision{wake: t0.Add(drainWait)})},
		{"never: over", "Never", 1, func(s *state) { exited(s.containers[0], 1, true) }, none(decision{finish: true})},
		{"on failure: over", "OnFailure", 1, func(s *state) { exited(s.containers[0], 0, true) }, none(decision{finish: true})},
		{"on failure: again", "OnFailure", 1, func(s *state) { exited(s.containers[0], 1, true) }, none(decision{restart: []int{0}})},
		{"always: again", "Always", 1, func(s *state) { exited(s.containers[0], 0, true) }, none(decision{restart: []int{0}})},
		{"never: one still runs", "Never", 2, func(s *state) { exited(s.containers[0], 1, true); s.containers[1].step = containerRunning }, none(decision{})},
		{"refused", "Never", 1, func(s *state) { s.refusal = &refusal{} }, none(decision{finish: true})},
		{"lost machine goes first", "Always", 1, func(s *state) { s.machine.lost = &loss{} }, none(decision{release: true})},
		{"lost machine waits for what starts in it", "Always", 1, func(s *state) { s.machine.lost = &loss{}; s.containers[0].step = containerStarting }, none(decision{})},
		{"earlier machine: adopt", "Always", 1, func(s *state) { s.machine.step, s.machine.adopt = machineNone, true }, none(decision{adopt: true})},
		{"no machine while all back off", "Always", 1, func(s *state) { s.machine = machineState{}; s.containers[0].notBefore = t0.Add(time.Second) }, none(decision{wake: t0.Add(time.Second)})},
		{"finished: release", "Never", 1, func(s *state) { s.stage = stageFinished }, none(decision{release: true})},
		{"finished: at rest", "Never", 1, func(s *state) { s.stage, s.machine = stageFinished, machineState{} }, none(decision{})},
		{"finished and deleted", "Never", 1, func(s *state) { s.stage, s.deletion = stageFinished, &deletion{ending: ending{since: t0}} }, none(decision{terminate: true})},
		{"deleted", "Never", 1, func(s *state) { s.deletion = &deletion{ending: ending{since: t0}} }, none(decision{terminate: true})},
		{"terminating: waits for starts to end", "Never", 1, func(s *state) { term(s, time.Minute, false); s.containers[0].step = containerStarting }, none(decision{})},
		{"terminating: never starts", "Always", 1, func(s *state) { term(s, time.Minute, true) }, none(decision{release: true})},
		{"terminating: asks what runs", "Never", 1, func(s *state) { term(s, time.Minute, false) }, none(decision{list: true})},
		{"terminating: stop signal", "Never", 1, func(s *state) { term(s, time.Minute, true); s.containers[0].step = containerRunning },
			none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGTERM}}, wake: t0.Add(time.Minute)})},
		{"terminating: waits for grace", "Never", 1, func(s *state) {
			term(s, time.Minute, true)
			s.containers[0].step, s.containers[0].stopSent, s.containers[0].stopAt = containerRunning, true, t0
		},
			none(decision{wake: t0.Add(time.Minute)})},
		{"terminating: kill after grace", "Never", 1, func(s *state) { term(s, 0, true); s.containers[0].step = containerRunning },
			none(decision{signals: []signalAct{{container: 0, signal: syscall.SIGKILL, all: true}}, wake: t0.Add(killWait)})},
		{"terminating: kill did not help", "Never", 1, func(s *state) {
			term(s, 0, true)
			s.deletion.since = t0.Add(-killWait)
			s.containers[0].step = containerRunning
		}, none(decision{release: true})},
		{"terminating: no machine", "Never", 1, func(s *state) { term(s, 0, true); s.machine = machineState{} }, none(decision{cleanup: true})},
		{"terminating: cleanup backs off", "Never", 1, func(s *state) { term(s, 0, true); s.machine = machineState{}; s.deletion.retryAt = t0.Add(time.Second) }, none(decision{wake: t0.Add(time.Second)})},
		{"terminating: lost machine", "Never", 1, func(s *state) { term(s, time.Minute, false); s.machine.lost = &loss{} }, none(decision{release: true})},
		{"terminating: adopt for a graceful end", "Never", 1, func(s *state) { term(s, time.Minute, false); s.machine.step, s.machine.adopt = machineNone, true }, none(decision{adopt: true})},
		{"terminating: half-made machine is reaped", "Never", 1, func(s *state) {
			term(s, time.Minute, false)
			s.machine.step, s.machine.adopt, s.machine.acquired = machineNone, true, false
		}, none(decision{release: true})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testState(tt.policy, tt.n)
			tt.change(s)
			if got := decide(s, t0); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("\n got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// template makes it a pod of a template.
func template(s *state) {
	s.plan.template = &Template{Template: warmpool.Template{Namespace: "ns", Name: "t", Images: []string{"i"}}}
}

// waiting makes it a pod whose template is missing.
func waiting(s *state, retryAt time.Time) {
	s.plan, s.machine, s.images = nil, machineState{}, nil
	s.waiting = &templateWait{reason: ReasonTemplateNotFound, message: "no template", retryAt: retryAt}
}

func term(s *state, grace time.Duration, listed bool) {
	s.stage, s.deletion = stageTerminating, &deletion{ending: ending{since: t0, grace: grace, listed: listed}}
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := t0
	for i, want := range []int{0, 10, 20, 40, 80, 160, 300, 300} {
		at := b.wait(now)
		if got := at.Sub(now); got != time.Duration(want)*time.Second {
			t.Errorf("restart %d waits %s, want %ds", i, got, want)
		}
		b = b.next(now, at)
		now = at.Add(time.Second)
	}
	// A guest says when a run ended: it cannot be before it began.
	if got, want := b.wait(time.Unix(1, 0)), b.Since.Add(backoffMax); got != want {
		t.Errorf("a run that ended before it began is followed at %s, want %s", got, want)
	}
	late := now.Add(backoffReset + time.Second)
	if got := b.wait(late); got != late {
		t.Errorf("a run of more than %s does not reset the back-off", backoffReset)
	}
	if got := b.next(late, late).Delay; got != backoffFirst {
		t.Errorf("after a reset the delay is %s", got)
	}
}

func TestStatus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		policy corev1.RestartPolicy
		change func(*state)
		phase  corev1.PodPhase
		reason string // of the first container's state
		ready  bool
	}{
		{"creating", "Always", func(s *state) {}, corev1.PodPending, "ContainerCreating", false},
		{"pull failed", "Always", func(s *state) { *s.images[s.plan.images[0]] = imageState{reason: "ErrImagePull"} }, corev1.PodPending, "ErrImagePull", false},
		{"waits for its template", "Always", func(s *state) {
			waiting(s, t0)
			s.containers, s.pod.Spec.Containers = nil, []corev1.Container{{Name: "a"}}
		}, corev1.PodPending, "ContainerCreating", false},
		{"deleted while it waited", "Always", func(s *state) {
			waiting(s, t0)
			term(s, 0, false)
			s.containers, s.pod.Spec.Containers = nil, []corev1.Container{{Name: "a"}}
		}, corev1.PodFailed, "ContainerCreating", false},
		{"running", "Always", func(s *state) { s.containers[0].step = containerRunning }, corev1.PodRunning, "running", true},
		{"crash loop", "Always", func(s *state) {
			c := s.containers[0]
			c.last, c.attempt, c.notBefore = &termination{ExitCode: 1}, 1, t0.Add(time.Second)
		}, corev1.PodRunning, "CrashLoopBackOff", false},
		{"config error", "Always", func(s *state) { s.containers[0].reason = "CreateContainerConfigError" }, corev1.PodPending, "CreateContainerConfigError", false},
		{"ended, output still comes", "Never", func(s *state) { exited(s.containers[0], 0, false) }, corev1.PodRunning, "Error", false},
		{"succeeded", "Never", func(s *state) { exited(s.containers[0], 0, true) }, corev1.PodSucceeded, "Error", false},
		{"failed", "Never", func(s *state) { exited(s.containers[0], 1, true) }, corev1.PodFailed, "Error", false},
		{"refused", "Never", func(s *state) { s.refusal = &refusal{Reason: "R"} }, corev1.PodFailed, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testState(tt.policy, 1)
			tt.change(s)
			st := podStatus(s, &corev1.PodStatus{}, "192.0.2.1", t0)
			got := ""
			if len(st.ContainerStatuses) > 0 {
				switch x := st.ContainerStatuses[0].State; {
				case x.Running != nil:
					got = "running"
				case x.Waiting != nil:
					got = x.Waiting.Reason
				case x.Terminated != nil:
					got = x.Terminated.Reason
				}
			}
			ready := false
			for _, c := range st.Conditions {
				ready = ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}
			if st.Phase != tt.phase || got != tt.reason || ready != tt.ready {
				t.Errorf("phase %s, state %s, ready %v; want %s, %s, %v", st.Phase, got, ready, tt.phase, tt.reason, tt.ready)
			}
		})
	}
}

func TestStatusNeverGoesBack(t *testing.T) {
	s := testState(corev1.RestartPolicyAlways, 1)
	st := podStatus(s, &corev1.PodStatus{Phase: corev1.PodRunning}, "", t0)
	if st.Phase != corev1.PodRunning {
		t.Errorf("phase went from Running to %s", st.Phase)
	}
}

func TestStatusKeepsTransitionTimes(t *testing.T) {
	s := testState(corev1.RestartPolicyAlways, 1)
	first := podStatus(s, &corev1.PodStatus{}, "", t0)
	second := podStatus(s, &first, "", t0.Add(time.Hour))
	if !reflect.DeepEqual(first, second) {
		t.Errorf("a status changed with time alone:\n%+v\n%+v", first, second)
	}
}

func TestReadinessGate(t *testing.T) {
	s := testState(corev1.RestartPolicyAlways, 1)
	s.containers[0].step = containerRunning
	s.pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}}
	for status, want := range map[corev1.ConditionStatus]corev1.ConditionStatus{"": "False", "False": "False", "True": "True"} {
		s.pod.Status.Conditions = nil
		if status != "" {
			s.pod.Status.Conditions = []corev1.PodCondition{{Type: "gate", Status: status}}
		}
		for _, c := range podStatus(s, &corev1.PodStatus{}, "", t0).Conditions {
			if c.Type == corev1.PodReady && c.Status != want {
				t.Errorf("gate %q gives Ready %s", status, c.Status)
			}
		}
	}
}

// The output of a run that has ended is waited for as long as only a full disk keeps it from
// the host, and else for a bounded time.
func TestAwaitRoom(t *testing.T) {
	due := t0.Add(drainWait)
	for name, tt := range map[string]struct {
		c      containerState
		now    time.Time
		noRoom bool
		want   time.Time
	}{
		"no room, and time is up":    {containerState{step: containerExited, drainBy: due}, due, true, due.Add(drainWait)},
		"no room, and there is time": {containerState{step: containerExited, drainBy: due}, t0, true, due},
		"room, and time is up":       {containerState{step: containerExited, drainBy: due}, due, false, due},
		"all of it is there":         {containerState{step: containerExited, drained: true, drainBy: due}, due, true, due},
		"it still runs":              {containerState{step: containerRunning, drainBy: due}, due, true, due},
	} {
		if awaitRoom(&tt.c, tt.now, func() bool { return tt.noRoom }); !tt.c.drainBy.Equal(tt.want) {
			t.Errorf("%s: until %v, want %v", name, tt.c.drainBy, tt.want)
		}
	}
}
