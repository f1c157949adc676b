// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/clock"
)

// worker owns one pod on this node. Its loop is the only one that touches its state;
// everything that blocks runs beside it and posts its outcome.
type worker struct {
	env *environment
	log *slog.Logger
	uid string

	mu    sync.Mutex
	inbox []func(*state) // guarded by mu
	bell  chan struct{}  // holds one when the inbox is not empty

	// published is the pod with the status that was last handed out.
	published atomic.Pointer[corev1.Pod]
	// view is what the kubelet API may know.
	view atomic.Pointer[podView]
	// done is closed when the loop has ended and nothing of it is left.
	done chan struct{}

	// What follows belongs to the loop.
	s state
	// start is the context of everything that brings the pod up; cancelled when it is to go.
	start     context.Context //nolint:containedctx // the lifetime of the loop's own work
	stopStart context.CancelFunc
	// adopting: recovery counts the machine.
	adopting bool
	// hold is the context of what watches and copies from the machine that is held.
	hold     *machineHold
	adoption adoption
	// volumes are those of the next hold: their content is fetched while the machine comes.
	volumes *volumeKeeper
	acts    sync.WaitGroup
	dirty   bool // the record is not what the state is
	// faults are what a later change of the pod asked for in vain.
	faults string
	mark   milestones
}

// environment is what all workers share.
type environment struct {
	log       *slog.Logger
	supply    Supply
	images    Images
	logs      Logs
	records   records
	objects   *objects
	templates Templates // nil: there are none
	admission *admission
	puller    puller
	events    events
	content   contentSource
	variables envSource
	api       podAPI
	dns       DNS
	observer  Observer
	// publish hands a pod with a new status to virtual-kubelet. It does not block.
	publish func(*corev1.Pod)
	// gone is called when nothing of a worker's pod is left.
	gone func(*worker)

	// apiServer connects to the API server; nil: pods are not led to it.
	apiServer              func(context.Context) (net.Conn, error)
	nodeIP, machineAddress string
	allocatable            corev1.ResourceList
	// volumeRefresh is how often the content of volumes is read again.
	volumeRefresh time.Duration
	hostPaths     hostPaths
	seccompDir    string // profiles that pods name
	recovery      *recovery
	// userAgent is the version that HTTP probes and hooks name.
	userAgent string
	// refused is told of pods that do not get what they ask for; nil for nobody.
	refused func(pod *corev1.Pod, reason, message string)
	// stuckTimeout is how long a machine may not answer until it is given up.
	stuckTimeout time.Duration
}

