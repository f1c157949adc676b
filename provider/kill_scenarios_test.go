// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm"
)

// A pod that the node ends is Failed with the reason, its containers had their grace, and
// its object stays.
func TestEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
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
	})
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

// A pod that is chosen for its node's sake is told with what it may free, ends by the one way
// down, and is waited for until its machine is gone.
func TestEvictForNode(t *testing.T) {
	w := newWorld(t)
	pr := w.run()
	greedy := pod("greedy", []string{"graceful", "3"})
	greedy.Spec.RestartPolicy = corev1.RestartPolicyAlways
	greedy.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
		corev1.ResourceEphemeralStorage: resource.MustParse("5Mi"), corev1.ResourceMemory: resource.MustParse("7Mi"),
	}
	greedy = w.create(greedy)
	vital := pod("vital", []string{"hang"})
	vital.Spec.Priority = ptr(int32(2_000_000_000))
	vital = w.create(vital)
	w.await("greedy", "is ready", ready)
	w.await("vital", "is ready", ready)
	candidates := map[string]provider.EvictionCandidate{}
	for _, c := range pr.p.EvictionCandidates() {
		candidates[c.Name] = c
	}
	c := candidates[greedy.Namespace+"/greedy"]
	if c.UID != greedy.UID || c.RequestedDisk != 5<<20 || c.RequestedMemory != 7<<20 || c.MachineID == "" || c.MachineMemory <= 0 || c.Critical || len(candidates) != 2 {
		t.Errorf("candidates are %+v", candidates)
	}
	if c := candidates[vital.Namespace+"/vital"]; !c.Critical || c.Priority != 2_000_000_000 {
		t.Errorf("the critical one is %+v", c)
	}
	if !c.EndsBy.IsZero() {
		t.Errorf("it ends by %s", c.EndsBy)
	}
	// Its machine cannot be deleted at first: it is named until it is gone, as one that ends.
	var releases atomic.Int32
	w.supply.setFault(func(_ context.Context, op string) error {
		if op == "release" {
			releases.Add(1)
			return vm.ErrUnavailable
		}
		return nil
	})
	began := time.Now()
	pr.p.EvictForNode(greedy.UID, "The node was low on resource: memory. ", time.Hour)
	pr.p.EvictForNode(greedy.UID, "another reason", time.Minute)
	w.eventually("its machine cannot be given back", func() bool {
		return releases.Load() > 1 && slices.ContainsFunc(pr.p.EvictionCandidates(), func(c provider.EvictionCandidate) bool {
			return c.UID == greedy.UID && c.EndsBy.After(began) && c.EndsBy.Before(began.Add(2*time.Minute))
		})
	}, nil)
	w.supply.setFault(nil)
	w.eventually("its machine is gone", func() bool {
		ids := w.supply.ids()
		return len(ids) == 1 && !slices.Contains(ids, c.MachineID) && len(pr.p.EvictionCandidates()) == 1
	}, nil)
	p := w.awaitPhase("greedy", corev1.PodFailed)
	if p.Status.Reason != "Evicted" || p.Status.Message != "The node was low on resource: memory. " || !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }) {
		t.Errorf("status is %+v", p.Status)
	}
	pr.p.EvictForNode("nobody", "", 0)
	w.delete("greedy", nil)
	w.delete("vital", ptr(int64(0)))
	w.awaitNothing()
}

// A record that cannot be written is written again by itself, and the pod runs meanwhile.
func TestRecordWrittenAgain(t *testing.T) {
	w := newWorld(t)
	pr := w.run()
	p := w.create(pod("p", []string{"hang"}))
	w.await("p", "is ready", ready)
	record := filepath.Join(w.state, "pods", string(p.UID))
	kept := record + ".kept"
	// What stands in the way is a file where the folder was: nothing can be written below it.
	if err := os.Rename(record, kept); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	changed, err := w.client.CoreV1().Pods(p.Namespace).Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	changed.Labels = map[string]string{"changed": "yes"}
	if _, err := w.client.CoreV1().Pods(p.Namespace).Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the worker has the change", func() bool {
		pods := pr.p.Pods()
		return len(pods) == 1 && pods[0].Labels["changed"] == "yes" && ready(pods[0])
	}, nil)
	if text, err := os.ReadFile(filepath.Join(kept, "pod.json")); err != nil || strings.Contains(string(text), "changed") {
		t.Errorf("the old record: %v", err)
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	w.eventually("the record has the change", func() bool {
		text, err := os.ReadFile(filepath.Join(record, "pod.json"))
		return err == nil && strings.Contains(string(text), "changed")
	}, nil)
	if err := os.RemoveAll(kept); err != nil {
		t.Fatal(err)
	}
	w.delete("p", ptr(int64(0)))
	w.awaitNothing()
}
