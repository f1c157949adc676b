// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm"
)

// often makes a process look at machines again and again.
func often(o *provider.Options) { o.ReconcileEvery = 20 * time.Millisecond }

// spoilRecord makes the record of a pod one of another version.
func (w *world) spoilRecord(p *corev1.Pod) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.state, "pods", string(p.UID), "pod.json"), []byte(`{"version":99}`), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) spoilt(p *corev1.Pod) bool {
	data, err := os.ReadFile(filepath.Join(w.state, "pods", string(p.UID), "pod.json"))
	return err == nil && strings.Contains(string(data), `"version":99`)
}

// looked waits until machines were looked at a few times more.
func (w *world) looked() {
	w.t.Helper()
	count := func() int {
		w.supply.mu.Lock()
		defer w.supply.mu.Unlock()
		return w.supply.looks
	}
	from := count()
	w.eventually("machines are looked at", func() bool { return count() > from+3 }, nil)
}

// left makes a running pod, ends the process, and spoils the pod's record.
func (w *world) left(name string, policy corev1.RestartPolicy) (p *corev1.Pod, acquired int) {
	w.t.Helper()
	first := w.run()
	p = pod(name, []string{"hang"})
	p.Spec.RestartPolicy = policy
	p = w.create(p)
	w.await(name, "is ready", ready)
	first.stop()
	w.spoilRecord(p)
	return p, w.supply.acquired
}

// A pod whose record cannot be read is left alone while its machine runs: it goes on, is
// not started a second time, and people hear of it. When somebody deletes it, it ends.
func TestUnreadableRecordHoldsThePod(t *testing.T) {
	w := newWorld(t)
	p, acquired := w.left("p", corev1.RestartPolicyAlways)
	ids := w.supply.ids()
	second := w.run(often)
	w.looked()
	second.stop() // and over another start
	w.run(often)
	w.looked()
	if got := w.supply.ids(); len(got) != 1 || got[0] != ids[0] || w.supply.acquired != acquired {
		t.Errorf("machines %v, were %v; %d made", got, ids, w.supply.acquired-acquired)
	}
	if !w.spoilt(p) {
		t.Error("the record is gone: another version could not go on with it")
	}
	if got, err := w.client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{}); err != nil || !ready(got) {
		t.Errorf("the pod: %+v, %v", got.Status, err)
	}
	for _, who := range []string{"p ", nodeName} {
		if !w.events.has(who, "MachineQuarantined", "vk-firkin quarantine remove "+ids[0]) {
			t.Errorf("%s: nobody heard of it:\n%s", who, w.events)
		}
	}
	w.delete("p", ptr(int64(1)))
	w.awaitGone("p")
	w.awaitNothing()
}

// When the machine of such a pod has ended, or was removed, the pod begins anew; one that must
// not run twice has failed.
func TestUnreadableRecordIsLetGo(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy corev1.RestartPolicy
		end    func(w *world, id string)
	}{
		{"ended", corev1.RestartPolicyAlways, func(w *world, _ string) { w.supply.only().end(vm.ExitCrashed) }},
		{"removed", corev1.RestartPolicyOnFailure, func(w *world, id string) {
			w.supply.mu.Lock()
			defer w.supply.mu.Unlock()
			w.supply.unwanted[id] = true
		}},
		{"never", corev1.RestartPolicyNever, func(w *world, _ string) { w.supply.only().end(vm.ExitCrashed) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			_, acquired := w.left("p", c.policy)
			old := w.supply.ids()[0]
			w.run(often)
			w.looked()
			c.end(w, old)
			if c.policy == corev1.RestartPolicyNever {
				got := w.awaitPhase("p", corev1.PodFailed)
				if got.Status.Reason != "RecordLost" || w.supply.acquired != acquired {
					t.Errorf("%+v, %d machines made", got.Status, w.supply.acquired-acquired)
				}
			} else {
				w.eventually("it has another machine", func() bool {
					w.supply.mu.Lock()
					defer w.supply.mu.Unlock()
					return w.supply.acquired == acquired+1 && len(w.supply.machines) == 1
				}, nil)
				w.await("p", "is ready", ready)
			}
			w.delete("p", ptr(int64(1)))
			w.awaitNothing()
		})
	}
}

