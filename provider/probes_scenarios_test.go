// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clienttesting "k8s.io/client-go/testing"
)

// app is what a container of the simulated guest would serve: the guest's loopback is the
// test's. Each path answers by a status that the test sets.
type app struct {
	port   intstr.IntOrString
	status sync.Map // path to int; none is 200
	asked  sync.Map // path to *atomic.Int64
}

func serveApp(t testing.TB) *app {
	t.Helper()
	a := &app{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.count(r.URL.Path).Add(1)
		if code, ok := a.status.Load(r.URL.Path); ok {
			w.WriteHeader(code.(int))
		}
	}))
	t.Cleanup(s.Close)
	a.port = intstr.FromInt(s.Listener.Addr().(*net.TCPAddr).Port)
	return a
}

func (a *app) count(path string) *atomic.Int64 {
	n, _ := a.asked.LoadOrStore(path, new(atomic.Int64))
	return n.(*atomic.Int64)
}

func (a *app) set(path string, code int) { a.status.Store(path, code) }

// probe asks every second, and one failure counts.
func (a *app) probe(path string) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: a.port}},
		PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 1,
	}
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func isReady(p *corev1.Pod) bool {
	return condition(p, corev1.PodReady).Status == corev1.ConditionTrue && condition(p, corev1.ContainersReady).Status == corev1.ConditionTrue &&
		len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].Ready
}

func isUnready(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && condition(p, corev1.PodReady).Status == corev1.ConditionFalse &&
		condition(p, corev1.ContainersReady).Status == corev1.ConditionFalse && !p.Status.ContainerStatuses[0].Ready
}

// TestReadiness: a pod is ready as its probe says, the conditions change with it and not
// without, and the API has it soon after the answer.
func TestReadiness(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	a.set("/ready", 503)
	w.run()
	p := pod("web", []string{"hang"})
	p.Spec.Containers[0].ReadinessProbe = a.probe("/ready")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: a.port.IntVal}}
	p.Spec.Containers[0].ReadinessProbe.HTTPGet.Port = intstr.FromString("web")
	w.create(p)
	before := w.await("web", "runs unready", isUnready)
	if !*before.Status.ContainerStatuses[0].Started || condition(before, corev1.PodReady).Reason != "ContainersNotReady" {
		t.Errorf("status %+v", before.Status)
	}
	w.eventually("event", func() bool {
		return w.events.has("web", "Warning Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
	}, nil)
	a.set("/ready", 200)
	ready := w.await("web", "is ready", isReady)
	// A condition that others set says nothing about the pod's own.
	have := ready.DeepCopy()
	have.Status.Conditions = append(have.Status.Conditions, corev1.PodCondition{Type: "other", Status: corev1.ConditionTrue})
	if _, err := w.client.CoreV1().Pods("default").UpdateStatus(t.Context(), have, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	a.set("/ready", 500)
	unready := w.await("web", "is unready again", isUnready)
	if c := condition(unready, corev1.PodInitialized); c.LastTransitionTime != condition(before, corev1.PodInitialized).LastTransitionTime {
		t.Errorf("Initialized changed: %v", c)
	}
	if c, b := condition(unready, corev1.PodReady), condition(ready, corev1.PodReady); c.LastTransitionTime.Before(&b.LastTransitionTime) {
		t.Errorf("Ready changed at %s, before at %s", c.LastTransitionTime, b.LastTransitionTime)
	}
	// At the end a readiness probe goes on, and the pod is not ready when its container is not there.
	a.set("/ready", 200)
	w.await("web", "is ready", isReady)
	w.delete("web", new(int64(1)))
	w.awaitGone("web")
	w.awaitNothing()
}

// TestReadinessIsPublishedSoon: from the answer of the application until the API server has
// the pod's status. The best of three counts: nothing on the way may wait for anything, while
// the host of a test may be busy.
func TestReadinessIsPublishedSoon(t *testing.T) {
	w := newWorld(t)
	var answered, published sync.Map // by pod
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		answered.LoadOrStore(strings.Trim(r.URL.Path, "/"), time.Now())
	}))
	defer s.Close()
	w.client.PrependReactor("update", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if p, ok := action.(clienttesting.UpdateActionImpl).Object.(*corev1.Pod); ok && isReady(p) {
			published.LoadOrStore(p.Name, time.Now())
		}
		return false, nil, nil
	})
	w.run()
	best := time.Hour
	for _, name := range []string{"one", "two", "three"} {
		p := pod(name, []string{"hang"})
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{InitialDelaySeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: name, Port: intstr.FromInt(s.Listener.Addr().(*net.TCPAddr).Port)}}}
		w.create(p)
		w.await(name, "is ready", isReady)
		from, _ := answered.Load(name)
		to, _ := published.Load(name)
		took := to.(time.Time).Sub(from.(time.Time))
		t.Logf("%s: %s from the answer until the API has it", name, took)
		best = min(best, took)
	}
	if best > 250*time.Millisecond {
		t.Errorf("it takes %s at best", best)
	}
}

