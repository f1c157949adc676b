// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
)

func (s *fakeSupply) only() *fakeMachine {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.machines {
		return m
	}
	s.t.Fatal("no machine")
	return nil
}

// machineOf is the machine that was made last for a pod.
func (s *fakeSupply) machineOf(uid types.UID) *fakeMachine {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m *fakeMachine
	for _, r := range s.requests {
		if r.PodUID == uid {
			m = s.machines[r.MachineID]
		}
	}
	return m
}

// TestStuckMachines: of machines that stop answering, those that come back in time change
// nothing but are told of; the others are ended, their pods fail or restart by their policy with
// the reason, and the pod beside them is not touched.
func TestStuckMachines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(func(o *provider.Options) { o.StuckTimeout = 0 }) // the default, a minute
		pods := map[string]*corev1.Pod{}
		for _, name := range []string{"never", "always", "short", "bystander"} {
			pod := pod(name, []string{"hang"})
			if name != "never" {
				pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
			}
			pods[name] = w.create(pod)
		}
		for name := range pods {
			w.await(name, "is ready", ready)
		}
		began := time.Now()
		for _, name := range []string{"never", "always", "short"} {
			w.supply.machineOf(pods[name].UID).agent.Hang()
		}
		time.Sleep(45 * time.Second)
		w.supply.machineOf(pods["short"].UID).agent.Heal()
		for _, name := range []string{"never", "always", "short"} {
			if !w.events.has(name, "Warning MachineNotAnswering", "it is ended after 1m0s") {
				t.Errorf("after 45 s nothing is told of %s:\n%s", name, w.events)
			}
		}
		failed := w.awaitPhase("never", corev1.PodFailed)
		if took := time.Since(began); took < 50*time.Second || took > 75*time.Second { // a minute since its last answer
			t.Errorf("ended after %s, want about a minute", took)
		}
		if x := failed.Status.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "MachineStuck" || x.ExitCode != 137 {
			t.Errorf("the pod that is not restarted says %+v", failed.Status.ContainerStatuses[0].State)
		}
		again := w.await("always", "is ready again", func(p *corev1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
		if x := again.Status.ContainerStatuses[0].LastTerminationState.Terminated; x == nil || x.Reason != "MachineStuck" {
			t.Errorf("the pod that is restarted says %+v", again.Status.ContainerStatuses[0].LastTerminationState)
		}
		time.Sleep(10 * time.Minute)
		for _, name := range []string{"short", "bystander"} {
			now := w.await(name, "is ready", ready)
			if c := now.Status.ContainerStatuses[0]; c.RestartCount != 0 || w.events.has(name, "MachineStuck") {
				t.Errorf("%s: %+v\n%s", name, c, w.events)
			}
		}
		if !w.events.has("short", "Normal MachineAnswersAgain") || w.events.has("bystander", "MachineNotAnswering") {
			t.Errorf("events are\n%s", w.events)
		}
		if ids := w.supply.ids(); len(ids) != 3 {
			t.Errorf("machines are %q, want three", ids)
		}
		p.stop()
	})
}
