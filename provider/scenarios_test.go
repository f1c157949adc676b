// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/provider"
)

// errKilled makes the fake supply leave what it made, as a killed process does.
var errKilled = errKill{}

func ptr[T any](v T) *T { return &v }

func ready(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// log reads what is in a container's log files.
func (w *world) log(p *corev1.Pod) string {
	w.t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(filepath.Join(w.state, "pods", string(p.UID)), func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".log") {
			data, rerr := os.ReadFile(path)
			all.Write(data)
			return rerr
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all.String()
}

func TestDeletionHonoursGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		w.create(pod("polite", []string{"graceful", "0"}))
		w.create(pod("stubborn", []string{"hang"}))
		w.create(pod("forced", []string{"hang"}))
		for _, n := range []string{"polite", "stubborn", "forced"} {
			w.await(n, "is ready", ready)
		}
		began := time.Now()
		w.delete("polite", ptr(int64(30)))
		w.awaitGone("polite")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("a pod that obeys SIGTERM took %s to go", took)
		}
		began = time.Now()
		w.delete("stubborn", ptr(int64(1)))
		w.awaitGone("stubborn")
		if took := time.Since(began); took < time.Second {
			t.Errorf("a pod that ignores SIGTERM was gone after %s, before its grace", took)
		}
		w.delete("forced", ptr(int64(0))) // the API drops it at once
		w.awaitNothing()
	})
}

func TestUnsupportedFieldIsRefused(t *testing.T) {
	w := newWorld(t)
	w.run()
	p := pod("no", []string{"exit", "0"})
	p.Spec.HostIPC = true
	p.Spec.HostNetwork = true
	w.create(p)
	got := w.awaitPhase("no", corev1.PodFailed)
	for _, f := range []string{"spec.hostIPC", "spec.hostNetwork"} {
		if !strings.Contains(got.Status.Message, f) || !w.events.has("no", provider.ReasonUnsupportedField, f) {
			t.Errorf("%s is not named: %q\n%s", f, got.Status.Message, w.events)
		}
	}
	if got.Status.Reason != provider.ReasonUnsupportedField {
		t.Errorf("reason is %q", got.Status.Reason)
	}
	w.delete("no", nil)
	w.awaitGone("no")
	w.awaitNothing()
}

func TestImageErrors(t *testing.T) {
	w := newWorld(t)
	w.images.fail = func(ref string) error {
		switch ref {
		case "bad":
			return fmt.Errorf("parse: %w", provider.ErrImageInvalidName)
		case "never":
			return provider.ErrImageNeverPull
		case "missing":
			return errors.New("not found")
		}
		return nil
	}
	w.run()
	for ref, reason := range map[string]string{"bad": "InvalidImageName", "never": "ErrImageNeverPull", "missing": "ErrImagePull"} {
		p := pod(ref, []string{"exit", "0"})
		p.Spec.Containers[0].Image = ref
		w.create(p)
		w.await(ref, "waits with "+reason, func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == reason
		})
	}
	w.await("missing", "waits with ImagePullBackOff", func(p *corev1.Pod) bool {
		return p.Status.ContainerStatuses[0].State.Waiting.Reason == "ImagePullBackOff"
	})
	for _, n := range []string{"bad", "never", "missing"} {
		w.delete(n, nil)
		w.awaitGone(n)
	}
	w.awaitNothing()
}

func TestRestartPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		p := pod("loop", []string{"do", "echo hi", "exit 3"})
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
		p = w.create(p)
		got := w.await("loop", "crash-loops", func(p *corev1.Pod) bool {
			if len(p.Status.ContainerStatuses) != 1 {
				return false
			}
			st := p.Status.ContainerStatuses[0]
			return st.State.Waiting != nil && st.State.Waiting.Reason == "CrashLoopBackOff" && st.RestartCount == 1
		})
		if l := got.Status.ContainerStatuses[0].LastTerminationState.Terminated; l == nil || l.ExitCode != 3 || got.Status.Phase != corev1.PodRunning {
			t.Errorf("status is %+v", got.Status)
		}
		if n := strings.Count(w.log(p), " hi\n"); n != 2 {
			t.Errorf("%d lines in the logs of two runs", n)
		}
		once := pod("once", []string{"exit", "0"})
		once.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		w.create(once)
		w.awaitPhase("once", corev1.PodSucceeded)
		w.delete("loop", nil)
		w.awaitGone("loop")
	})
}

