// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	kuberecord "k8s.io/client-go/tools/record"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// simulation is a pod whose worker's decisions are carried out by a random world: each
// pull, machine, start and run comes out somehow, and the pod is stopped, debugged,
// evicted and deleted at any time.
type simulation struct {
	t   *testing.T
	r   *rand.Rand
	w   *worker
	log []string
	// inMachine are the init containers that ran to their end in this machine.
	inMachine map[string]bool
	last      corev1.PodStatus
}

func newSimulation(t *testing.T, seed uint64) *simulation {
	r := rand.New(rand.NewPCG(seed, 2))
	n := 1 + r.IntN(3)
	order := strings.Repeat("m", n)
	for range r.IntN(4) {
		order = []string{"i", "s"}[r.IntN(2)] + order
	}
	policy := []corev1.RestartPolicy{"Always", "OnFailure", "Never"}[r.IntN(3)]
	s := kinds(testState(policy, len(order)), order)
	s.machine = machineState{}
	for _, img := range s.images {
		img.image = nil
	}
	s.plan.grace = time.Duration(r.IntN(40)) * time.Second
	s.startTime = time.Now()
	if r.IntN(4) == 0 {
		a := int64(1 + r.IntN(600))
		s.pod.Spec.ActiveDeadlineSeconds = &a
	}
	for i := range s.plan.containers {
		c := s.plan.containers[i].spec
		l := &corev1.Lifecycle{}
		if r.IntN(3) == 0 {
			l.PostStart = &corev1.LifecycleHandler{}
		}
		if r.IntN(3) == 0 {
			l.PreStop = &corev1.LifecycleHandler{}
		}
		c.Lifecycle = l
	}
	env := &environment{log: slog.New(slog.DiscardHandler), events: events{&kuberecord.FakeRecorder{}}, records: newRecords(t.TempDir(), durable.Host)}
	sim := &simulation{t: t, r: r, w: newWorker(env, *s), inMachine: map[string]bool{}}
	sim.w.start, sim.w.stopStart = context.WithCancel(t.Context())
	sim.note("%s %s", policy, order)
	return sim
}

func (m *simulation) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

func (m *simulation) fail(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(m.log, "\n"))
}

// carryOut does what was decided, as the worker would, without a machine.
func (m *simulation) carryOut(d decision, now time.Time) (again bool) {
	w, s := m.w, &m.w.s
	switch {
	case d.finish:
		w.advance(stageFinished)
		again = true
	case d.terminate:
		w.advance(stageTerminating)
		again = true
	case d.kill != nil:
		w.beginKill(d.kill)
		again = true
	}
	for _, i := range d.restart {
		w.prepareRestart(i, now)
		again = true
	}
	for _, key := range d.pull {
		s.images[key].pulling = true
	}
	switch {
	case d.adopt:
		s.machine.step = machineAdopting
	case d.acquire:
		s.machine.generation++
		s.machine.step, s.machine.id = machineAcquiring, "pod-1"
	case d.prepare:
		s.machine.preparing = true
	case d.start >= 0:
		m.starts(d.start)
	}
	for _, i := range d.postStart {
		s.containers[i].postStart = hookRunning
	}
	for _, a := range d.preStop {
		s.containers[a.container].preStop = hookRunning
	}
	if d.list {
		s.end().listed = true
	}
	for _, a := range d.signals {
		c := s.containers[a.container]
		if a.all {
			c.killSent = true
		} else {
			c.stopSent, c.stopAt = true, now
		}
	}
	if d.release {
		m.release()
	}
	if d.cleanup {
		w.advance(stageTerminated)
	}
	return again
}

// starts checks that a container may begin now, and begins it.
func (m *simulation) starts(i int) {
	s := &m.w.s
	c, kind := s.containers[i], s.plan.containers[i].kind
	if s.stage != stageSyncing || s.end() != nil {
		m.fail("%s starts while the pod ends", c.name)
	}
	for j := range i {
		before, k := s.containers[j], s.plan.containers[j].kind
		if k == kindInit && kind != kindEphemeral && (kind != kindSidecar || i >= s.machine.passed) && !m.inMachine[before.name] {
			m.fail("%s starts before %s", c.name, before.name)
		}
	}
	if kind == kindEphemeral && (c.attempt > 0 || c.everStarted) {
		m.fail("ephemeral container %s starts again", c.name)
	}
	if kind == kindInit && m.inMachine[c.name] {
		m.fail("init container %s starts again in its machine", c.name)
	}
	c.step = containerStarting
	if c.last != nil {
		c.backoff = c.backoff.next(c.last.FinishedAt, time.Now())
	}
}