// What a start could not decide is looked at again soon, not only when it is time: a pod waits
// for it.
func TestUndecidedIsLookedAtSoon(t *testing.T) {
	t.Run("its machine has ended", func(t *testing.T) {
		w := newWorld(t)
		_, acquired := w.left("p", corev1.RestartPolicyAlways)
		w.supply.only().end(vm.ExitCrashed)
		w.run()
		w.eventually("it has another machine", func() bool {
			w.supply.mu.Lock()
			defer w.supply.mu.Unlock()
			return w.supply.acquired == acquired+1
		}, nil)
		w.await("p", "is ready", ready)
		w.delete("p", ptr(int64(1)))
		w.awaitNothing()
	})
	t.Run("its machine cannot be asked", func(t *testing.T) {
		w := newWorld(t)
		w.left("p", corev1.RestartPolicyAlways)
		w.supply.mu.Lock()
		w.supply.mute = true
		from := w.supply.looks
		w.supply.mu.Unlock()
		w.run()
		w.eventually("it is asked again", func() bool {
			w.supply.mu.Lock()
			defer w.supply.mu.Unlock()
			return w.supply.looks > from+1
		}, nil)
		w.delete("p", ptr(int64(1)))
		w.awaitNothing()
	})
}

// A pod that is over does not run a second time because its record was lost.
func TestUnreadableRecordOfPodThatIsOver(t *testing.T) {
	w := newWorld(t)
	p, acquired := w.left("p", corev1.RestartPolicyOnFailure)
	w.supply.only().end(vm.ExitCrashed)
	got, err := w.client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got.Status.Phase = corev1.PodSucceeded
	for i := range got.Status.Conditions {
		if c := &got.Status.Conditions[i]; c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			c.Status = corev1.ConditionFalse
		}
	}
	cs := &got.Status.ContainerStatuses[0]
	cs.Ready, cs.Started, cs.State = false, ptr(false), corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", ContainerID: cs.ContainerID}}
	if _, err := w.client.CoreV1().Pods("default").UpdateStatus(t.Context(), got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.run(often)
	w.eventually("it is let go", func() bool { return !w.spoilt(p) && len(w.supply.ids()) == 0 }, nil)
	w.looked()
	if w.supply.acquired != acquired {
		t.Errorf("%d machines were made for it", w.supply.acquired-acquired)
	}
	got, err = w.client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil || got.Status.Phase != corev1.PodSucceeded || got.Status.Reason != "" || got.Status.ContainerStatuses[0].State.Terminated.Reason != "Completed" {
		t.Errorf("%+v, %v", got.Status, err)
	}
	w.delete("p", ptr(int64(1)))
	w.awaitGone("p")
	w.awaitNothing()
}

// A pod that was deleted while the node was away is ended, whatever its record is like.
func TestUnreadableRecordOfDeletedPod(t *testing.T) {
	for _, grace := range []int64{0, 1} {
		w := newWorld(t)
		w.left("p", corev1.RestartPolicyAlways)
		w.delete("p", ptr(grace))
		w.run(often)
		w.awaitGone("p")
		w.awaitNothing()
		if w.events.has("MachineQuarantined") {
			t.Errorf("grace %d: nothing is unclear about it:\n%s", grace, w.events)
		}
	}
}

// Nothing is admitted before it is known what there is; that the driver cannot be asked is
// no reason to give up.
func TestNothingIsAdmittedBeforeTheSurvey(t *testing.T) {
	w := newWorld(t)
	asked := make(chan struct{})
	answer := make(chan struct{})
	first := true
	w.supply.setFault(func(ctx context.Context, op string) error {
		switch op {
		case "reconcile":
			if first { // only Run calls it until it has succeeded
				first = false
				close(asked)
				return vm.ErrUnavailable
			}
			select {
			case <-answer:
			case <-ctx.Done():
			}
		case "acquire":
			select {
			case <-answer:
			default:
				t.Error("a machine is made before it is known how much room there is")
			}
		}
		return nil
	})
	w.create(pod("p", []string{"hang"}))
	go func() {
		<-asked
		close(answer)
	}()
	w.run()
	w.await("p", "is ready", ready)
	w.delete("p", ptr(int64(1)))
	w.awaitNothing()
}