// TestLiveness: a container that fails it is ended within the probe's grace period, and runs
// again with probes that know nothing of the run before.
func TestLiveness(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	w.run()
	p := pod("web", []string{"hang"}, []string{"hang"})
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	p.Spec.TerminationGracePeriodSeconds = new(int64(3600))
	c := &p.Spec.Containers[0]
	c.LivenessProbe, c.ReadinessProbe = a.probe("/live"), a.probe("/ready")
	c.LivenessProbe.TerminationGracePeriodSeconds = new(int64(1))
	w.create(p)
	w.await("web", "is ready", isReady)
	a.set("/ready", 503)
	a.set("/live", 503)
	w.await("web", "is ended", func(p *corev1.Pod) bool {
		st := p.Status.ContainerStatuses[0]
		if st.RestartCount == 0 && st.LastTerminationState.Terminated == nil && st.State.Terminated == nil {
			return false
		}
		a.set("/live", 200)
		return true
	})
	got := w.await("web", "runs again, unready", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 && isUnready(p) })
	if last := got.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
		t.Errorf("last %+v", last)
	}
	if got.Status.ContainerStatuses[1].RestartCount != 0 {
		t.Errorf("the other container was ended as well: %+v", got.Status.ContainerStatuses[1])
	}
	a.set("/ready", 200)
	w.await("web", "is ready again", isReady)
	if !w.events.has("Warning Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503") || !w.events.has("Killing", "Container c0 failed liveness probe, will be restarted") {
		t.Errorf("events:\n%s", w.events)
	}
	w.delete("web", new(int64(0)))
	w.awaitGone("web")
}

// TestLivenessOfAWellBehavedContainer: one that fails its probe and ends well when it is told
// to has not done its work: it runs again, unless nothing in the pod ever does.
func TestLivenessOfAWellBehavedContainer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	a.set("/live", 503)
	w.run()
	for name, policy := range map[string]corev1.RestartPolicy{"job": corev1.RestartPolicyOnFailure, "once": corev1.RestartPolicyNever} {
		p := pod(name, []string{"graceful", "0"})
		p.Spec.RestartPolicy = policy
		p.Spec.Containers[0].LivenessProbe = a.probe("/live")
		w.create(p)
	}
	got := w.await("job", "runs again", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodRunning && status(p, "c0").RestartCount == 1
	})
	if x := status(got, "c0").LastTerminationState.Terminated; got.Status.Phase != corev1.PodRunning || x == nil || x.ExitCode != 0 {
		t.Errorf("status is %+v", got.Status)
	}
	w.awaitPhase("once", corev1.PodSucceeded)
	for _, n := range []string{"job", "once"} {
		w.delete(n, new(int64(0)))
	}
	w.awaitNothing()
}