func TestStartError(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.create(pod("nothing", []string{"/no/such/program"}))
	p := w.awaitPhase("nothing", corev1.PodFailed)
	if x := p.Status.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "StartError" || x.ExitCode != 128 || !strings.Contains(x.Message, "/no/such/program") {
		t.Errorf("state is %+v", p.Status.ContainerStatuses[0].State)
	}
}

func TestMachineDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		w.create(pod("never", []string{"hang"}))
		w.await("never", "is ready", ready)
		w.supply.only().end("crashed")
		p := w.awaitPhase("never", corev1.PodFailed)
		if x := p.Status.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "MachineDied" || x.Message == "" {
			t.Errorf("state is %+v", p.Status.ContainerStatuses[0].State)
		}
		w.eventually("the dead machine is released", func() bool { return len(w.supply.ids()) == 0 }, nil)

		again := pod("again", []string{"hang"})
		again.Spec.RestartPolicy = corev1.RestartPolicyAlways
		w.create(again)
		w.await("again", "is ready", ready)
		w.supply.only().end("crashed")
		p = w.await("again", "is ready again", func(p *corev1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
		if l := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; l == nil || l.Reason != "MachineDied" {
			t.Errorf("last state is %+v", p.Status.ContainerStatuses[0].LastTerminationState)
		}
		w.delete("again", ptr(int64(1)))
		w.awaitGone("again")
	})
}

func TestSilentGuestFailsThePod(t *testing.T) {
	w := newWorld(t)
	w.run(func(o *provider.Options) { o.StuckTimeout = 2 * time.Second })
	w.create(pod("silent", []string{"hang"}))
	w.await("silent", "is ready", ready)
	w.supply.only().agent.Hang()
	p := w.awaitPhase("silent", corev1.PodFailed)
	if x := p.Status.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "MachineStuck" || !strings.Contains(x.Message, "has not answered") {
		t.Errorf("state is %+v", p.Status.ContainerStatuses[0].State)
	}
	w.eventually("the silent machine is released", func() bool { return len(w.supply.ids()) == 0 }, nil)
}

// A restart of the node process adopts what runs: nothing is started twice, no line
// of a log is lost or repeated.
func TestRestartAdopts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.run()
		created := w.create(pod("long", []string{"do", "tick 40 30ms"}))
		w.create(pod("stays", []string{"hang"}))
		w.create(pod("leaves", []string{"hang"}))
		w.create(pod("over", []string{"exit", "0"}))
		for _, n := range []string{"long", "stays", "leaves"} {
			w.await(n, "is ready", ready)
		}
		w.awaitPhase("over", corev1.PodSucceeded)
		first.stop()
		before := w.supply.acquired
		w.delete("leaves", ptr(int64(0))) // while nobody looks
		seen := &samples{}
		w.run(func(o *provider.Options) { o.Observer, o.Began = seen, time.Now() })
		w.eventually("the recovery is measured", func() bool { return seen.get("sample node_recovery") == 1 }, nil)
		p := w.awaitPhase("long", corev1.PodSucceeded)
		if p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("status is %+v", p.Status)
		}
		text := w.log(created)
		for i := 1; i <= 40; i++ {
			if n := strings.Count(text, fmt.Sprintf(" tick %d\n", i)); n != 1 {
				t.Errorf("line %d is there %d times", i, n)
			}
		}
		if got := w.await("stays", "is ready", ready); got.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("status is %+v", got.Status)
		}
		w.eventually("the machine of the deleted pod is gone", func() bool { return len(w.supply.ids()) == 1 }, nil)
		if w.supply.acquired != before {
			t.Errorf("%d machines were made after the restart", w.supply.acquired-before)
		}
		w.delete("stays", ptr(int64(1)))
		w.delete("long", nil)
		w.delete("over", nil)
		w.awaitNothing()
	})
}

