// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/warmpool"
)

// MachineClaim is a machine that a pod's record speaks of.
type MachineClaim struct {
	MachineRequest
	// Unclear is why the pod's record cannot be read: the pod may have this machine. Of the
	// request there are only the ids then.
	Unclear string
}

const (
	// defaultReconcileEvery: orphans come of crashes, and of faults of this program; neither is
	// frequent, and a look costs a few files and one call for each orphan.
	defaultReconcileEvery = 3 * time.Minute
	// confirmAfter is when what may be an orphan is looked at again, and at the soonest ended;
	// sooner when everything is looked at more often.
	confirmAfter = 3 * time.Second
	// Delays while machines, or the driver, cannot be asked.
	inspectRetryFirst, inspectRetryMax = 2 * time.Second, time.Minute
)

// Reasons of events on the node.
const (
	eventQuarantined = "MachineQuarantined"
	eventReaped      = "OrphanReaped"
)

// heldPod is a pod that is left alone: its record cannot be read, and a machine that may be
// its own runs. It is neither started nor reported about until its machine has ended or was
// removed, or it is deleted itself.
type heldPod struct {
	uid types.UID
	// why its record cannot be read; empty when it is to be ended in any case.
	why      string
	ids      []string // that its machines may have been asked for by
	machines []string // in quarantine, or not asked yet
}

// podVerdict is what becomes of a pod of an earlier process.
type podVerdict int

const (
	// podRecover: its worker goes on where its record ends.
	podRecover podVerdict = iota
	// podCleanup: it is ended, and what is left of it is removed.
	podCleanup
	// podHold: see heldPod.
	podHold
	// podAnew: nothing of it is left; it begins again, if its restart policy says so.
	podAnew
)

// judgePod decides about a pod by its record, by what the API says, and by whether a
// machine is kept that may be its own. Pure.
//
// A pod that the API has not, or not by this UID, or deletes, is nobody's any more: no
// machine of it is kept, whatever its record is like. That is also how people end a pod whose
// record cannot be read.
func judgePod(readable, gone, deleting, kept bool) podVerdict {
	switch {
	case gone, !readable && deleting:
		return podCleanup
	case readable:
		return podRecover
	case kept:
		return podHold
	}
	return podAnew
}

// hasRun tells whether containers of a pod may have run that must not run twice. The phase alone
// does not say: it is Pending while one container waits, although another runs or is over. Pure.
func hasRun(pod *corev1.Pod) bool {
	return pod.Spec.RestartPolicy == corev1.RestartPolicyNever &&
		(pod.Status.Phase == corev1.PodRunning || slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
			return s.ContainerID != "" || s.State.Running != nil || s.State.Terminated != nil
		}))
}

// reasonRecordLost is why a pod failed that may have run, and nobody knows how far.
const reasonRecordLost = "RecordLost"

// sightings are the machines that were found to be orphans, and when at first. Only the
// loop that reconciles touches it.
type sightings map[string]time.Time

// due notes what there is to clean up, and returns what was there before already. Pure but
// for the map.
func (s sightings) due(findings []warmpool.Finding, confirm time.Duration, now time.Time) []string {
	var reap []string
	for id := range s {
		if !slices.ContainsFunc(findings, func(f warmpool.Finding) bool {
			return f.Machine == id && f.Verdict == warmpool.VerdictCleanup
		}) {
			delete(s, id)
		}
	}
	for _, f := range findings {
		if f.Verdict != warmpool.VerdictCleanup {
			continue
		}
		first, seen := s[f.Machine]
		if !seen {
			s[f.Machine] = now
		} else if now.Sub(first) >= confirm {
			reap = append(reap, f.Machine)
		}
	}
	return reap
}

// nextLook is when to look again after a pass. Pure but for the jitter: hosts that were
// started together are not to look together.
func nextLook(every time.Duration, unconfirmed bool, failures int) time.Duration {
	next := every - every/8 + rand.N(every/4+1)
	switch {
	case failures > 0: // what could not be reaped is unconfirmed for as long
		next = min(next, retryDelay(failures, inspectRetryFirst, inspectRetryMax))
	case unconfirmed:
		next = min(next, confirmAfter)
	}
	return next
}

