// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// machineHold is a worker's hold on one machine: its lease, and the goroutines that
// watch it, copy its output and refresh its volumes until the hold ends.
type machineHold struct {
	lease   Lease
	volumes *volumeKeeper
	ports   *portForwarder // nil: the pod asks for no port of the host
	api     *apiForwarder  // nil: the pod does not reach the API server
	live    *liveness
	clock   guest.ClockKeeper

	ctx  context.Context //nolint:containedctx // the lifetime of the hold
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// keep begins the hold of a machine.
func (w *worker) keep(lease Lease) {
	h := &machineHold{lease: lease, live: newLiveness(w.env.stuckTimeout)}
	// Not below w.start: a pod that is deleted still has output to drain.
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.volumes, w.volumes = w.volumes, nil
	if h.volumes == nil {
		h.volumes = newVolumeKeeper(w.env, w.log, w.s.machine.shape)
	}
	h.ports = newPortForwarder(w.s.pod, w.env.nodeIP, h.dialPort, w.log)
	h.api = newAPIForwarder(w.env, w.s.pod, h, w.log)
	w.hold = h
	pod, prepared := w.s.pod, w.s.machine.prepared
	h.wg.Go(func() { w.keepPorts(h, pod, prepared) })
	h.wg.Go(func() { w.keepAPI(h, prepared) })
	h.wg.Go(func() { w.watchMachine(h) })
	h.wg.Go(func() { w.watchLiveness(h) })
	h.wg.Go(func() { w.watchContainers(h) })
	h.wg.Go(func() { h.volumes.refresh(h, w.published.Load) })
	h.wg.Go(func() { w.watchUsage(h) })
}

// letGo ends the hold and waits for its goroutines; the machine stays as it is.
func (w *worker) letGo() {
	if h := w.hold; h != nil {
		w.hold = nil
		h.stop()
		h.wg.Wait()
	}
}

// here lets the loop run f if the machine is still the one that is held.
func (w *worker) here(h *machineHold, f func(s *state)) {
	w.post(func(s *state) {
		if w.hold == h {
			f(s)
		}
	})
}

// hereNow is here, and waits until f ran: a guest that floods the host with statuses
// waits for the loop.
func (w *worker) hereNow(h *machineHold, f func(s *state)) {
	done := make(chan struct{})
	w.post(func(s *state) {
		defer close(done)
		if w.hold == h {
			f(s)
		}
	})
	select {
	case <-done:
	case <-h.ctx.Done():
	}
}

// watchMachine waits for the machine to end by itself.
func (w *worker) watchMachine(h *machineHold) {
	for h.ctx.Err() == nil {
		exit, err := h.lease.Wait(h.ctx)
		if err == nil {
			message := fmt.Sprintf("the machine ended by itself (%s)", exit.Reason)
			if exit.Detail != "" {
				message += ": " + bound(exit.Detail, maxEventMessage/2)
			}
			w.here(h, func(*state) { w.lose(reasonMachineDied, message) })
			return
		}
		if errors.Is(err, vm.ErrNotFound) {
			w.here(h, func(*state) { w.lose(reasonMachineDied, "the machine is gone") })
			return
		}
		if !sleep(h.ctx, time.Second) {
			return
		}
	}
}

// watchContainers follows the machine's containers. When the connection is lost it
// dials again: whether the machine is given up is for watchLiveness to say.
func (w *worker) watchContainers(h *machineHold) {
	failures := 0
	for h.ctx.Err() == nil {
		heard, err := w.watchOnce(h)
		if h.ctx.Err() != nil {
			return
		}
		h.live.watching(false)
		if heard {
			failures = 0
		}
		failures++
		w.log.Debug("Watch of the machine's containers ended", "err", err)
		if !sleep(h.ctx, retryDelay(failures, connectionRetry, 5*time.Second)) {
			return
		}
	}
}

// watchOnce follows one stream to its end. heard: the guest said something.
func (w *worker) watchOnce(h *machineHold) (heard bool, err error) {
	// The lease bounds the dial; the deadline here is for one that does not.
	dctx, cancel := context.WithTimeout(h.ctx, w.env.stuckTimeout)
	g, err := h.lease.Guest(dctx)
	cancel()
	if err != nil {
		return false, fmt.Errorf("reach the machine's agent: %w", err)
	}
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	quiet := time.AfterFunc(watchSilence, cancel)
	defer quiet.Stop()
	stream, err := g.Containers.WatchContainers(ctx, connect.NewRequest(&agentv1.WatchContainersRequest{}))
	if err != nil {
		return false, fmt.Errorf("watch containers: %w", err)
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	seen := map[string]bool{}
	synced := false
	for stream.Receive() {
		heard = true
		h.live.watching(true)
		quiet.Reset(watchSilence)
		switch e := stream.Msg().GetEvent().(type) {
		case *agentv1.WatchContainersResponse_Status:
			st := e.Status
			if !synced && len(seen) < maxContainers {
				seen[st.GetId()] = true
			}
			w.hereNow(h, func(*state) { w.observedByID(st) })
		case *agentv1.WatchContainersResponse_Synced:
			synced = true
			known := seen
			w.here(h, func(s *state) {
				s.machine.synced = true
				w.absent(known)
			})
		default:
		}
	}
	return heard, stream.Err()
}

// watchSilence is how long a watch may say nothing: the agent sends a sign of life
// every 30 s.
const watchSilence = 75 * time.Second

// maxContainers bounds what is believed about a machine's containers.
const maxContainers = 1024

// sleep waits for d and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// observedByID takes in what the machine says about a container, if it is the current
// run of one of the pod's.
func (w *worker) observedByID(st *agentv1.ContainerStatus) {
	for _, c := range w.s.containers {
		if c.id(&w.s) == st.GetId() {
			w.observed(c, st)
			return
		}
	}
}

// maxStatusMessage bounds messages in the pod's status, as the kubelet does.
const maxStatusMessage = 4096

// observed takes in the state of the current run. It is idempotent, and a run that has
// exited stays so whatever the machine says later.
func (w *worker) observed(c *containerState, st *agentv1.ContainerStatus) {
	if c.step == containerExited {
		if st.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED {
			w.copyOutput(c) // of a run that ended before a restart of the node
		}
		return
	}
	if c.step == containerWaiting && c.exit == nil && c.last != nil && c.last.ID == st.GetId() {
		return
	}
	now := time.Now()
	switch st.GetState() {
	case agentv1.ContainerState_CONTAINER_STATE_RUNNING:
		if c.step != containerRunning {
			c.step, c.everStarted, c.startedAt = containerRunning, true, startOf(c, st, now)
			c.reason, c.message = "", ""
			w.dirty = true
		}
		w.copyOutput(c)
		w.beginProbes(c)
	case agentv1.ContainerState_CONTAINER_STATE_EXITED:
		if c.startedAt.IsZero() {
			c.startedAt = startOf(c, st, now)
		}
		c.step = containerExited
		if st.GetStartedUnixNano() > 0 {
			c.everStarted = true
		}
		c.exit = terminationOf(c, &w.s, st, now)
		c.drainBy = now.Add(drainWait)
		c.reason, c.message, c.stop = "", "", nil
		c.endHook()
		w.dirty = true
		w.copyOutput(c)
		w.log.Info("Container exited", "container", c.name, "attempt", c.attempt, "exitCode", c.exit.ExitCode, "reason", c.exit.Reason)
	case agentv1.ContainerState_CONTAINER_STATE_CREATED:
		if c.step == containerUnknown { // of an earlier process: it is to be started
			c.step = containerWaiting
		}
	default:
	}
}

// absent takes in that the machine has no other containers than these.
func (w *worker) absent(known map[string]bool) {
	for _, c := range w.s.containers {
		if c.step != containerUnknown && c.step != containerRunning || known[c.id(&w.s)] {
			continue
		}
		if c.startedAt.IsZero() && c.step == containerUnknown {
			c.step = containerWaiting // it was never created
			w.dirty = true
			continue
		}
		w.ended(c, reasonStatusUnknown, "The container could not be located in its machine")
	}
}

// ended notes the end of a run that the machine did not report.
func (w *worker) ended(c *containerState, reason, message string) {
	now := time.Now()
	c.step, c.drained, c.stop = containerExited, true, nil
	c.endHook()
	c.exit = &termination{Attempt: c.attempt, ID: c.id(&w.s), ExitCode: 137, Reason: reason, Message: bound(message, maxStatusMessage),
		StartedAt: c.startedAt, FinishedAt: now}
	w.dirty = true
}

// terminationOf reads how a run ended. What comes from the guest is bounded.
func terminationOf(c *containerState, s *state, st *agentv1.ContainerStatus, now time.Time) *termination {
	t := &termination{
		Attempt: c.attempt, ID: c.id(s), ExitCode: st.GetExitCode(), Signal: st.GetSignal(),
		Message:   lastWords(st.GetTerminationMessage(), st.GetMessage()),
		StartedAt: c.startedAt, FinishedAt: guestTime(st.GetFinishedUnixNano(), now),
		Again: c.stop != nil && c.stop.again,
	}
	switch r := st.GetReason(); r {
	case reasonCompleted, reasonError, reasonStartError, "OOMKilled":
		t.Reason = r
	default:
		t.Reason = reasonError
		if t.ExitCode == 0 {
			t.Reason = reasonCompleted
		}
	}
	if t.Reason == reasonStartError && t.ExitCode == 0 {
		t.ExitCode = 128
	}
	if t.FinishedAt.Before(t.StartedAt) {
		t.FinishedAt = t.StartedAt
	}
	return t
}

// guestTimeSlack is how far a guest's clock may be off to be believed.
const guestTimeSlack = time.Minute

// startOf is when the guest says that the current run began. It cannot be before this
// process asked for it: the clock of a guest stays behind when the host's is set forward,
// and the run's probes would not have their initial delay.
func startOf(c *containerState, st *agentv1.ContainerStatus, now time.Time) time.Time {
	t := guestTime(st.GetStartedUnixNano(), now)
	if !c.asked.IsZero() && t.Before(c.asked.Round(0).Add(-guestTimeSlack)) {
		return now
	}
	return t
}

// guestTime is a time that a guest gave; one from the future becomes now.
func guestTime(nano int64, now time.Time) time.Time {
	if nano <= 0 {
		return now
	}
	if t := time.Unix(0, nano); t.Before(now.Add(guestTimeSlack)) {
		return t
	}
	return now
}

// copyOutput follows the output of the current run into its log file.
func (w *worker) copyOutput(c *containerState) {
	h := w.hold
	if c.copying || c.drained || h == nil {
		return
	}
	c.copying = true
	ref, attempt := w.ref(c), c.attempt
	i := w.s.plan.index(c.name)
	fallback := i >= 0 && fallsBack(w.s.plan.containers[i].spec)
	h.wg.Go(func() {
		err := w.env.logs.Copy(h.ctx, ref, h.lease.Guest)
		// A run that the machine does not have any more has no output either.
		for failures := 1; err != nil && !errors.Is(err, ErrNotFound) && sleep(h.ctx, retryDelay(failures, time.Second, 10*time.Second)); failures++ {
			// The container's writes block meanwhile, as the agent's spool is bounded.
			w.log.Warn("Output cannot be copied", "container", ref.ID, "err", err)
			err = w.env.logs.Copy(h.ctx, ref, h.lease.Guest)
		}
		var tail []byte
		if fallback {
			var terr error
			if tail, terr = w.env.logs.Tail(h.ctx, ref, maxTailLines, maxTailBytes); terr != nil {
				w.log.Warn("Log cannot be read for a termination message", "container", ref.ID, "err", terr)
			}
		}
		w.here(h, func(*state) {
			if c.attempt != attempt {
				return
			}
			c.copying = false
			c.drained = c.drained || c.step == containerExited || h.ctx.Err() != nil
			if t := c.exit; t != nil && t.ExitCode != 0 && t.Message == "" {
				t.Message = tailMessage(tail)
			}
			w.dirty = true
		})
	})
}

// lose gives the machine up: what ran in it has ended.
func (w *worker) lose(reason, message string) {
	s, m := &w.s, &w.s.machine
	if m.lost != nil {
		return
	}
	m.lost = &loss{reason: reason, message: message, at: time.Now()}
	m.failures, m.retryAt = 0, time.Time{}
	w.dirty = true
	w.log.Warn("Machine is lost", "machine", m.id, "reason", reason, "message", message)
	w.env.events.pod(s.pod, true, reason, "Machine "+m.id+": "+message)
	for _, c := range s.containers {
		switch c.step {
		case containerRunning, containerUnknown:
			// One of an earlier process that was begun may have run, whatever was written of it
			// afterwards: on a full disk nothing was. It counts, or it would run twice.
			w.ended(c, reason, message)
		case containerExited:
			c.drained = true
		case containerWaiting, containerStarting: // nothing has run
		}
	}
}