// TestStartupProbe: until it succeeds nothing else is asked and the container is not started;
// when it fails the container is ended.
func TestStartupProbe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	a.set("/start", 503)
	a.set("/fails", 503)
	w.run()
	p := pod("slow", []string{"hang"})
	c := &p.Spec.Containers[0]
	c.StartupProbe, c.LivenessProbe, c.ReadinessProbe = a.probe("/start"), a.probe("/live"), a.probe("/ready")
	c.StartupProbe.FailureThreshold = 100
	w.create(p)
	f := pod("fails", []string{"graceful", "0"})
	f.Spec.Containers[0].StartupProbe = a.probe("/fails")
	w.create(f)
	w.eventually("two looks", func() bool { return a.count("/start").Load() >= 2 }, nil)
	got := w.await("slow", "runs", isUnready)
	if *got.Status.ContainerStatuses[0].Started || a.count("/live").Load() != 0 || a.count("/ready").Load() != 0 {
		t.Errorf("before the startup probe: %+v, liveness %d, readiness %d", got.Status.ContainerStatuses[0], a.count("/live").Load(), a.count("/ready").Load())
	}
	a.set("/start", 200)
	got = w.await("slow", "is ready", isReady)
	if !*got.Status.ContainerStatuses[0].Started {
		t.Errorf("started %+v", got.Status.ContainerStatuses[0])
	}
	n := a.count("/start").Load()
	w.eventually("liveness is asked", func() bool { return a.count("/live").Load() >= 2 }, nil)
	if a.count("/start").Load() != n {
		t.Error("the startup probe is asked although it has succeeded")
	}
	w.awaitPhase("fails", corev1.PodSucceeded) // it ended by itself when it was asked to
	if !w.events.has("fails", "Killing", "Container c0 failed startup probe") || w.events.has("fails", "will be restarted") {
		t.Errorf("events:\n%s", w.events)
	}
}

// TestProbesAcrossRestart: the next process of the node believes what the last one knew until
// a probe says otherwise, and the API never sees anything else.
func TestProbesAcrossRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	first := w.run()
	p := pod("web", []string{"hang"})
	c := &p.Spec.Containers[0]
	c.StartupProbe, c.ReadinessProbe = a.probe("/start"), a.probe("/ready")
	w.create(p)
	w.await("web", "is ready", isReady)
	first.stop()
	starts, looks := a.count("/start").Load(), a.count("/ready").Load()
	var flaps atomic.Int64
	w.client.PrependReactor("update", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if p, ok := action.(clienttesting.UpdateActionImpl).Object.(*corev1.Pod); ok && !isReady(p) {
			flaps.Add(1)
		}
		return false, nil, nil
	})
	w.supply.setFault(func(ctx context.Context, op string) error { // long enough for a status in between to be seen
		if op == "adopt" {
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return nil
	})
	w.run()
	w.eventually("readiness is asked again", func() bool { return a.count("/ready").Load() > looks+1 }, nil)
	if flaps.Load() != 0 || a.count("/start").Load() != starts {
		t.Errorf("%d statuses without readiness, %d more looks at startup", flaps.Load(), a.count("/start").Load()-starts)
	}
	a.set("/ready", 503)
	w.await("web", "is unready", isUnready)
}

// TestProbesAtTheEnd: a pod that is deleted need not be alive any more.
func TestProbesAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	w.run()
	p := pod("web", []string{"hang"})
	c := &p.Spec.Containers[0]
	c.LivenessProbe, c.ReadinessProbe = a.probe("/live"), a.probe("/ready")
	w.create(p)
	w.await("web", "is ready", isReady)
	w.delete("web", new(int64(30)))
	w.eventually("it is told to end", func() bool { return w.events.has("web", "Killing") }, nil)
	live, ready := a.count("/live").Load(), a.count("/ready").Load()
	w.eventually("readiness is asked", func() bool { return a.count("/ready").Load() >= ready+4 }, nil)
	if n := a.count("/live").Load(); n > live+1 { // one may have been under way
		t.Errorf("liveness was asked %d times after the deletion", n-live)
	}
	a.set("/ready", 503)
	w.await("web", "is unready", isUnready)
	w.delete("web", new(int64(0)))
	w.awaitGone("web")
}

