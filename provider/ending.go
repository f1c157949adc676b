// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"syscall"
	"time"
)

// Times of the end of a pod, beyond its grace period.
const (
	// killWait is how long after SIGKILL the machine may still report the end of its
	// containers before it is taken away with them.
	killWait = 5 * time.Second
	// drainWait is how long after its end a container's output may still be copied:
	// its output is bounded by the agent's spool, which a healthy guest sends in well
	// under a second.
	drainWait = 10 * time.Second
	// stopWindow is what a container has at least between its stop signal and SIGKILL,
	// however late its hook or its turn was: the kubelet gives it as much.
	stopWindow = 2 * time.Second
)

// ending is how the containers of a pod are brought down.
type ending struct {
	// since is when the worker learned of it; grace runs from there.
	since time.Time
	grace time.Duration
	// force: no hooks and no signals, SIGKILL at once.
	force bool
	// hookless: no hooks, but signals.
	hookless bool
	// listed: the containers were asked for after all starts had ended, so none is unknown.
	listed  bool
	listing bool
}

// deadline is when the containers are killed.
func (e *ending) deadline() time.Time { return e.since.Add(e.grace) }

func (e *ending) forced() bool { return e.force || e.grace <= 0 }

// shorten takes in that the end is to come earlier, or with less, than was said.
func (e *ending) shorten(to ending) {
	e.force, e.hookless = e.force || to.force, e.hookless || to.hookless
	if to.deadline().Before(e.deadline()) {
		e.grace = max(to.deadline().Sub(e.since), 0)
	}
}

// end is what brings the pod's containers down now; nil when they are to run.
func (s *state) end() *ending {
	switch {
	case s.deletion != nil:
		return &s.deletion.ending
	case s.kill != nil:
		return &s.kill.ending
	default:
		return nil
	}
}

// signalAct sends a signal to a container.
type signalAct struct {
	container int
	signal    syscall.Signal
	all       bool
}

// hookAct runs a container's preStop hook, at most until a time.
type hookAct struct {
	container int
	until     time.Time
}

// bringDown reports whether nothing of the pod runs in its machine any more, or no more
// can be done about it, and says what to do until then.
func bringDown(s *state, e *ending, now time.Time, d *decision) bool {
	// 1. Everything that was being started was cancelled: wait until it has ended.
	if busy(s) || e.listing && s.machine.lost == nil {
		return false
	}
	// 2. A machine with containers: end them first.
	if s.machine.step == machineHeld && s.machine.lost == nil && !containersDown(s, e, now, d) {
		return false
	}
	// A machine of an earlier process whose pod may still end gracefully is adopted first.
	if s.machine.step == machineNone && s.machine.adopt && s.machine.acquired && s.machine.lost == nil && now.Before(e.deadline()) {
		if d.adopt = !now.Before(s.machine.retryAt); !d.adopt { // it was asked in vain
			d.wakeAt(s.machine.retryAt)
			d.wakeAt(e.deadline())
		}
		return false
	}
	return true
}

// containersDown reports whether all containers have ended or time is up, and what
// to do until then.
func containersDown(s *state, e *ending, now time.Time, d *decision) bool {
	if !e.listed {
		d.list = true
		return false
	}
	down, last := true, e.deadline()
	for i, c := range s.containers {
		if c.step != containerRunning {
			continue
		}
		down = false
		until, force := e.deadline(), e.forced()
		if c.stop != nil { // it was to end before, and no later because of this
			force = force || c.stop.grace <= 0
			if own := c.stop.deadline(); own.Before(until) {
				until = own
			}
		}
		if at := stopOne(s, i, until, force, now, d); at.After(last) {
			last = at
		}
	}
	last = last.Add(killWait)
	for _, c := range s.containers {
		if c.step == containerExited && !drainedOrLate(c, now) && now.Before(last) {
			down = false
			d.wakeAt(c.drainBy)
		}
	}
	if down || !now.Before(last) {
		d.signals, d.preStop, d.wake = nil, nil, time.Time{}
		return true
	}
	d.wakeAt(last)
	return false
}

// stopOne says what is next to end a running container by deadline: its hook, its turn,
// its signal, SIGKILL. It returns when SIGKILL is due.
// https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination-flow
func stopOne(s *state, i int, deadline time.Time, force bool, now time.Time, d *decision) time.Time {
	c, p := s.containers[i], &s.plan.containers[i]
	if force {
		if !c.killSent {
			d.signals = append(d.signals, signalAct{container: i, signal: syscall.SIGKILL, all: true})
		}
		return deadline
	}
	if !c.stopSent && now.Before(deadline) {
		d.wakeAt(deadline)
		hookless := s.end() != nil && s.end().hookless
		switch {
		case hookless && turn(s, i):
		case hasPreStop(p.spec) && c.preStop == hookNone && !hookless:
			d.preStop = append(d.preStop, hookAct{container: i, until: deadline})
			return deadline.Add(stopWindow)
		case c.preStop == hookRunning, !turn(s, i):
			return deadline.Add(stopWindow)
		}
	}
	sent := c.stopAt
	if !c.stopSent {
		sent = now
		d.signals = append(d.signals, signalAct{container: i, signal: p.stopSignal})
	}
	at := deadline
	if least := sent.Add(stopWindow); least.After(at) {
		at = least
	}
	if now.Before(at) {
		d.wakeAt(at)
	} else if !c.killSent {
		d.signals = append(d.signals, signalAct{container: i, signal: syscall.SIGKILL, all: true})
	}
	return at
}

// turn: a container may get its stop signal. Sidecars end after the main containers, the
// last of them first:
// https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#sidecar-containers-and-pod-lifecycle
func turn(s *state, i int) bool {
	if s.end() == nil || s.plan.containers[i].kind != kindSidecar {
		return true
	}
	for j, c := range s.containers {
		kind := s.plan.containers[j].kind
		if c.step == containerRunning && (kind == kindMain || kind == kindSidecar && j > i) {
			return false
		}
	}
	return true
}
