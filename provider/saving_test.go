// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the API was told of ends is taken in where the record does not know of them, and nowhere
// else.
func TestHeard(t *testing.T) {
	ended := func(restarts, code int32) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: "c", RestartCount: restarts, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, Reason: "Error", ContainerID: fmt.Sprintf("firkin://c-%d-uid", restarts)}}}
	}
	disrupted := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}
	runs := containerRecord{Name: "c", Attempt: 1, Begun: true, Stop: &stopRecord{Again: true}}
	own := containerRecord{Name: "c", Attempt: 1, Begun: true, Exit: &termination{ExitCode: 1}}
	for _, tt := range []struct {
		name                     string
		have                     containerRecord
		status                   corev1.PodStatus
		finished, refused, kills bool
		code                     int32 // of its exit; -1 for none
		again                    bool
	}{
		{name: "runs", have: runs, status: corev1.PodStatus{Phase: corev1.PodRunning}, code: -1},
		{name: "its run has ended", have: runs, status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{ended(1, 3)}}, code: 3, again: true},
		{name: "the run before has ended", have: runs, status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{ended(0, 3)}}, code: -1},
		{name: "it knows how", have: own, status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{ended(1, 3)}}, code: 1},
		{name: "is over", have: runs, status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{ended(1, 0)}}, finished: true, again: true},
		{name: "was evicted", have: runs, status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Conditions: []corev1.PodCondition{disrupted}, ContainerStatuses: []corev1.ContainerStatus{ended(1, 0)}}, finished: true, kills: true, again: true},
		{name: "had its time", have: runs, status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: reasonDeadlineExceeded}, finished: true, kills: true, code: -1},
		{name: "was refused", have: containerRecord{Name: "c"}, status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: reasonOutOfCPU}, refused: true, code: -1},
	} {
		r := &record{Containers: []containerRecord{tt.have}}
		r.heard(&tt.status)
		if r.Finished != tt.finished || (r.Refusal != nil) != tt.refused || (r.Kill != nil) != tt.kills {
			t.Errorf("%s: %+v", tt.name, r)
		}
		code, again := int32(-1), false
		if x := r.Containers[0].Exit; x != nil {
			code, again = x.ExitCode, x.Again
		}
		if code != tt.code || again != tt.again {
			t.Errorf("%s: its run %+v", tt.name, r.Containers[0])
		}
	}
	over := &record{Finished: true, Containers: []containerRecord{own}}
	over.heard(&corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", ContainerStatuses: []corev1.ContainerStatus{ended(2, 3)}})
	if over.Kill != nil || over.Containers[0].Exit.ExitCode != 1 {
		t.Errorf("a whole record was changed: %+v", over)
	}
}

// Runs that the API speaks of count for a container that the node has no record of.
func TestNewContainer(t *testing.T) {
	now := time.Now()
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(now.Add(-time.Hour))}}
	for _, tt := range []struct {
		name    string
		kind    containerKind
		status  *corev1.ContainerStatus
		attempt int
		step    containerStep
		last    bool
	}{
		{"new", kindMain, nil, 0, containerWaiting, false},
		{"waits", kindMain, &corev1.ContainerStatus{Name: "c"}, 0, containerWaiting, false},
		{"another's", kindMain, &corev1.ContainerStatus{Name: "d", ContainerID: "firkin://d-0-uid", State: running}, 0, containerWaiting, false},
		{"ran", kindMain, &corev1.ContainerStatus{Name: "c", RestartCount: 2, ContainerID: "firkin://c-2-uid", State: running}, 3, containerWaiting, true},
		{"ran, and once only", kindEphemeral, &corev1.ContainerStatus{Name: "c", ContainerID: "firkin://c-0-uid", State: running}, 0, containerExited, false},
	} {
		pod := &corev1.Pod{}
		if tt.status != nil {
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{*tt.status}
		}
		c := newContainer(pod, containerPlan{spec: &corev1.Container{Name: "c"}, kind: tt.kind}, now)
		if c.attempt != tt.attempt || c.step != tt.step || (c.last != nil) != tt.last {
			t.Errorf("%s: %+v", tt.name, c)
		}
		if tt.last && (c.last.ID != "c-2-uid" || !c.last.StartedAt.Equal(now.Add(-time.Hour))) {
			t.Errorf("%s: %+v", tt.name, c.last)
		}
	}
}

// What needs a record waits while none can be written; what needs none does not.
func TestDecideUnrecorded(t *testing.T) {
	now := time.Now()
	u := &unrecorded{retryAt: now.Add(time.Second)}
	starts := testState(corev1.RestartPolicyAlways, 1)
	acquires := testState(corev1.RestartPolicyAlways, 1)
	acquires.machine = machineState{}
	restarts := testState(corev1.RestartPolicyAlways, 1)
	restarts.containers[0].step, restarts.containers[0].exit, restarts.containers[0].drained = containerExited, &termination{}, true
	for name, s := range map[string]*state{"start": starts, "acquire": acquires, "restart": restarts} {
		begins := func(at time.Time) bool {
			d := decide(s, at)
			return d.start >= 0 || d.acquire || len(d.restart) > 0
		}
		if !begins(now) {
			t.Errorf("%s: nothing begins", name)
		}
		s.unrecorded = u
		if begins(now) {
			t.Errorf("%s: it begins without a record", name)
		}
		if d := decide(s, now); !d.wake.Equal(u.retryAt) {
			t.Errorf("%s: it is looked at again at %s, not at %s", name, d.wake, u.retryAt)
		}
		if !begins(u.retryAt) {
			t.Errorf("%s: it is not tried again", name)
		}
	}
	starts.machine.lost = &loss{}
	if d := decide(starts, now); !d.release {
		t.Error("a lost machine is kept")
	}
}