// An orphaned machine is reaped, a machine of somebody else is not.
func TestOrphans(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{provider.MachinePrefix + "lost", "somebody-else"} {
		if _, err := w.supply.Acquire(t.Context(), provider.MachineRequest{MachineID: id}); err != nil {
			t.Fatal(err)
		}
	}
	w.run()
	w.eventually("only the other machine is left", func() bool { return slices.Equal(w.supply.ids(), []string{"somebody-else"}) }, nil)
	w.eventually("the node's people hear of it", func() bool { return w.events.has(nodeName, "OrphanReaped", "pod-lost") }, nil)
}

// Deleting a pod in whatever it does cancels it promptly and leaks nothing.
func TestDeleteWhileStarting(t *testing.T) {
	for _, stalled := range []string{"pull", "acquire", "acquired"} {
		t.Run(stalled, func(t *testing.T) {
			w := newWorld(t)
			reached := make(chan struct{}, 10)
			w.images.stall = stalled == "pull"
			w.supply.setFault(func(ctx context.Context, op string) error {
				if op == stalled {
					reached <- struct{}{}
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			})
			w.run()
			w.create(pod("p", []string{"hang"}))
			if stalled == "pull" {
				w.eventually("the pull began", func() bool { w.images.mu.Lock(); defer w.images.mu.Unlock(); return w.images.pulls > 0 }, nil)
			} else {
				<-reached
			}
			began := time.Now()
			w.delete("p", ptr(int64(30)))
			w.awaitGone("p")
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			w.awaitNothing()
		})
	}
}

// A pod of the same name, created as soon as the old one is gone or even before the
// node saw that, is another pod.
func TestRecreatedPodIsAnother(t *testing.T) {
	w := newWorld(t)
	w.run()
	for i := range 5 {
		p := pod("same", []string{"hang"})
		p.Labels = map[string]string{"run": "x"}
		p = w.create(p)
		got := w.await("same", fmt.Sprintf("is ready (%d)", i), func(have *corev1.Pod) bool { return have.UID == p.UID && ready(have) })
		if id := got.Status.ContainerStatuses[0].ContainerID; !strings.Contains(id, string(p.UID)) {
			t.Errorf("container %s is not of pod %s", id, p.UID)
		}
		w.delete("same", ptr(int64(0)))
	}
	w.awaitNothing()
}

// Whenever the process dies, the next one leaks nothing and starts nothing twice.
func TestKillAtAnyPoint(t *testing.T) {
	w := newWorld(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	const rounds = 15
	for i := range rounds {
		pr := w.run()
		name := fmt.Sprintf("p%d", i)
		p := pod(name, []string{"hang"}, []string{"graceful", "0"})
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
		w.create(p)
		if i > 0 && i%2 == 0 {
			w.delete(fmt.Sprintf("p%d", i-1), ptr(int64(1)))
		}
		time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
		pr.stop()
	}
	w.run()
	list, err := w.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	living := 0
	for _, p := range list.Items {
		if p.DeletionTimestamp != nil {
			w.awaitGone(p.Name)
			continue
		}
		living++
		got := w.await(p.Name, "is ready", ready)
		for _, st := range got.Status.ContainerStatuses {
			if st.RestartCount != 0 {
				t.Errorf("%s/%s was restarted %d times", p.Name, st.Name, st.RestartCount)
			}
		}
	}
	w.eventually("one machine per pod", func() bool { return len(w.supply.ids()) == living }, func() string { return fmt.Sprint(living, w.supply.ids()) })
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			w.delete(p.Name, ptr(int64(1)))
		}
	}
	w.awaitNothing()
}

