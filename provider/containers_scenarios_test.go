// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/provider"
)

// inits puts init containers before a pod's containers; a name that ends with "!" is a sidecar's.
func inits(p *corev1.Pod, list ...[]string) *corev1.Pod {
	for _, words := range list {
		c := p.Spec.Containers[0]
		c.Name, c.Command = strings.TrimSuffix(words[0], "!"), words[1:]
		if c.Name != words[0] {
			c.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	return p
}

func status(p *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return &corev1.ContainerStatus{}
}

// ended is when a container's last known run ended.
func ended(p *corev1.Pod, name string) time.Time {
	if x := status(p, name).State.Terminated; x != nil {
		return x.FinishedAt.Time
	}
	return time.Time{}
}

func TestInitContainers(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.create(inits(pod("order", []string{"hang"}), []string{"one", "sleep", "50ms"}, []string{"two", "sleep", "50ms"}))
	w.create(inits(pod("broken", []string{"hang"}), []string{"one", "exit", "3"}, []string{"two", "exit", "0"}))
	stubborn := inits(pod("stubborn", []string{"hang"}), []string{"one", "exit", "3"})
	stubborn.Spec.RestartPolicy = corev1.RestartPolicyAlways
	w.create(stubborn)

	p := w.await("order", "is ready", ready)
	one, two := status(p, "one"), status(p, "two")
	if !one.Ready || !two.Ready || one.State.Terminated == nil || two.State.Terminated == nil || two.State.Terminated.Reason != "Completed" {
		t.Errorf("init containers are %+v and %+v", one, two)
	}
	p = w.awaitPhase("broken", corev1.PodFailed)
	if x := status(p, "one").State.Terminated; x == nil || x.ExitCode != 3 || status(p, "two").State.Waiting == nil || status(p, "c0").State.Waiting == nil {
		t.Errorf("status is %+v", p.Status)
	}
	p = w.await("stubborn", "crash-loops", func(p *corev1.Pod) bool {
		st := status(p, "one")
		return st.State.Waiting != nil && st.State.Waiting.Reason == "CrashLoopBackOff" && st.RestartCount == 1
	})
	if p.Status.Phase != corev1.PodPending || status(p, "c0").State.Waiting.Reason != "PodInitializing" {
		t.Errorf("status is %+v", p.Status)
	}
	for _, n := range []string{"order", "broken", "stubborn"} {
		w.delete(n, ptr(int64(0)))
	}
	w.awaitNothing()
}

// A lost machine takes with it what init containers did.
func TestInitContainersRunAgainInANewMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		p := inits(pod("p", []string{"hang"}), []string{"side!", "hang"}, []string{"one", "exit", "0"})
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
		w.create(p)
		w.await("p", "is ready", ready)
		w.supply.only().end("crashed")
		got := w.await("p", "is ready again", func(p *corev1.Pod) bool { return ready(p) && status(p, "c0").RestartCount == 1 })
		if one, side := status(got, "one"), status(got, "side"); one.RestartCount != 1 || one.LastTerminationState.Terminated == nil || side.RestartCount != 1 || side.State.Running == nil {
			t.Errorf("init containers are %+v and %+v", one, side)
		}
		w.delete("p", ptr(int64(0)))
		w.awaitNothing()
	})
}