// A machine that comes to belong to nobody while the node runs is ended as well.
func TestOrphansWhileRunning(t *testing.T) {
	w := newWorld(t)
	w.run(often)
	w.create(pod("p", []string{"hang"}))
	w.await("p", "is ready", ready)
	for _, id := range []string{provider.MachinePrefix + "lost", "somebody-else"} {
		if _, err := w.supply.Acquire(t.Context(), provider.MachineRequest{MachineID: id}); err != nil {
			t.Fatal(err)
		}
	}
	w.eventually("the orphan is gone", func() bool {
		for _, id := range w.supply.ids() {
			if id == provider.MachinePrefix+"lost" {
				return false
			}
		}
		return true
	}, nil)
	w.eventually("the node's people hear of it", func() bool { return w.events.has(nodeName, "OrphanReaped", "pod-lost") }, nil)
	if len(w.supply.ids()) != 2 {
		t.Errorf("left: %v", w.supply.ids())
	}
	if got := w.await("p", "is ready", ready); got.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("%+v", got.Status)
	}
}

// Wherever the process dies in a call for a machine (for one, for its hand-over, for one that
// was there before, for its end), the next one goes on: no machine is leaked, no container is
// started twice, the pod ends when it is deleted.
func TestCrashAtEverySupplyCall(t *testing.T) {
	calls := crashAtSupplyCall(t, 0)
	t.Logf("calls: %v", calls)
	for _, op := range []string{"reconcile", "acquire", "acquired", "adopt", "release", "reap"} {
		if !slices.Contains(calls, op) {
			t.Errorf("a life without %s proves nothing about it", op)
		}
	}
	for i, op := range calls {
		t.Run(fmt.Sprintf("%d %s", i+1, op), func(t *testing.T) {
			t.Parallel()
			crashAtSupplyCall(t, i+1)
		})
	}
}

// crashAtSupplyCall is a life of a pod over two processes, of which one dies in a call, 0 for
// in none. It returns the calls.
func crashAtSupplyCall(t *testing.T, at int) (calls []string) {
	w := newWorld(t)
	var mu sync.Mutex
	reached := make(chan struct{})
	w.supply.setFault(func(ctx context.Context, op string) error {
		mu.Lock()
		calls = append(calls, op)
		n := len(calls)
		mu.Unlock()
		if n != at {
			return nil
		}
		close(reached)
		<-ctx.Done() // the process goes no further
		return errKilled
	})
	// ends lets a process run until it is done or has died, and tells whether it has died.
	ends := func(pr *process, done func() bool) (died bool) {
		w.eventually("it is done, or dead", func() bool {
			select {
			case <-reached:
				died = true
				return true
			default:
				return done()
			}
		}, nil)
		pr.stop()
		return died
	}
	get := func() *corev1.Pod {
		p, err := w.client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{})
		if err != nil {
			return nil
		}
		return p
	}
	runs := func() bool { p := get(); return p != nil && ready(p) }
	p := w.create(pod("p", []string{"do", "echo begun", "hang"}))
	deleted := false
	if !ends(w.runOrDie(reached), runs) && !ends(w.runOrDie(reached), func() bool { return runs() && w.events.has("p ", "MachineAdopted") }) {
		w.delete("p", ptr(int64(1)))
		deleted = true
		ends(w.runOrDie(reached), func() bool { return get() == nil && len(w.supply.ids()) == 0 })
	}
	if at == 0 {
		return calls
	}
	w.supply.setFault(nil)
	w.run()
	if !deleted {
		if got := w.await("p", "is ready", ready); got.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%+v", got.Status)
		}
		w.eventually("it has one machine", func() bool { return len(w.supply.ids()) == 1 }, func() string { return fmt.Sprint(w.supply.ids()) })
		w.eventually("its output is there", func() bool { return strings.Contains(w.log(p), "begun") }, nil)
		if text := w.log(p); strings.Count(text, "begun") != 1 {
			t.Errorf("its container was started twice:\n%s", text)
		}
		w.delete("p", ptr(int64(1)))
	}
	w.awaitGone("p")
	w.awaitNothing()
	return calls
}

// runOrDie starts the node process, which may die before it is ready.
func (w *world) runOrDie(reached <-chan struct{}) *process {
	w.t.Helper()
	select {
	case <-reached:
		w.t.Fatal("it is dead already")
	default:
	}
	pr := w.begin()
	select {
	case <-pr.up:
	case <-reached:
	case err := <-pr.done:
		w.t.Fatalf("provider ended: %v", err)
	case <-time.After(patience):
		w.t.Fatal("provider does not get ready")
	}
	return pr
}
