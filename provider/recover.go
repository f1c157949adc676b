// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/clock"
)

// recover takes up what an earlier process left. The API's pods were listed before:
// only then is a pod that it does not have known to be gone.
//
//   - a record whose pod the API has: its worker goes on where the record ends;
//   - a record whose pod is gone, or replaced by one of the same name: it is ended;
//   - a machine that no record speaks of: it is reaped.
func (p *Provider) recover(ctx context.Context) error {
	recs, faults := p.env.records.load()
	for _, err := range faults {
		p.log.Error("A pod's record cannot be used; its machine will be reaped", "err", err)
	}
	var known []string
	for _, rec := range recs {
		if rec.Machine.ID != "" {
			known = append(known, rec.Machine.ID)
		}
	}
	// Before any worker runs: a machine in the making has no lease yet.
	orphans, err := p.env.supply.Orphans(ctx, known)
	if err != nil {
		return fmt.Errorf("list machines: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runCtx = ctx
	for _, rec := range recs {
		pod := p.kube.current(rec.Pod.Namespace, rec.Pod.Name)
		gone := pod == nil || pod.UID != rec.Pod.UID
		if !gone {
			rec.Pod = pod.DeepCopy()
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
	for _, id := range orphans {
		if strings.HasPrefix(id, MachinePrefix) || strings.HasPrefix(id, warmPrefix) {
			p.wg.Go(func() { p.reapOrphan(ctx, id) })
		}
	}
	return nil
}

// warmPrefix begins the ids of machines of warm pools. The supply names one as an orphan
// when it was given to a pod that nobody knows any more.
const warmPrefix = "warm-"

// reapOrphan ends a machine that belongs to no pod.
func (p *Provider) reapOrphan(ctx context.Context, id string) {
	p.log.Warn("Reaping machine that belongs to no pod", "machine", id)
	for failures := 1; ; failures++ {
		rctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		err := p.env.supply.Reap(rctx, id)
		cancel()
		if err == nil {
			return
		}
		p.log.Error("Machine could not be reaped", "machine", id, "err", err)
		if !sleep(ctx, retryDelay(failures, releaseRetryFirst, releaseRetryMax)) {
			return
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