func (m *simulation) release() {
	s := &m.w.s
	lost := s.machine.lost
	s.machine = machineState{generation: s.machine.generation, path: s.machine.path}
	clear(m.inMachine)
	for _, c := range s.containers {
		m.w.leftBehind(c, lost)
	}
}

// happens lets one thing happen that is under way, or comes from outside.
func (m *simulation) happens() {
	s, r := &m.w.s, m.r
	over := s.end() != nil
	var can []func()
	add := func(name string, f func()) { can = append(can, func() { m.note("%s", name); f() }) }
	for key, img := range s.images {
		if img.pulling {
			add("pulled", func() { *img = imageState{image: &Image{ID: "id", Digest: "d"}} })
			add("pull fails "+key.ref, func() { *img = imageState{reason: reasonErrImagePull, retryAt: time.Now().Add(10 * time.Second)} })
		}
	}
	switch {
	case s.machine.step == machineAcquiring && over:
		add("acquire is cancelled", func() { s.machine.step, s.machine.id = machineNone, "" })
	case s.machine.step == machineAcquiring:
		add("machine", func() {
			s.machine.step, s.machine.acquired, s.machine.path, s.machine.slots = machineHeld, true, "restore", []string{"d"}
		})
	case s.machine.step == machineAdopting:
		add("adopted", func() {
			s.machine.step, s.machine.adopt = machineHeld, false
			for _, c := range s.containers {
				if c.step == containerUnknown {
					m.running(c)
				}
			}
		})
	case s.machine.preparing:
		add("prepared", func() { s.machine.preparing, s.machine.prepared, s.machine.synced = false, true, true })
	}
	if s.machine.step == machineHeld && s.machine.lost == nil && r.IntN(8) == 0 {
		add("machine dies", func() { m.w.lose(reasonMachineDied, "dead") })
	}
	if s.stage == stageSyncing && r.IntN(6) == 0 && len(s.plan.containers) < 8 {
		add("debug", func() {
			pod := s.pod.DeepCopy()
			name := fmt.Sprintf("e%d", len(pod.Spec.EphemeralContainers))
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "i", ImagePullPolicy: "IfNotPresent"}})
			s.pod = pod
			m.w.respecify(pod)
		})
	}
	if r.IntN(60) == 0 && s.stage == stageSyncing && s.kill == nil && s.deletion == nil {
		add("evict", func() {
			m.w.beginKill(&podKill{reason: "Evicted", ending: ending{since: time.Now(), grace: time.Duration(r.IntN(20)) * time.Second}})
		})
	}
	for i, c := range s.containers {
		name := c.name
		switch {
		case c.step == containerStarting && over:
			add(name+" start is cancelled", func() { c.step = containerWaiting })
			add(name+" starts all the same", func() { m.running(c) })
		case c.step == containerStarting:
			add(name+" runs", func() { m.running(c) })
			add(name+" cannot be started", func() { c.step, c.notBefore = containerWaiting, time.Now().Add(time.Second) })
		case c.step == containerRunning && s.machine.step == machineHeld && s.machine.lost == nil:
			if c.postStart == hookRunning {
				add(name+" postStart is over", func() { c.postStart = hookOver })
				add(name+" postStart fails", func() { c.postStart = hookFailed; m.w.stopContainer(c, "hook", s.plan.grace) })
			}
			if c.preStop == hookRunning {
				add(name+" preStop is over", func() { c.preStop = hookOver })
			}
			if r.IntN(10) == 0 {
				add(name+" fails its probe", func() { m.w.stopContainer(c, "probe", time.Duration(r.IntN(20))*time.Second) })
			}
			if r.IntN(3) == 0 || c.killSent {
				code := int32(r.IntN(2))
				add(fmt.Sprintf("%s ends with %d", name, code), func() {
					m.w.observed(c, &agentv1.ContainerStatus{Id: c.id(s), State: agentv1.ContainerState_CONTAINER_STATE_EXITED, ExitCode: code, StartedUnixNano: 1})
					c.drained = true
					if code == 0 && s.plan.containers[i].kind == kindInit {
						m.inMachine[name] = true
					}
				})
			}
		}
	}
	if len(can) > 0 {
		can[r.IntN(len(can))]()
	}
}

func (m *simulation) running(c *containerState) {
	c.step = containerWaiting
	m.w.observed(c, &agentv1.ContainerStatus{Id: c.id(&m.w.s), State: agentv1.ContainerState_CONTAINER_STATE_RUNNING, StartedUnixNano: time.Now().UnixNano()})
}

