// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// containerStop is one running container that is to end while its pod goes on.
type containerStop struct {
	since   time.Time
	grace   time.Duration
	message string
	// again: another run is to follow, whatever the exit code, where the policy has any.
	again bool
}

func (s *containerStop) deadline() time.Time { return s.since.Add(s.grace) }

// podKill is a pod that is to end although nobody deleted it.
type podKill struct {
	ending
	// settled: the pod ended by itself, and how its containers ended is how it did; only
	// what serves them is still to be stopped. Else it is Failed for the reason below.
	settled         bool
	reason, message string
}

// disrupts: the pod ends for what happens on its node, and not for what it is itself.
func (k *podKill) disrupts() bool {
	return !k.settled && k.reason != reasonDeadlineExceeded && k.reason != reasonSysctlForbidden
}

// What the kubelet says about a pod that exceeds its activeDeadlineSeconds.
const (
	reasonDeadlineExceeded = "DeadlineExceeded"
	deadlineMessage        = "Pod was active on the node longer than the specified deadline"
)

// stopContainer ends the current run of a container within grace: its hook, its stop
// signal, then SIGKILL. Its restart policy decides what follows. It belongs to the loop. A
// shorter grace than before replaces it. The message becomes an event's.
func (w *worker) stopContainer(c *containerState, message string, grace time.Duration) {
	if c.step != containerRunning {
		return
	}
	now := time.Now()
	w.dirty = true
	if c.stop != nil {
		if now.Add(grace).Before(c.stop.deadline()) {
			*c.stop = containerStop{since: now, grace: grace, message: message, again: c.stop.again}
		}
		return
	}
	c.stop = &containerStop{since: now, grace: grace, message: message}
	w.env.events.container(w.s.pod, c.name, false, eventKilling, message)
}

// restartContainer ends the current run of a container for another to follow, also when it
// ends well: that it obeyed its stop signal does not say that its work is done.
func (w *worker) restartContainer(c *containerState, message string, grace time.Duration) {
	w.stopContainer(c, message, grace)
	if c.stop != nil {
		c.stop.again, w.dirty = true, true
	}
}

// evict ends the pod as Failed within grace, its status says why. The first reason stays,
// and the shorter time. It may be called from anywhere.
func (w *worker) evict(reason, message string, grace time.Duration) {
	w.post(func(s *state) {
		e := ending{since: time.Now(), grace: grace}
		switch {
		case s.stage != stageSyncing || s.deletion != nil || s.refusal != nil:
		case s.kill != nil: // it ends for another reason already, and may have a long time for it
			s.kill.shorten(e)
			w.dirty = true
		default:
			w.beginKill(&podKill{reason: reason, message: message, ending: e})
			w.env.events.pod(s.pod, true, reason, message)
		}
	})
}

// beginKill notes that the pod's containers are to end, and ends what is being started.
func (w *worker) beginKill(k *podKill) {
	w.s.kill = k
	w.dirty = true
	w.stopStart()
	w.sayStopping()
	if !k.settled {
		w.log.Info("Ending pod", "reason", k.reason, "message", k.message, "grace", k.grace)
	}
}

// sayStopping sends the event of each container that is now to end.
func (w *worker) sayStopping() {
	s := &w.s
	if s.machine.step != machineHeld {
		return
	}
	for _, c := range s.containers {
		if c.step == containerRunning && c.stop == nil && !c.stopSent && c.preStop == hookNone {
			w.env.events.container(s.pod, c.name, false, eventKilling, "Stopping container "+c.name)
		}
	}
}

// postStart runs the hook of a run that began. Nothing bounds it but the end of its run, of
// its machine and of its pod, as the API has it.
func (w *worker) postStart(i int) {
	s, c, h := &w.s, w.s.containers[i], w.hold
	spec := s.plan.containers[i].spec
	c.postStart = hookRunning
	ctx, cancel := context.WithCancel(w.start)
	unhook := context.AfterFunc(h.ctx, cancel)
	c.cancelHook = cancel
	target := handlerTarget{pod: s.pod, container: spec, id: c.id(s), hold: h}
	h.wg.Go(func() {
		defer unhook()
		defer cancel()
		err := w.env.runHook(ctx, target, spec.Lifecycle.PostStart)
		over := ctx.Err() != nil
		w.here(h, func(s *state) {
			if c.id(s) != target.id || c.step != containerRunning || c.postStart != hookRunning {
				return
			}
			c.postStart = hookOver
			w.dirty = true
			if err == nil || over {
				return
			}
			c.postStart = hookFailed
			c.reason, c.message = reasonPostStart, bound(err.Error(), maxStatusMessage)
			w.env.events.container(s.pod, c.name, true, eventFailedPostStart, "PostStartHook failed: "+err.Error())
			w.stopContainer(c, "FailedPostStartHook", s.plan.grace)
		})
	})
}

// preStop runs the hook of a run that is to end, at most until a time.
func (w *worker) preStop(a hookAct) {
	s, c, h := &w.s, w.s.containers[a.container], w.hold
	spec := s.plan.containers[a.container].spec
	c.endHook()
	c.preStop = hookRunning
	ctx, cancel := context.WithDeadline(h.ctx, a.until)
	c.cancelHook = cancel
	target := handlerTarget{pod: s.pod, container: spec, id: c.id(s), hold: h}
	h.wg.Go(func() {
		defer cancel()
		err := w.env.runHook(ctx, target, spec.Lifecycle.PreStop)
		if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("it did not end within the grace period: %w", err)
		}
		w.here(h, func(s *state) {
			if c.id(s) != target.id || c.preStop != hookRunning {
				return
			}
			c.preStop = hookOver
			if err != nil && c.step == containerRunning {
				w.env.events.container(s.pod, c.name, true, eventFailedPreStop, "PreStopHook failed: "+err.Error())
			}
		})
	})
}

// endHook cancels the hook that runs: its container has ended, or has another to run.
func (c *containerState) endHook() {
	if c.cancelHook != nil {
		c.cancelHook()
		c.cancelHook = nil
	}
}