// Reconcile looks at all machines soon, instead of when it is time.
func (p *Provider) Reconcile() {
	select {
	case p.look <- struct{}{}:
	default:
	}
}

// keepReconciling looks at all machines again and again until ctx ends.
func (p *Provider) keepReconciling(ctx context.Context) {
	seen, failures := sightings{}, 0
	timer := time.NewTimer(nextLook(p.opts.ReconcileEvery, false, 0))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.look:
		}
		if p.reconcile(ctx, seen) {
			failures = 0
		} else {
			failures++
		}
		timer.Reset(nextLook(p.opts.ReconcileEvery, len(seen) > 0, failures))
	}
}

// reconcile is one pass; false when something could not be asked.
func (p *Provider) reconcile(ctx context.Context, seen sightings) (all bool) {
	findings, err := p.env.supply.Reconcile(ctx, p.claims())
	if err != nil {
		if ctx.Err() == nil {
			p.log.Error("Cannot look at machines, trying again", "err", err)
		}
		return false
	}
	all = p.tell(findings)
	for _, id := range seen.due(findings, min(confirmAfter, p.opts.ReconcileEvery), time.Now()) {
		rctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		p.log.Warn("Reaping machine that belongs to no pod", "machine", id)
		if err := p.env.supply.Reap(rctx, id); err != nil {
			p.log.Error("Machine could not be reaped", "machine", id, "err", err)
			all = false
		} else {
			delete(seen, id)
			p.tellReaped(id)
		}
		cancel()
	}
	return p.letGo(findings, seen) && all
}

// tell logs what was found, and says by events what is in quarantine; false when
// something could not be asked.
func (p *Provider) tell(findings []warmpool.Finding) (all bool) {
	all = true
	for _, f := range findings {
		switch f.Verdict {
		case warmpool.VerdictCleanup:
			p.log.Info("Found machine to clean up", "machine", f.Machine, "reason", f.Reason)
		case warmpool.VerdictRetry:
			all = false
			p.log.Warn("Keeping machine that cannot be asked", "machine", f.Machine, "reason", f.Reason)
		case warmpool.VerdictQuarantine:
			if !f.New {
				continue
			}
			p.log.Error("Quarantining machine", "machine", f.Machine, "reason", f.Reason, "remedy", removeCommand(f.Machine))
			p.NodeEvent(true, eventQuarantined, fmt.Sprintf("Machine %s is kept and takes its room: %s. When nothing in it is needed, remove it by: %s", f.Machine, f.Reason, removeCommand(f.Machine)))
		default: // all is as it should be
		}
	}
	return all
}

func removeCommand(machine string) string { return "vk-firkin quarantine remove " + machine }

// claims are the machines of all pods of this process.
func (p *Provider) claims() []MachineClaim {
	p.mu.Lock()
	defer p.mu.Unlock()
	var claims []MachineClaim
	for _, w := range p.workers {
		if r := w.view.Load().request; r != nil {
			claims = append(claims, MachineClaim{MachineRequest: *r})
		}
	}
	for _, h := range p.held {
		claims = append(claims, h.claims()...)
	}
	return claims
}

func (h *heldPod) claims() []MachineClaim {
	var claims []MachineClaim
	for _, id := range h.ids {
		claims = append(claims, MachineClaim{MachineRequest: MachineRequest{MachineID: id, PodUID: h.uid}, Unclear: h.why})
	}
	return claims
}

// generations bounds how many machines a pod is believed to have had. Each is made after the
// one before was lost.
const generations = 100

// heldPodOf is a pod of which only the UID is known.
func heldPodOf(uid types.UID, why string) *heldPod {
	h := &heldPod{uid: uid, why: why}
	for g := range generations {
		h.ids = append(h.ids, machineID(string(uid), g+1))
	}
	return h
}

// find notes which machines may be the pod's own. Those that are to be cleaned up are not
// kept for it, but not gone either.
func (h *heldPod) find(findings []warmpool.Finding) (kept bool) {
	h.machines = nil
	for _, f := range findings {
		if slices.Contains(h.ids, f.Machine) || slices.Contains(h.ids, f.Request) {
			h.machines = append(h.machines, f.Machine)
		}
	}
	return len(h.machines) > 0
}