func newWorker(env *environment, s state) *worker {
	w := &worker{
		env: env, uid: string(s.pod.UID), s: s,
		log:  env.log.With("pod", s.pod.Namespace+"/"+s.pod.Name, "podUID", s.pod.UID),
		bell: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if w.adopting = s.machine.adopt && s.machine.lost == nil; w.adopting {
		env.recovery.expect()
	}
	w.published.Store(s.pod)
	// Its machine has an owner from the start, however long the first step takes.
	w.view.Store(&podView{request: w.requested()})
	return w
}

// requested is the request by which the pod has, or had asked for, its machine; nil for none.
func (w *worker) requested() *MachineRequest {
	if w.s.machine.id == "" {
		return nil
	}
	request := w.machineRequest()
	return &request
}

// post lets the loop run f. It does not block and may be called from anywhere.
func (w *worker) post(f func(*state)) {
	w.mu.Lock()
	w.inbox = append(w.inbox, f)
	w.mu.Unlock()
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

func (w *worker) take() []func(*state) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fs := w.inbox
	w.inbox = nil
	return fs
}

// update tells the worker what the API has now; the latest wins.
func (w *worker) update(pod *corev1.Pod) {
	w.post(func(s *state) {
		keep := s.pod.Status
		s.pod = pod
		if pod.Status.Phase == "" { // a caller without the API's status
			s.pod.Status = keep
		}
		w.dirty = true
		if s.waiting != nil {
			s.waiting.retryAt = time.Time{} // it may name another template now
		}
		if s.plan == nil {
			return
		}
		faults := append(unsupported(pod), w.respecify(pod)...)
		w.considerResize()
		if text := strings.Join(faults, "; "); text != w.faults {
			w.faults = text
			if text != "" {
				w.env.events.pod(pod, true, ReasonUnsupportedField, text)
			}
		}
	})
}

// respecify takes in the specifications of the containers as the pod has them now. It
// returns what cannot be honoured.
func (w *worker) respecify(pod *corev1.Pod) (faults []string) {
	p := w.s.plan
	for c := range containersOf(pod) {
		i := p.index(c.Name)
		switch {
		case i < 0 && c.kind == kindEphemeral: // nothing else can be added to a pod
			p.add(pod, c)
			key := p.containers[len(p.containers)-1].image
			if w.s.images[key] == nil {
				w.s.images[key] = &imageState{}
			}
			w.s.containers = append(w.s.containers, &containerState{name: c.Name})
		case i < 0:
		case c.Image != p.containers[i].spec.Image:
			faults = append(faults, fmt.Sprintf("%s.image: a running pod's image cannot be changed yet, %q stays", c.field, p.containers[i].spec.Image))
		default:
			p.containers[i].spec = withResources(c.Container, p.containers[i].spec.Resources)
		}
	}
	return faults
}

// terminate tells the worker to end the pod. A shorter grace than before replaces it.
func (w *worker) terminate(grace time.Duration) {
	w.bringEnd(ending{since: time.Now(), grace: grace, force: grace <= 0})
}

// abandon tells the worker to end a pod whose object is gone.
func (w *worker) abandon() { w.bringEnd(abandoned(time.Now())) }

// abandoned is the end of a pod whose object is gone: nobody waits for it, but its
// processes may end by themselves.
func abandoned(now time.Time) ending { return ending{since: now, grace: goneGrace, hookless: true} }

func (w *worker) bringEnd(e ending) {
	w.post(func(s *state) {
		switch {
		case s.deletion != nil:
			s.deletion.shorten(e)
		case s.kill != nil && !s.kill.settled:
			s.deletion = &deletion{ending: s.kill.ending}
			s.deletion.listed, s.deletion.listing = false, false
			s.deletion.shorten(e)
		default:
			s.deletion = &deletion{ending: e}
		}
	})
}

// run is the loop. It returns when the pod is gone, or ctx ends: then machine and
// record stay for the next process.
func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	w.start, w.stopStart = context.WithCancel(ctx)
	defer func() {
		w.stopStart()
		w.endAdoption()
		w.letGo()
		w.acts.Wait()
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	w.admit()
	w.considerResize() // what was wanted while no process ran
	for {
		if ctx.Err() != nil {
			return // what failed because of that is no news of the pod
		}
		for _, f := range w.take() {
			f(&w.s)
		}
		d := w.step(ctx)
		if w.s.stage == stageTerminated {
			return
		}
		wake := time.Hour
		if !d.wake.IsZero() {
			wake = max(0, time.Until(d.wake))
		}
		if u := w.s.unrecorded; u != nil && (w.s.deletion == nil || !w.s.deletion.cleaning) { // else there is nothing to write again
			wake = min(wake, max(0, time.Until(u.retryAt)))
		}
		timer.Reset(wake)
		select {
		case <-ctx.Done():
			return
		case <-w.bell:
		case <-timer.C:
		}
	}
}

// step decides and acts until there is nothing more to do at once.
func (w *worker) step(ctx context.Context) decision {
	for {
		now := time.Now()
		if s := &w.s; s.plan != nil && s.machine.step == machineHeld {
			if n := progress(s); n != s.machine.passed {
				s.machine.passed, w.dirty = n, true
			}
		}
		w.awaitOutput(now)
		d := decide(&w.s, now)
		if w.adopting && (!w.s.machine.adopt || w.s.machine.lost != nil) {
			w.adopting = false
			w.env.recovery.settle()
		}
		// What is to end is written down before it does, if that can be: nobody could tell
		// afterwards why. That it cannot be keeps no end up, which may be what makes room.
		if w.dirty && d.ends() {
			w.saveIfDue(now)
		}
		again := w.act(ctx, &d, now)
		again = w.applyResize(&d, now) || again
		w.tendProbes()
		for _, key := range imagesOf(&w.s) {
			if at := w.env.puller.backedOff(w.s.pod, key, firstUser(w.s.plan, key), w.s.images[key], now); !at.IsZero() {
				d.wakeAt(at)
			}
		}
		if held := w.s.unrecorded != nil; w.dirty && w.saveIfDue(now) && held {
			again = true // for what waited for it
		}
		w.publish(now)
		if !again {
			return d
		}
	}
}

func imagesOf(s *state) []imageKey {
	if s.plan == nil {
		return nil
	}
	return slices.Concat(s.plan.images, s.plan.late)
}

// firstUser is the name of the first container that uses an image.
func firstUser(p *plan, key imageKey) string {
	for _, c := range p.containers {
		if c.image == key {
			return c.spec.Name
		}
	}
	return ""
}

// act does what was decided. It reports whether the state changed at once, so that
// there is more to decide; what takes time posts when it is over.
func (w *worker) act(ctx context.Context, d *decision, now time.Time) (again bool) {
	s := &w.s
	switch {
	case d.finish:
		w.advance(stageFinished)
		w.stopStart()
		again = true
	case d.terminate:
		w.advance(stageTerminating)
		w.stopStart()
		w.sayStopping()
		again = true
	case d.kill != nil:
		w.beginKill(d.kill)
		if d.kill.reason == reasonDeadlineExceeded {
			w.env.events.pod(s.pod, false, reasonDeadlineExceeded, deadlineMessage)
		}
		again = true
	}
	for _, i := range d.restart {
		if c := s.containers[i]; w.begin(c, func() { w.prepareRestart(i, now) }) {
			if c.notBefore.After(now) {
				w.env.events.container(s.pod, c.name, true, eventBackOff, "Back-off restarting failed container "+c.name+" in pod "+s.pod.Name)
			}
			again = true
		}
	}
	for _, key := range d.pull {
		w.pull(key)
	}
	switch {
	case d.admit:
		w.admit()
		again = true
	case d.adopt:
		w.adopt(ctx)
	case d.acquire:
		w.acquire()
	case d.prepare:
		w.prepare()
	case d.start >= 0:
		w.startContainer(d.start)
	}
	for _, i := range d.postStart {
		w.postStart(i)
		again = true // the status says so
	}
	for _, a := range d.preStop {
		w.preStop(a)
	}
	if d.list {
		w.list(ctx)
	}
	if len(d.signals) > 0 {
		w.signal(ctx, d.signals)
	}
	if d.release {
		w.release(ctx)
	}
	if d.cleanup {
		w.cleanup(ctx)
	}
	return again
}

// advance moves the stage forward, never back.
func (w *worker) advance(to stage) {
	if to > w.s.stage {
		w.log.Info("Pod enters stage", "stage", to.String())
		w.s.stage = to
		w.dirty = true
		if to == stageFinished { // before anybody hears of it: another pod may be given what this one had
			if w.hold != nil {
				w.hold.ports.deafen()
			}
			w.env.admission.forget(w.s.pod.UID)
		}
	}
}

// prepareRestart makes an ended run the last one and plans the next.
func (w *worker) prepareRestart(i int, now time.Time) {
	c := w.s.containers[i]
	// Guests have clocks of their own, and this host's may have been set since the run before.
	c.notBefore = clock.Due(c.backoff.wait(c.exit.FinishedAt), now, c.backoff.Delay)
	c.last, c.exit = c.exit, nil
	c.attempt++
	c.step, c.drained, c.copying = containerWaiting, false, false
	c.endHook()
	c.stop, c.stopSent, c.killSent, c.stopAt = nil, false, false, time.Time{}
	c.postStart, c.preStop = hookNone, hookNone
	c.reason, c.message, c.failures, c.startedAt = "", "", 0, time.Time{}
	c.asked, c.requested, c.answered, c.heard = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	w.dirty = true
}

// publish hands out the status when it changed.
func (w *worker) publish(now time.Time) {
	s := &w.s
	old := w.published.Load()
	status := podStatus(s, &old.Status, w.env.nodeIP, now)
	view := viewOf(s, w.hold)
	view.request = w.requested()
	w.view.Store(view)
	if s.stage == stageTerminated || reflect.DeepEqual(old.Status, status) && sameMeta(old, s.pod) {
		return
	}
	pod := s.pod.DeepCopy()
	pod.Status = status
	w.published.Store(pod)
	if status.Phase == corev1.PodRunning && old.Status.Phase != corev1.PodRunning {
		w.mark.running = now
	}
	w.env.publish(pod)
}

func sameMeta(a, b *corev1.Pod) bool {
	return a.Generation == b.Generation && reflect.DeepEqual(a.Labels, b.Labels) && reflect.DeepEqual(a.Annotations, b.Annotations) &&
		reflect.DeepEqual(a.Finalizers, b.Finalizers) && reflect.DeepEqual(a.Spec.Tolerations, b.Spec.Tolerations)
}
