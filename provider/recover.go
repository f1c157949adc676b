// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/vm/clock"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// recover takes up what an earlier process left, before any new pod is looked at. The
// API's pods were listed before: only then is a pod that it does not have known to be gone.
// What becomes of a pod is judgePod's to say, what becomes of a machine warmpool's; from
// then on all machines take their room, also those that are not adopted yet.
func (p *Provider) recover(ctx context.Context) error {
	recs, broken, err := p.loadRecords(ctx)
	if err != nil {
		return err
	}
	var claims []MachineClaim
	for _, rec := range recs {
		if m := rec.Machine; m.ID != "" {
			c := MachineClaim{MachineRequest: MachineRequest{MachineID: m.ID, PodUID: rec.Pod.UID, Shape: m.Shape, Budget: m.Budget}}
			if rec.Template != nil {
				c.Template = &rec.Template.Template
			}
			claims = append(claims, c)
		}
	}
	unclear := map[types.UID]*heldPod{}
	for _, b := range broken {
		why := b.err.Error()
		if pod := p.kube.byUID(b.uid); pod == nil || pod.DeletionTimestamp != nil {
			why = "" // nothing is unclear about its machine: it is to go
		}
		unclear[b.uid] = heldPodOf(b.uid, why)
		claims = append(claims, unclear[b.uid].claims()...)
	}
	findings, err := p.survey(ctx, claims)
	if err != nil {
		return err
	}
	if !p.tell(findings) {
		p.Reconcile() // soon: one that could not be asked may be what a pod waits for
	}
	p.mu.Lock()
	p.runCtx = ctx
	p.mu.Unlock()
	for _, b := range broken {
		p.takeUpBroken(b, unclear[b.uid], findings)
	}
	for _, f := range findings { // after the pods that may be held for them, see reap
		// No worker runs yet, so that none has a machine in the making: once is enough.
		if f.Verdict == warmpool.VerdictCleanup {
			p.mu.Lock()
			p.reaping[f.Machine] = true
			p.mu.Unlock()
			p.wg.Go(func() { p.reapOrphan(ctx, f.Machine) })
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, rec := range recs {
		pod := p.kube.current(rec.Pod.Namespace, rec.Pod.Name)
		gone := judgePod(true, pod == nil || pod.UID != rec.Pod.UID, false, false) == podCleanup
		if !gone {
			rec.Pod = pod.DeepCopy()
			rec.heard(&pod.Status)
		}
		s := p.env.restoreState(ctx, rec, time.Now())
		switch {
		case gone:
			s.deletion = &deletion{ending: abandoned(time.Now())}
		case rec.Pod.DeletionTimestamp != nil: // at once, so that nothing is started before virtual-kubelet says so
			s.deletion = &deletion{ending: ending{since: time.Now(), grace: graceOf(rec.Pod)}}
		}
		if s.plan != nil && s.stage == stageSyncing && !gone {
			p.admission.hold(s.pod) // before any new pod is looked at
		}
		p.log.Info("Taking up pod", "pod", rec.Pod.Namespace+"/"+rec.Pod.Name, "podUID", rec.Pod.UID, "machine", rec.Machine.ID, "gone", gone)
		p.startWorker(s)
	}
	return nil
}

// recordTries is how often records are read that the disk does not give. One that is not
// given then is a record that cannot be read.
const recordTries = 5

// loadRecords reads the records, and again while the disk does not say what is in one.
func (p *Provider) loadRecords(ctx context.Context) (recs []*record, broken []brokenRecord, err error) {
	for tries := 1; ; tries++ {
		recs, broken, err = p.env.records.load()
		unsaid := err
		for _, b := range broken {
			if !durable.Unusable(b.err) {
				unsaid = b.err
			}
		}
		if unsaid == nil || tries == recordTries {
			return recs, broken, err
		}
		p.log.Error("Cannot read what an earlier process left, trying again", "err", unsaid)
		if !sleep(ctx, retryDelay(tries, inspectRetryFirst, inspectRetryMax)) {
			return nil, nil, fmt.Errorf("read pod records: %w", context.Cause(ctx))
		}
	}
}

// heard takes in what the API was told of the pod's ends, and the record does not say: it
// could not be written. What was said to have ended neither runs on nor begins again.
func (r *record) heard(st *corev1.PodStatus) {
	over := order(st.Phase) >= order(corev1.PodFailed)
	if r.Finished || r.Refusal != nil {
		return
	}
	if over && st.Reason != "" && r.Kill == nil {
		ended := st.Reason == reasonDeadlineExceeded || slices.ContainsFunc(st.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		if !ended {
			r.Refusal = &refusal{Reason: st.Reason, Message: st.Message}
			return
		}
		r.Kill = &killRecord{Reason: st.Reason, Message: st.Message}
	}
	r.Finished = over
	for _, c := range slices.Concat(st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses) {
		i := slices.IndexFunc(r.Containers, func(have containerRecord) bool { return have.Name == c.Name })
		x, attempt := c.State.Terminated, int(c.RestartCount)
		if i < 0 || x == nil || r.Containers[i].Attempt > attempt || r.Containers[i].Attempt == attempt && r.Containers[i].Exit != nil {
			continue
		}
		have := &r.Containers[i]
		exit := terminationIn(x, attempt)
		exit.Again = have.Stop != nil && have.Stop.Again
		have.Attempt, have.Begun, have.EverStarted, have.Drained = attempt, true, true, over
		have.StartedAt, have.Exit = x.StartedAt.Time, &exit
	}
}

// survey asks the supply until it has an answer: before that nobody knows how much room
// there is.
func (p *Provider) survey(ctx context.Context, claims []MachineClaim) ([]warmpool.Finding, error) {
	for failures := 1; ; failures++ {
		findings, err := p.env.supply.Reconcile(ctx, claims)
		if err == nil {
			return findings, nil
		}
		p.log.Error("Cannot find out which machines there are, trying again", "err", err)
		if !sleep(ctx, retryDelay(failures, inspectRetryFirst, inspectRetryMax)) {
			return nil, fmt.Errorf("find out which machines there are: %w", err)
		}
	}
}

// takeUpBroken decides about a pod whose record cannot be read.
func (p *Provider) takeUpBroken(b brokenRecord, h *heldPod, findings []warmpool.Finding) {
	pod := p.kube.byUID(b.uid)
	kept := h.find(findings)
	deleting := pod != nil && pod.DeletionTimestamp != nil
	verdict := judgePod(false, pod == nil, deleting, kept)
	p.log.Error("The record of a pod cannot be read", "podUID", b.uid, "err", b.err, "machines", h.machines, "gone", pod == nil, "held", verdict == podHold)
	switch verdict {
	case podHold:
		p.mu.Lock()
		p.held[b.uid] = h
		p.mu.Unlock()
		p.env.events.pod(pod, true, eventQuarantined, fmt.Sprintf("The node's record of the pod cannot be read (%s). The pod is left alone while its machine %s is kept: start the version of vk-firkin that wrote the record, or delete the pod, or start it anew after: %s",
			bound(b.err.Error(), maxEventMessage/2), h.machines[0], removeCommand(h.machines[0])))
	case podCleanup:
		p.mu.Lock()
		p.held[b.uid] = h
		if deleting {
			p.endHeld(b.uid, ending{since: time.Now(), grace: graceOf(pod)})
		} else {
			p.endHeld(b.uid, abandoned(time.Now()))
		}
		p.mu.Unlock()
	default: // podAnew
		if err := p.env.records.forget(b.uid); err != nil {
			// It is as good as there: no other can be written in its place.
			p.log.Error("Cannot remove the record of a pod that cannot be read", "podUID", b.uid, "err", err)
			p.mu.Lock()
			p.held[b.uid] = h
			p.mu.Unlock()
			p.Reconcile()
			return
		}
		p.beginAnew(b.uid)
	}
}

// reapOrphan ends a machine that belongs to no pod.
func (p *Provider) reapOrphan(ctx context.Context, id string) {
	p.log.Warn("Reaping machine that belongs to no pod", "machine", id)
	if p.reap(ctx, id) {
		p.tellReaped(id)
	}
}

func (p *Provider) tellReaped(id string) {
	p.NodeEvent(false, eventReaped, "Ended machine "+id+", which belonged to no pod")
}

// reap ends a machine that no worker has, and tries until it is gone; false when ctx ended.
func (p *Provider) reap(ctx context.Context, id string) bool {
	for failures := 1; ; failures++ {
		rctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		err := p.env.supply.Reap(rctx, id)
		cancel()
		if err == nil {
			p.mu.Lock()
			delete(p.reaping, id)
			held := len(p.held)
			p.mu.Unlock()
			if held > 0 {
				p.Reconcile() // a pod may have been held for it
			}
			return true
		}
		p.log.Error("Machine could not be reaped", "machine", id, "err", err)
		if !sleep(ctx, retryDelay(failures, releaseRetryFirst, releaseRetryMax)) {
			return false
		}
	}
}

// recoveredDrain is how long the output of a run that ended before a restart may
// still be copied: its machine has to be adopted first.
const recoveredDrain = time.Minute

// restoreState is the state that a record speaks of.
func (e *environment) restoreState(ctx context.Context, rec *record, now time.Time) state {
	s := state{pod: rec.Pod, startTime: clock.Anchor(rec.StartTime, now), refusal: rec.Refusal, kill: rec.Kill.state(now)}
	if rec.Finished {
		s.stage = stageFinished
	}
	m := rec.Machine
	s.machine = machineState{
		generation: m.Generation, id: m.ID, shape: m.Shape, budget: m.Budget, path: m.Path, slots: m.Images, files: m.Files,
		acquired: m.Acquired, prepared: m.Prepared, passed: m.Passed, adopt: m.ID != "",
	}
	switch {
	case s.refusal != nil:
	case m.Acquired || rec.Finished || rec.Template != nil:
		// It was accepted. What was added to the pod since, or taken from the node, was
		// said by an event and does not end what runs; nor does another revision of its
		// template.
		s.plan = planOf(rec.Pod)
		s.plan.shape, s.plan.budget, s.plan.template = m.Shape, m.Budget, rec.Template
		if t := rec.Template; t != nil && !m.Acquired {
			s.plan.shape = t.Shape
			s.plan.budget = Budget{MilliCPU: s.plan.need.MilliCPURequest + t.MilliCPU, MemoryBytes: t.Shape.MemoryBytes}
		}
	default:
		if s.plan, s.refusal, s.waiting = e.translate(rec.Pod); s.refusal != nil {
			e.log.Error("A pod of an earlier version is not accepted any more", "podUID", rec.Pod.UID, "message", s.refusal.Message)
		}
	}
	if s.plan == nil {
		return s
	}
	s.images = map[imageKey]*imageState{}
	for _, key := range imagesOf(&s) {
		s.images[key] = &imageState{}
	}
	for _, r := range rec.Images {
		st, ok := s.images[imageKey{ref: r.Ref, policy: r.Policy}]
		if !ok {
			continue
		}
		img, err := e.images.Pin(ctx, rec.Pod.UID, r.Digest)
		if err != nil {
			e.log.Warn("Image of a running pod is gone; it will be pulled again", "image", r.Ref, "err", err)
			continue
		}
		img.Ref, img.ID = r.Ref, r.ID
		st.image = &img
	}
	for i := range s.plan.containers {
		c := &s.plan.containers[i]
		if img := s.images[c.image].image; img != nil {
			c.stopSignal = stopSignalOf(c.spec, img)
		}
		s.containers = append(s.containers, restoreContainer(rec, c.spec.Name, now))
	}
	s.allocate()
	if m.ID != "" && !m.Acquired {
		// The process died while the machine was made: nothing in it is worth keeping.
		s.machine.lost = &loss{reason: reasonMachineDied, message: "the node was restarted while the machine was made", at: now}
		for _, c := range s.containers {
			if c.step == containerUnknown {
				c.step = containerWaiting
			}
		}
	}
	return s
}

func restoreContainer(rec *record, name string, now time.Time) *containerState {
	c := &containerState{name: name}
	for i := range rec.Containers {
		r := &rec.Containers[i]
		if r.Name != name {
			continue
		}
		c.attempt, c.everStarted, c.startedAt = r.Attempt, r.EverStarted, r.StartedAt
		c.exit, c.last, c.drained, c.notBefore = r.Exit, r.Last, r.Drained, clock.Due(r.NotBefore, now, backoffMax)
		c.backoff = backoff{Delay: r.Backoff.Delay, Since: clock.Anchor(r.Backoff.Since, now)}
		c.resize.allocated, c.resize.applied = r.Allocated, r.Applied
		if r.PostStarted {
			c.postStart = hookOver
		}
		c.probes = r.Probes.state(r.Attempt)
		switch {
		case r.Exit != nil:
			c.step = containerExited
			c.drainBy = now.Add(recoveredDrain)
			c.drained = c.drained || rec.Machine.ID == ""
		case r.Begun:
			c.step = containerUnknown
			c.stop = r.Stop.state(now)
		}
	}
	return c
}
