// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kuberecord "k8s.io/client-go/tools/record"
)

const screenLocked, keychainLocked = corev1.NodeConditionType("firkin.dev/ScreenLocked"), corev1.NodeConditionType("firkin.dev/KeychainLocked")

func hostCondition(t corev1.NodeConditionType, s corev1.ConditionStatus) HostCondition {
	short := strings.TrimPrefix(string(t), "firkin.dev/")
	return HostCondition{Type: t, Status: s, Reason: short + string(s), Message: short + " is " + string(s)}
}

// macs is a host whose conditions a test sets.
type macs struct {
	mu      sync.Mutex
	status  map[corev1.NodeConditionType]corev1.ConditionStatus
	stuck   chan struct{} // closed to go on; nil to answer at once
	running int
	times   int
}

func (m *macs) set(t corev1.NodeConditionType, s corev1.ConditionStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status[t] = s
}

func (m *macs) examine(context.Context) []HostCondition {
	m.mu.Lock()
	m.times++
	m.running++
	if m.running > 1 {
		panic("examined twice at once")
	}
	stuck := m.stuck
	m.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	return []HostCondition{hostCondition(screenLocked, m.status[screenLocked]), hostCondition(keychainLocked, m.status[keychainLocked])}
}

// told are the events and the nodes that a keeper tells.
type told struct {
	kuberecord.EventRecorder
	mu     sync.Mutex
	events []string
	nodes  []*corev1.Node
}

func (r *told) Event(_ runtime.Object, kind, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, kind+" "+reason+": "+message)
}

func (r *told) take() (events []string, node *corev1.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	events, r.events = r.events, nil
	if len(r.nodes) > 0 {
		node = r.nodes[len(r.nodes)-1]
	}
	r.nodes = nil
	return events, node
}

func condition(t *testing.T, list []corev1.NodeCondition, kind corev1.NodeConditionType) corev1.NodeCondition {
	t.Helper()
	i := slices.IndexFunc(list, func(c corev1.NodeCondition) bool { return c.Type == kind })
	if i < 0 {
		t.Fatalf("no condition %s in %+v", kind, list)
	}
	return list[i]
}

// keeper runs a node's keeper in a bubble until the test ends.
func keeper(t *testing.T, o NodeOptions, objects ...runtime.Object) (*nodeKeeper, *told) {
	t.Helper()
	r := &told{}
	p := &Provider{kube: &kube{recorder: r}, recording: true, admission: &admission{}, log: slog.New(slog.DiscardHandler),
		opts: Options{NodeName: "node-a", Client: fake.NewClientset(objects...), Node: o}}
	_, k, err := p.nodeController(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); k.run(ctx) }()
	k.NotifyNodeStatus(ctx, func(n *corev1.Node) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.nodes = append(r.nodes, n)
	})
	t.Cleanup(func() { cancel(); <-over })
	return k, r
}

func TestHostConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &macs{status: map[corev1.NodeConditionType]corev1.ConditionStatus{screenLocked: "False", keychainLocked: "True"}}
		began := time.Now()
		k, r := keeper(t, NodeOptions{Examine: m.examine})
		first := k.node.DeepCopy().Status.Conditions
		if c := condition(t, first, screenLocked); c.Status != "False" || c.Reason != "ScreenLockedFalse" || c.Message != "ScreenLocked is False" || !c.LastTransitionTime.Time.Equal(began) {
			t.Errorf("screen: %+v", c)
		}
		if c := condition(t, first, corev1.NodeReady); c.Status != "True" {
			t.Errorf("ready: %+v", c)
		}
		// What is well from the beginning is no news; a problem is.
		if events, _ := r.take(); !slices.Equal(events, []string{"Warning KeychainLockedTrue: KeychainLocked is True"}) {
			t.Errorf("events %q", events)
		}

		// Nothing changes, nothing is told.
		time.Sleep(3 * examineEvery)
		synctest.Wait()
		if events, node := r.take(); len(events) != 0 || node != nil {
			t.Errorf("events %q, node %v", events, node)
		}

		m.set(screenLocked, "True")
		time.Sleep(examineEvery)
		synctest.Wait()
		events, node := r.take()
		if !slices.Equal(events, []string{"Warning ScreenLockedTrue: ScreenLocked is True"}) || node == nil {
			t.Fatalf("events %q, node %v", events, node)
		}
		locked := condition(t, node.Status.Conditions, screenLocked)
		if at := locked.LastTransitionTime.Time; locked.Status != "True" || !at.Equal(began.Add(4*examineEvery)) {
			t.Errorf("screen: %+v", locked)
		}
		if c := condition(t, node.Status.Conditions, keychainLocked); !c.LastTransitionTime.Time.Equal(began) {
			t.Errorf("the keychain did not change: %+v", c)
		}

		// It is over, and the other one is not known any more.
		m.set(screenLocked, "False")
		m.set(keychainLocked, "Unknown")
		time.Sleep(examineEvery)
		synctest.Wait()
		events, node = r.take()
		slices.Sort(events)
		if !slices.Equal(events, []string{"Normal KeychainLockedUnknown: KeychainLocked is Unknown", "Normal ScreenLockedFalse: ScreenLocked is False"}) || node == nil {
			t.Fatalf("events %q, node %v", events, node)
		}
		if c := condition(t, node.Status.Conditions, screenLocked); c.Status != "False" || !c.LastTransitionTime.Time.After(locked.LastTransitionTime.Time) {
			t.Errorf("screen: %+v", c)
		}
	})
}