// A process that is killed in the middle of making a machine leaves one that nobody
// can trust: the next process reaps it and makes another.
func TestKilledWhileMakingAMachine(t *testing.T) {
	w := newWorld(t)
	reached := make(chan struct{}, 1)
	w.supply.setFault(func(ctx context.Context, op string) error {
		if op != "acquired" {
			return nil
		}
		reached <- struct{}{}
		<-ctx.Done()
		return errKilled
	})
	first := w.run()
	w.create(pod("p", []string{"hang"}))
	<-reached
	first.stop()
	left := w.supply.ids()
	if len(left) != 1 {
		t.Fatalf("machines %v", left)
	}
	w.supply.setFault(nil)
	w.run()
	p := w.await("p", "is ready", ready)
	if ids := w.supply.ids(); len(ids) != 1 || ids[0] == left[0] || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("machines %v after %v, status %+v", ids, left, p.Status)
	}
	w.delete("p", ptr(int64(1)))
	w.awaitNothing()
}

// What somebody adds to a running pod in vain does not end it, also when the process starts again.
func TestRestartKeepsAPodThatWasAccepted(t *testing.T) {
	w := newWorld(t)
	first := w.run()
	w.create(pod("p", []string{"hang"}))
	p := w.await("p", "is ready", ready)
	p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: "/dev/v"}}
	if _, err := w.client.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the field is named", func() bool {
		return w.events.has("p", provider.ReasonUnsupportedField, "spec.containers[0].volumeDevices")
	}, nil)
	first.stop()
	w.run()
	w.eventually("the machine is adopted", func() bool { return w.events.has("p", "MachineAdopted") }, nil)
	if got := w.await("p", "is ready", ready); got.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("status is %+v", got.Status)
	}
	w.delete("p", ptr(int64(1)))
	w.awaitNothing()
}

// A pod that was being deleted when the process ended goes on going, and starts nothing.
func TestRestartWhileDeleting(t *testing.T) {
	w := newWorld(t)
	first := w.run()
	w.create(pod("p", []string{"hang"}))
	w.await("p", "is ready", ready)
	w.delete("p", ptr(int64(2)))
	first.stop()
	acquired := w.supply.acquired
	w.run()
	w.awaitGone("p")
	w.awaitNothing()
	if w.supply.acquired != acquired {
		t.Error("a machine was made for a pod that is being deleted")
	}
}

// A pod that is removed by force while it is given time does not use that time up.
func TestForcedDeletionEndsTheGrace(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.create(pod("p", []string{"hang"}))
	w.await("p", "is ready", ready)
	w.delete("p", ptr(int64(3600)))
	w.eventually("the pod is being stopped", func() bool { return w.events.has("p", "Killing") }, nil)
	w.delete("p", ptr(int64(0)))
	w.awaitNothing()
}

// A watch that was broken while a pod was replaced shows the new one as a change of the old.
func TestReplacedPodBehindABrokenWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		old := w.create(pod("same", []string{"hang"}))
		w.await("same", "is ready", ready)
		next := pod("same", []string{"hang"})
		next.UID, next.CreationTimestamp = old.UID+"-next", old.CreationTimestamp
		w.api.Lock()
		w.version(next)
		err := w.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), next, next.Namespace)
		w.api.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		w.await("same", "is ready again", func(p *corev1.Pod) bool {
			return ready(p) && strings.Contains(p.Status.ContainerStatuses[0].ContainerID, string(next.UID))
		})
		w.eventually("the old pod's machine is gone", func() bool { return len(w.supply.ids()) == 1 }, nil)
		w.delete("same", ptr(int64(1)))
		w.awaitNothing()
	})
}

// What others write into a pod's status stays.
func TestConditionsOfOthersStay(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.create(pod("p", []string{"sleep", "2"}))
	w.await("p", "is ready", ready)
	w.eventually("the condition is written", func() bool {
		p, err := w.client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
		_, err = w.client.CoreV1().Pods("default").UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		return err == nil
	}, nil)
	p := w.awaitPhase("p", corev1.PodSucceeded)
	if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }) {
		t.Errorf("conditions are %+v", p.Status.Conditions)
	}
}