// TestProbesAndHooks: nothing is asked while the postStart hook runs.
func TestProbesAndHooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	w.run()
	p := pod("web", []string{"hang"})
	c := &p.Spec.Containers[0]
	c.ReadinessProbe = a.probe("/ready")
	c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}}
	created := time.Now()
	w.create(p)
	w.eventually("it is asked", func() bool { return a.count("/ready").Load() > 0 }, nil)
	if waited := time.Since(created); waited < time.Second {
		t.Errorf("asked after %s, the hook takes a second", waited)
	}
	w.await("web", "is ready", isReady)
}

// TestReadinessGate: the pod is ready when somebody else says so as well.
func TestReadinessGate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run()
	p := pod("web", []string{"hang"})
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}}
	w.create(p)
	got := w.await("web", "waits for its gate", func(p *corev1.Pod) bool { return condition(p, corev1.ContainersReady).Status == corev1.ConditionTrue })
	if c := condition(got, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" {
		t.Errorf("Ready is %+v", c)
	}
	for _, status := range []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse} {
		w.eventually("gate "+string(status), func() bool {
			have, err := w.client.CoreV1().Pods("default").Get(context.Background(), "web", metav1.GetOptions{})
			if err != nil {
				return false
			}
			have.Status.Conditions = append(have.Status.Conditions[:len(have.Status.Conditions):len(have.Status.Conditions)], corev1.PodCondition{Type: "gate", Status: status})
			for i := range have.Status.Conditions[:len(have.Status.Conditions)-1] {
				if have.Status.Conditions[i].Type == "gate" {
					have.Status.Conditions[i].Status = status
					have.Status.Conditions = have.Status.Conditions[:len(have.Status.Conditions)-1]
					break
				}
			}
			_, err = w.client.CoreV1().Pods("default").UpdateStatus(context.Background(), have, metav1.UpdateOptions{})
			return err == nil
		}, nil)
		w.await("web", fmt.Sprintf("is ready: %s", status), func(p *corev1.Pod) bool { return condition(p, corev1.PodReady).Status == status })
	}
}

// TestSidecarsStartupProbe: what follows a sidecar begins when its startup probe has
// succeeded, and the pod is ready when it is.
func TestSidecarsStartupProbe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := serveApp(t)
	a.set("/up", 503)
	a.set("/ready", 503)
	w.run()
	p := pod("web", []string{"hang"})
	always := corev1.ContainerRestartPolicyAlways
	sidecar := corev1.Container{Name: "sidecar", Image: "example.test/image", ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"hang"}, RestartPolicy: &always}
	sidecar.StartupProbe, sidecar.ReadinessProbe = a.probe("/up"), a.probe("/ready")
	sidecar.StartupProbe.FailureThreshold = 100
	p.Spec.InitContainers = []corev1.Container{sidecar}
	w.create(p)
	w.eventually("two looks", func() bool { return a.count("/up").Load() >= 2 }, nil)
	got := w.await("web", "has a sidecar that runs", func(p *corev1.Pod) bool {
		return len(p.Status.InitContainerStatuses) == 1 && p.Status.InitContainerStatuses[0].State.Running != nil
	})
	if *got.Status.InitContainerStatuses[0].Started || got.Status.ContainerStatuses[0].State.Waiting == nil || condition(got, corev1.PodInitialized).Status != corev1.ConditionFalse {
		t.Errorf("before the sidecar is up: %+v", got.Status)
	}
	a.set("/up", 200)
	got = w.await("web", "runs", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].Ready })
	if c := condition(got, corev1.ContainersReady); c.Status != corev1.ConditionFalse || !strings.Contains(c.Message, "sidecar") {
		t.Errorf("with a sidecar that is not ready: %+v", c)
	}
	a.set("/ready", 200)
	w.await("web", "is ready", isReady)
}