// An examination that does not end makes what it is about unknown, keeps nothing else
// from being measured, and is not joined by a second one.
func TestHostExaminationHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &macs{status: map[corev1.NodeConditionType]corev1.ConditionStatus{screenLocked: "False", keychainLocked: "False"}}
		var sick atomic.Bool
		_, r := keeper(t, NodeOptions{Examine: m.examine, Healthy: func(context.Context) error {
			if sick.Load() {
				return errors.New("no machines")
			}
			return nil
		}})
		stuck := make(chan struct{})
		m.mu.Lock()
		m.stuck = stuck
		m.mu.Unlock()
		time.Sleep(examineEvery + examineTimeout)
		synctest.Wait()
		_, node := r.take()
		if node == nil {
			t.Fatal("nothing is told")
		}
		if c := condition(t, node.Status.Conditions, screenLocked); c.Status != "Unknown" || c.Reason != reasonNotExamined {
			t.Errorf("screen: %+v", c)
		}
		sick.Store(true)
		time.Sleep(10 * examineEvery)
		synctest.Wait()
		if _, node = r.take(); node == nil || condition(t, node.Status.Conditions, corev1.NodeReady).Status != "False" {
			t.Errorf("what else there is was not measured: %v", node)
		}
		m.mu.Lock()
		times := m.times
		m.stuck = nil
		m.mu.Unlock()
		if times != 2 {
			t.Errorf("examined %d times, want the first and the one that hangs", times)
		}
		close(stuck)
		time.Sleep(2 * examineEvery)
		synctest.Wait()
		if _, node = r.take(); node == nil || condition(t, node.Status.Conditions, screenLocked).Status != "False" {
			t.Errorf("it is not known again: %v", node)
		}
	})
}

// A process that takes over from another one tells nothing twice and keeps the times.
func TestHostConditionsOfTheProcessBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &macs{status: map[corev1.NodeConditionType]corev1.ConditionStatus{screenLocked: "True", keychainLocked: "False"}}
		k, r := keeper(t, NodeOptions{Examine: m.examine})
		r.take()
		began := time.Now()
		old := k.node.DeepCopy()
		time.Sleep(24 * time.Hour)
		m.set(keychainLocked, "True")
		k, r = keeper(t, NodeOptions{Examine: (&macs{status: m.status}).examine}, old)
		if events, _ := r.take(); !slices.Equal(events, []string{"Warning KeychainLockedTrue: KeychainLocked is True"}) {
			t.Errorf("events %q", events)
		}
		for kind, since := range map[corev1.NodeConditionType]time.Time{screenLocked: began, corev1.NodeReady: began, keychainLocked: time.Now()} {
			if c := condition(t, k.node.Status.Conditions, kind); !c.LastTransitionTime.Time.Equal(since) {
				t.Errorf("%s since %v, want %v", kind, c.LastTransitionTime, since)
			}
		}
	})
}

// A host that is not examined, as on Linux, has the kubelet's conditions and no others.
func TestNoHostConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, r := keeper(t, NodeOptions{})
		time.Sleep(3 * examineEvery)
		synctest.Wait()
		var types []string
		for _, c := range k.node.Status.Conditions {
			types = append(types, string(c.Type))
		}
		if events, node := r.take(); fmt.Sprint(types) != "[MemoryPressure DiskPressure PIDPressure Ready]" || len(events) != 0 || node != nil {
			t.Errorf("conditions %v, events %q, node %v", types, events, node)
		}
	})
}