// look checks the status.
func (m *simulation) look() {
	s := &m.w.s
	st := podStatus(s, &m.last, "192.0.2.1", time.Now())
	before, after := m.last.Phase, st.Phase
	if order(after) < order(before) || order(before) == order(corev1.PodFailed) && before != after {
		m.fail("phase goes from %s to %s", before, after)
	}
	if order(after) == order(corev1.PodFailed) && s.stage == stageSyncing && !podOver(s, time.Now()) {
		m.fail("phase is %s while the pod runs", after)
	}
	counts := map[string]int32{}
	for _, list := range [][]corev1.ContainerStatus{m.last.InitContainerStatuses, m.last.ContainerStatuses, m.last.EphemeralContainerStatuses} {
		for _, c := range list {
			counts[c.Name] = c.RestartCount
		}
	}
	for _, list := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for _, c := range list {
			if c.RestartCount < counts[c.Name] {
				m.fail("restarts of %s go from %d to %d", c.Name, counts[c.Name], c.RestartCount)
			}
			if c.Ready && c.State.Running != nil && (c.Started == nil || !*c.Started) {
				m.fail("%s is ready before it is started", c.Name)
			}
			if states := []bool{c.State.Running != nil, c.State.Waiting != nil, c.State.Terminated != nil}; !slices.Contains(states, true) {
				m.fail("%s has no state", c.Name)
			}
		}
	}
	ready := map[corev1.PodConditionType]bool{}
	for _, c := range st.Conditions {
		ready[c.Type] = c.Status == corev1.ConditionTrue
	}
	if ready[corev1.PodReady] && (!ready[corev1.PodInitialized] || !ready[corev1.ContainersReady] || after != corev1.PodRunning) {
		m.fail("ready, but %+v in phase %s", st.Conditions, after)
	}
	m.last = st
}

// step decides until nothing more is to be done at once, and says when to look again.
func (m *simulation) step() time.Time {
	for range 100 {
		s, now := &m.w.s, time.Now()
		if s.machine.step == machineHeld {
			s.machine.passed = progress(s)
		}
		d := decide(s, now)
		again := m.carryOut(d, now)
		m.look()
		if !again {
			return d.wake
		}
	}
	m.fail("it never comes to rest")
	return time.Time{}
}

// restart is another process: it has what the record says.
func (m *simulation) restart() {
	m.note("the node restarts")
	s := &m.w.s
	rec := recordOf(s)
	kill, gone := rec.Kill.state(time.Now()), s.deletion
	for i, c := range s.containers {
		*c = *restoreContainer(rec, c.name, time.Now())
		if c.step == containerExited {
			c.drained = true
		}
		s.containers[i] = c
	}
	s.kill, s.machine.adopt = kill, rec.Machine.ID != ""
	if gone != nil {
		s.deletion = &deletion{ending: ending{since: time.Now(), grace: gone.grace}}
	}
	if s.machine.step == machineAcquiring || s.machine.adopt && !rec.Machine.Acquired {
		s.machine.lost = &loss{reason: reasonMachineDied}
	}
	s.machine.step, s.machine.preparing = machineNone, false
	for _, img := range s.images {
		img.pulling = false
	}
}

// Whatever happens in whatever order, a pod's status only goes forward, its containers
// begin in order, and it ends when it is deleted.
func TestAnyOrderOfEvents(t *testing.T) {
	seeds := 400
	first := uint64(time.Now().UnixNano())
	for n := range seeds {
		seed := first + uint64(n)
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			m := newSimulation(t, seed)
			defer m.w.stopStart()
			s := &m.w.s
			for range 150 {
				wake := m.step()
				m.happens()
				if m.r.IntN(5) == 0 && !wake.IsZero() {
					time.Sleep(time.Until(wake))
				}
				if m.r.IntN(40) == 0 && s.stage < stageTerminated {
					m.restart()
				}
			}
			m.note("deleted")
			if s.deletion == nil {
				s.deletion = &deletion{ending: ending{since: time.Now(), grace: time.Duration(m.r.IntN(60)) * time.Second}}
			}
			for range 400 {
				wake := m.step()
				if s.stage == stageTerminated {
					break
				}
				m.happens()
				if !wake.IsZero() && m.r.IntN(2) == 0 {
					time.Sleep(time.Until(wake))
				}
			}
			if s.stage != stageTerminated || order(m.last.Phase) != order(corev1.PodFailed) {
				m.fail("it ends in stage %s, phase %s: %+v", s.stage, m.last.Phase, s.machine)
			}
		})
	}
}