func TestSidecars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.run()
		// The sidecars outlive the main container, end in reverse order, and do not fail the pod.
		w.create(inits(pod("job", []string{"sleep", "100ms"}), []string{"a!", "graceful", "1"}, []string{"i", "exit", "0"}, []string{"b!", "graceful", "0"}))
		// One that ends is restarted although the pod's containers are not.
		w.create(inits(pod("serve", []string{"graceful", "0"}), []string{"a!", "sleep", "50ms"}))
		p := w.awaitPhase("job", corev1.PodSucceeded)
		a, b, c := ended(p, "a"), ended(p, "b"), ended(p, "c0")
		if a.IsZero() || b.IsZero() || a.Before(b) || b.Before(c) {
			t.Errorf("a ended at %s, b at %s, the main container at %s", a, b, c)
		}
		if status(p, "a").RestartCount != 0 || status(p, "a").State.Terminated.ExitCode != 1 {
			t.Errorf("sidecar is %+v", status(p, "a"))
		}
		w.await("serve", "restarts its sidecar", func(p *corev1.Pod) bool {
			return status(p, "a").RestartCount >= 1 && status(p, "c0").State.Running != nil
		})
		// What has passed is known to the next process: nothing begins again.
		first.stop()
		w.run()
		w.eventually("the machine is adopted", func() bool { return w.events.has("serve", "MachineAdopted") }, nil)
		p = w.await("serve", "runs", func(p *corev1.Pod) bool { return status(p, "c0").State.Running != nil })
		if status(p, "c0").RestartCount != 0 {
			t.Errorf("status is %+v", p.Status)
		}
		w.delete("serve", nil)
		w.delete("job", nil)
		w.awaitNothing()
	})
}

// update changes a pod of the API as a user does.
func (w *world) update(name string, change func(*corev1.Pod)) {
	w.t.Helper()
	w.eventually("pod "+name+" is changed", func() bool {
		w.api.Lock()
		defer w.api.Unlock()
		obj, err := w.client.Tracker().Get(corev1.SchemeGroupVersion.WithResource("pods"), "default", name)
		if err != nil {
			return false
		}
		p := obj.(*corev1.Pod).DeepCopy()
		change(p)
		p.Generation++
		w.version(p)
		return w.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), p, p.Namespace) == nil
	}, nil)
}

// debug puts an ephemeral container into a pod, as kubectl debug does.
func (w *world) debug(pod, name, image, target string, command ...string) {
	w.t.Helper()
	w.update(pod, func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{TargetContainerName: target,
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: image, ImagePullPolicy: corev1.PullAlways, Command: command}})
	})
}

func TestEphemeralContainers(t *testing.T) {
	w := newWorld(t)
	first := w.run()
	p := pod("p", []string{"graceful", "0"})
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	w.create(p)
	w.await("p", "is ready", ready)
	w.debug("p", "quick", "example.test/image", "", "exit", "4")
	w.debug("p", "stays", "example.test/image", "c0", "graceful", "0")
	w.debug("p", "other", "example.test/other", "", "hang")
	w.debug("p", "lost", "example.test/image", "nobody", "hang")
	check := func(p *corev1.Pod) bool {
		quick, stays, other := status(p, "quick"), status(p, "stays"), status(p, "other")
		return ready(p) && quick.State.Terminated != nil && quick.State.Terminated.ExitCode == 4 && quick.RestartCount == 0 && stays.State.Running != nil &&
			other.State.Waiting != nil && other.State.Waiting.Reason == provider.ReasonImageNotInMachine && strings.Contains(other.State.Waiting.Message, "--copy-to") &&
			status(p, "lost").State.Waiting != nil && status(p, "lost").State.Waiting.Reason == "CreateContainerConfigError"
	}
	w.await("p", "has its ephemeral containers", check)
	first.stop()
	w.run()
	w.eventually("the machine is adopted", func() bool { return w.events.has("p", "MachineAdopted") }, nil)
	w.await("p", "has its ephemeral containers still", check)
	if n := len(w.supply.ids()); n != 1 {
		t.Errorf("%d machines", n)
	}
	w.delete("p", nil)
	w.awaitNothing()

	w.create(pod("over", []string{"sleep", "2s"}))
	w.await("over", "is ready", ready)
	w.debug("over", "stays", "example.test/image", "", "graceful", "7")
	if p := w.awaitPhase("over", corev1.PodSucceeded); status(p, "stays").State.Terminated == nil {
		t.Errorf("ephemeral container is %+v", status(p, "stays"))
	}
}

func TestActiveDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.run()
		p := pod("late", []string{"graceful", "0"}, []string{"exit", "0"})
		p.Spec.RestartPolicy, p.Spec.ActiveDeadlineSeconds = corev1.RestartPolicyAlways, ptr(int64(2))
		w.create(p)
		pulls := pod("pulls", []string{"exit", "0"})
		pulls.Spec.ActiveDeadlineSeconds, pulls.Spec.Containers[0].Image = ptr(int64(1)), "missing"
		w.images.fail = func(ref string) error {
			if ref == "missing" {
				return context.DeadlineExceeded
			}
			return nil
		}
		w.create(pulls)
		w.create(pod("told", []string{"graceful", "0"}))
		w.await("told", "is ready", ready)
		w.update("told", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr(int64(1)) })
		w.await("late", "runs", func(p *corev1.Pod) bool { return status(p, "c0").State.Running != nil })
		first.stop() // the deadline counts from the start of the pod, whoever looks after it
		w.run()
		for _, n := range []string{"late", "pulls", "told"} {
			p := w.awaitPhase(n, corev1.PodFailed)
			if p.Status.Reason != "DeadlineExceeded" || p.Status.Message != "Pod was active on the node longer than the specified deadline" {
				t.Errorf("%s: status is %+v", n, p.Status)
			}
			if took := time.Since(p.Status.StartTime.Time); took > 6*time.Second {
				t.Errorf("%s: it took %s", n, took)
			}
		}
		w.eventually("the machines are released", func() bool { return len(w.supply.ids()) == 0 }, nil)
		for _, n := range []string{"late", "pulls", "told"} {
			w.delete(n, nil)
		}
		w.awaitNothing()
	})
}

// A container that fails without a word is spoken for by the end of its log.
func TestTerminationMessageFromLog(t *testing.T) {
	w := newWorld(t)
	w.run()
	for name, command := range map[string][]string{"fails": {"do", "echo first", "warn last words", "exit 2"}, "fine": {"do", "echo hi", "exit 0"}, "long": {"do", "print 200", "exit 1"}} {
		p := pod(name, command)
		p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		w.create(p)
	}
	over := func(p *corev1.Pod) bool {
		return slices.Contains([]corev1.PodPhase{corev1.PodFailed, corev1.PodSucceeded}, p.Status.Phase)
	}
	if m := status(w.await("fails", "is over", over), "c0").State.Terminated.Message; m != "first\nlast words\n" && m != "last words\nfirst\n" {
		t.Errorf("message is %q", m)
	}
	if m := status(w.await("fine", "is over", over), "c0").State.Terminated.Message; m != "" {
		t.Errorf("message is %q", m)
	}
	if m := status(w.await("long", "is over", over), "c0").State.Terminated.Message; !strings.HasPrefix(m, "line 121\n") || !strings.HasSuffix(m, "line 200\n") {
		t.Errorf("message is %q", m)
	}
}

// Deleting a pod during its initialization, and with less and less grace.
func TestDeleteDuringInit(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.create(inits(pod("p", []string{"hang"}), []string{"side!", "hang"}, []string{"one", "hang"}))
	w.await("p", "initializes", func(p *corev1.Pod) bool { return status(p, "one").State.Running != nil })
	began := time.Now()
	w.delete("p", ptr(int64(60)))
	w.eventually("the pod is being stopped", func() bool { return w.events.has("p", "Killing", "Stopping container one") }, nil)
	w.delete("p", ptr(int64(1)))
	w.awaitGone("p")
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	w.awaitNothing()
}

// Containers that have restart policies of their own.
func TestContainerRestartRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run()
		p := pod("p", []string{"exit", "42"}, []string{"exit", "0"})
		p.Spec.Containers[0].RestartPolicy = ptr(corev1.ContainerRestartPolicyNever)
		p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}
		w.create(p)
		got := w.await("p", "restarts the first container", func(p *corev1.Pod) bool { return status(p, "c0").RestartCount >= 1 })
		if got.Status.Phase != corev1.PodRunning || status(got, "c1").RestartCount != 0 {
			t.Errorf("status is %+v", got.Status)
		}
		if _, err := w.client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		w.delete("p", ptr(int64(0)))
		w.awaitNothing()
	})
}
