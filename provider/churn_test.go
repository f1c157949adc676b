// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// 200 pods are made and deleted at any moment of their lives, with and without grace, the
// next one by the same name at once: each ends, nothing of them is left, and none is told
// what another did.
func TestChurn(t *testing.T) {
	const lanes, cycles = 8, 25
	w := newWorld(t)
	w.run()
	first := pod("first", []string{"exit", "0"}) // what is made once exists then
	w.create(first)
	w.awaitPhase("first", corev1.PodSucceeded)
	w.delete("first", nil)
	w.awaitNothing()
	before := runtime.NumGoroutine()

	watched, err := w.client.CoreV1().Pods("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var watching sync.WaitGroup
	watching.Go(func() { neverMixed(t, watched) })
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var all sync.WaitGroup
	for lane := range lanes {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(lane)))
			for cycle := range cycles {
				if !churnOnce(w, random, fmt.Sprintf("lane-%d", lane), cycle) {
					return
				}
			}
		})
	}
	all.Wait()
	watched.Stop()
	watching.Wait()
	w.awaitNothing()
	w.eventually("as many goroutines as before", func() bool { return runtime.NumGoroutine() <= before+5 },
		func() string { return fmt.Sprintf("%d, before %d", runtime.NumGoroutine(), before) })
}

// churnOnce is the life of one pod. It fails the test when the pod does not go.
func churnOnce(w *world, random *rand.Rand, name string, cycle int) bool {
	commands := [][]string{{"graceful", "0"}, {"exit", "3"}, {"do", "sleep 20ms"}, {"hang"}, {"no-such-program"}}
	p := pod(name, commands[random.IntN(len(commands))], commands[random.IntN(len(commands))])
	if random.IntN(2) == 0 {
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	uid := w.create(p).UID
	pods := w.client.CoreV1().Pods("default")
	ask := func() *corev1.Pod {
		got, err := pods.Get(context.Background(), name, metav1.GetOptions{})
		if err != nil || got.UID != uid {
			return nil
		}
		return got
	}
	wait := func(limit time.Duration, ok func() bool) bool {
		for deadline := time.Now().Add(limit); !ok(); <-time.After(2 * time.Millisecond) {
			if time.Now().After(deadline) {
				return false
			}
		}
		return true
	}
	switch random.IntN(4) { // where it is in its life; a moment that does not come is a moment as well
	case 0:
	case 1:
		<-time.After(time.Duration(random.IntN(60)) * time.Millisecond)
	case 2:
		wait(200*time.Millisecond, func() bool { got := ask(); return got != nil && got.Status.Phase != corev1.PodPending })
	case 3:
		wait(300*time.Millisecond, func() bool {
			got := ask()
			return got != nil && (got.Status.Phase == corev1.PodFailed || got.Status.Phase == corev1.PodSucceeded)
		})
	}
	grace := int64(random.IntN(2))
	for range 1 + random.IntN(2) { // some are deleted twice, the second time by force
		if err := pods.Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil && !apierrors.IsNotFound(err) {
			w.t.Errorf("delete %s: %v", name, err)
			return false
		}
		grace = 0
	}
	if !wait(patience, func() bool { return ask() == nil }) {
		w.t.Errorf("%s, cycle %d: sticks in Terminating: %+v", name, cycle, ask().Status)
		return false
	}
	return true
}

// neverMixed looks at every status that the API gets: what ran was this pod's, by its UID.
func neverMixed(t *testing.T, watched watch.Interface) {
	for e := range watched.ResultChan() {
		pod, ok := e.Object.(*corev1.Pod)
		if !ok {
			continue
		}
		for _, c := range pod.Status.ContainerStatuses {
			for _, id := range []string{c.ContainerID, idOf(c.State), idOf(c.LastTerminationState)} {
				if id != "" && !strings.HasSuffix(id, string(pod.UID)) {
					t.Errorf("pod %s of UID %s is told to have container %s", pod.Name, pod.UID, id)
				}
			}
		}
	}
}

func idOf(s corev1.ContainerState) string {
	if s.Terminated == nil {
		return ""
	}
	return s.Terminated.ContainerID
}