// A process that takes over says that it lives, and keeps since when what it says is so.
func TestNodeTakenOver(t *testing.T) {
	w := newWorld(t)
	w.run().stop()
	nodes := w.client.CoreV1().Nodes()
	n, err := nodes.Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	old := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	for i := range n.Status.Conditions {
		n.Status.Conditions[i].LastHeartbeatTime, n.Status.Conditions[i].LastTransitionTime = old, old
	}
	if _, err := nodes.UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.run()
	if n, err = nodes.Get(t.Context(), nodeName, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range n.Status.Conditions {
		if !c.LastTransitionTime.Equal(&old) || !old.Before(&c.LastHeartbeatTime) {
			t.Errorf("%+v, want since %v, and told now", c, old)
		}
	}
	if len(n.Status.Conditions) != 4 {
		t.Errorf("conditions %+v", n.Status.Conditions)
	}
}

// The node registers with what it has, and follows what is measured.
func TestNode(t *testing.T) {
	w := newWorld(t)
	w.run(func(o *provider.Options) {
		o.Node.Measure = func() (provider.Pressure, error) {
			return provider.Pressure{Disk: provider.Measured{Short: true, Message: "full"}}, nil
		}
	})
	n, err := w.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status := map[corev1.NodeConditionType]corev1.ConditionStatus{}
	for _, c := range n.Status.Conditions {
		status[c.Type] = c.Status
	}
	if status[corev1.NodeReady] != "True" || status[corev1.NodeDiskPressure] != "True" || status[corev1.NodeMemoryPressure] != "False" || status[corev1.NodePIDPressure] != "False" {
		t.Errorf("conditions are %v", status)
	}
	if len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != provider.TaintMachine || n.Labels[corev1.LabelOSStable] != "linux" || n.Labels[corev1.LabelArchStable] != "amd64" ||
		n.Labels[provider.LabelHostOS] != "linux" || n.Status.DaemonEndpoints.KubeletEndpoint.Port != 10250 || n.Status.Addresses[0].Address != "192.0.2.1" {
		t.Errorf("node is %+v", n)
	}
	for l := range n.Labels {
		if strings.Contains(l, "node-role") || strings.HasPrefix(l, "alpha.") || l == "kubernetes.io/role" {
			t.Errorf("label %s is refused by NodeRestriction", l)
		}
	}
}

// A machine that cannot be made keeps the pod pending, and is asked for again.
func TestMachineRefusals(t *testing.T) {
	w := newWorld(t)
	refusals := 1
	w.supply.setFault(func(_ context.Context, op string) error {
		if op == "acquire" && refusals > 0 {
			refusals--
			return &provider.RefusedError{Reason: "InsufficientCapacity", Err: errors.New("no memory left")}
		}
		return nil
	})
	w.run()
	w.create(pod("later", []string{"exit", "0"}))
	w.await("later", "says why it waits", func(p *corev1.Pod) bool { return p.Status.Reason == "InsufficientCapacity" })
	w.awaitPhase("later", corev1.PodSucceeded)

	w.supply.setFault(func(_ context.Context, op string) error {
		if op == "acquire" {
			return &provider.RefusedError{Reason: "Oversized", Permanent: true, Err: errors.New("too big")}
		}
		return nil
	})
	w.create(pod("never", []string{"exit", "0"}))
	if p := w.awaitPhase("never", corev1.PodFailed); p.Status.Reason != "Oversized" {
		t.Errorf("status is %+v", p.Status)
	}
}

func TestTooLargeForTheNode(t *testing.T) {
	w := newWorld(t)
	w.run()
	p := pod("large", []string{"exit", "0"})
	p.Spec.Containers[0].Resources.Requests = provider.Capacity(1, 1<<40, 0, 0)
	for k := range p.Spec.Containers[0].Resources.Requests {
		if k != corev1.ResourceMemory {
			delete(p.Spec.Containers[0].Resources.Requests, k)
		}
	}
	w.create(p)
	if got := w.awaitPhase("large", corev1.PodFailed); got.Status.Reason != "OutOfmemory" {
		t.Errorf("status is %+v", got.Status)
	}
}