// letGo ends the holding of pods of which no machine is left: they begin anew. false when
// that of one could not end.
func (p *Provider) letGo(findings []warmpool.Finding, reaping sightings) (all bool) {
	all = true
	p.mu.Lock()
	free := map[types.UID]*heldPod{}
	for uid, h := range p.held {
		before := h.machines
		if h.find(findings) && slices.ContainsFunc(h.machines, func(id string) bool {
			_, unconfirmed := reaping[id]
			return unconfirmed || !slices.ContainsFunc(findings, func(f warmpool.Finding) bool { return f.Machine == id && f.Verdict == warmpool.VerdictCleanup })
		}) {
			continue
		}
		if slices.ContainsFunc(before, func(id string) bool { return p.reaping[id] }) {
			h.machines = before // it is being ended, which is not found any more, and may live yet
			continue
		}
		p.log.Info("Letting go of pod whose machine is gone", "podUID", uid, "machines", before)
		free[uid] = h
	}
	p.mu.Unlock()
	for uid, h := range free {
		// Without the lock: a disk takes its time.
		if err := p.env.records.forget(uid); err != nil {
			p.log.Error("Cannot remove the record of a pod that cannot be read, trying again", "podUID", uid, "err", err)
			all = false
			continue
		}
		p.mu.Lock()
		held := p.held[uid] == h // else it was deleted meanwhile
		if held {
			delete(p.held, uid)
		}
		p.mu.Unlock()
		if held {
			p.beginAnew(uid)
		}
	}
	return all
}

// beginAnew starts a pod whose record was lost, if the API still has it. What may have run
// and must not run twice has failed. One that is over stays so: nothing of it is to run again.
func (p *Provider) beginAnew(uid types.UID) {
	pod := p.kube.byUID(uid)
	if pod == nil {
		return
	}
	pod = pod.DeepCopy()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.workers[uid]; ok || p.runCtx == nil || p.held[uid] != nil {
		return
	}
	p.startWorker(stateAnew(pod, time.Now()))
}

// stateAnew is that of a pod that the node has no record of.
func stateAnew(pod *corev1.Pod, now time.Time) state {
	s := newState(pod, now)
	switch {
	case pod.DeletionTimestamp != nil:
		s.deletion = &deletion{ending: ending{since: now, grace: graceOf(pod)}}
	case hasRun(pod), order(pod.Status.Phase) >= order(corev1.PodFailed):
		s.refusal = &refusal{Reason: reasonRecordLost, Message: "The node has lost its record of the pod, whose containers may have run and must not run twice"}
	}
	return s
}

// endHeld ends a pod that is held; false when it is not. p.mu is held.
func (p *Provider) endHeld(uid types.UID, e ending) bool {
	h, ok := p.held[uid]
	if !ok {
		return false
	}
	delete(p.held, uid)
	pod := p.kube.byUID(uid)
	if pod == nil { // nobody is to hear of it
		ctx := p.runCtx
		p.wg.Go(func() { p.removeHeld(ctx, h) })
		return true
	}
	s := newState(pod.DeepCopy(), time.Now())
	s.deletion = &deletion{ending: e}
	ctx := p.runCtx
	for i, id := range h.machines {
		if i > 0 { // it was lost before, and could not be released
			p.wg.Go(func() { p.reap(ctx, id) })
			continue
		}
		s.machine = machineState{generation: generations, id: id, adopt: true, lost: &loss{reason: reasonMachineDied, message: "its record could not be read", at: time.Now()}}
	}
	p.startWorker(s)
	return true
}

// removeHeld removes all that is left of a pod that the API does not have. What it cannot
// before ctx ends, the next process does.
func (p *Provider) removeHeld(ctx context.Context, h *heldPod) {
	p.log.Info("Removing what is left of a pod", "podUID", h.uid, "machines", h.machines)
	for _, id := range h.machines {
		if !p.reap(ctx, id) {
			return
		}
	}
	p.env.images.Unpin(h.uid)
	for failures := 1; ; failures++ {
		err := p.env.records.remove(h.uid)
		if err == nil {
			return
		}
		p.log.Error("Cannot remove what is left of a pod, trying again", "podUID", h.uid, "err", err)
		if !sleep(ctx, retryDelay(failures, cleanupRetryFirst, cleanupRetryMax)) {
			return
		}
	}
}
