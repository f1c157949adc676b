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
)

// signalAct sends a signal to a container.
type signalAct struct {
	container int
	signal    syscall.Signal
	all       bool
}

// decision is what a worker is to do now. Everything in it can be done at once.
type decision struct {
	finish    bool // the pod is over: stage finished
	terminate bool // the pod is deleted: stage terminating

	admit   bool // look again whether the pod's template is there
	pull    []imageKey
	acquire bool
	adopt   bool
	prepare bool
	// start is the index of the container to create and start; -1 for none.
	start int
	// restart are containers whose run ended and is to be followed by another.
	restart []int

	list    bool // ask the machine for its containers
	signals []signalAct
	release bool
	cleanup bool

	// wake is when to decide again although nothing happened; zero for never.
	wake time.Time
}

func (d *decision) wakeAt(t time.Time) {
	if d.wake.IsZero() || t.Before(d.wake) {
		d.wake = t
	}
}

// decide looks at the state and says what to do next. It changes nothing. The
// worker does it, marks what is under way, and asks again after every change.
func decide(s *state, now time.Time) decision {
	d := decision{start: -1}
	switch s.stage {
	case stageSyncing:
		switch {
		case s.deletion != nil:
			d.terminate = true
		case s.refusal != nil || podOver(s, now):
			d.finish = true
		default:
			decideSync(s, now, &d)
		}
	case stageFinished:
		if s.deletion != nil {
			d.terminate = true
			return d
		}
		decideRelease(s, now, &d)
	case stageTerminating:
		decideTerminating(s, now, &d)
	case stageTerminated:
	}
	return d
}

// podOver: every container has ended for good and its output is on disk.
func podOver(s *state, now time.Time) bool {
	if s.plan == nil || len(s.containers) == 0 {
		return false
	}
	for _, c := range s.containers {
		if c.step != containerExited || restarts(s.plan.restartPolicy, c.exit) || !drainedOrLate(c, now) {
			return false
		}
	}
	return true
}

func drainedOrLate(c *containerState, now time.Time) bool {
	return c.drained || !now.Before(c.drainBy)
}

func decideSync(s *state, now time.Time, d *decision) {
	// 1. A machine that is lost goes before anything else is done for the pod.
	if s.machine.lost != nil {
		decideRelease(s, now, d)
		return
	}
	// A pod without a plan waits for its template.
	if s.plan == nil {
		switch {
		case s.waiting == nil:
		case now.Before(s.waiting.retryAt):
			d.wakeAt(s.waiting.retryAt)
		default:
			d.admit = true
		}
		return
	}
	// 2. A machine of an earlier process is asked what it has.
	if s.machine.adopt && s.machine.step == machineNone {
		if now.Before(s.machine.retryAt) {
			d.wakeAt(s.machine.retryAt)
			return
		}
		d.adopt = true
		return
	}
	// 3. Runs that ended are followed by others, once their output is safe.
	wanted := false
	var next time.Time
	for i, c := range s.containers {
		switch c.step {
		case containerExited:
			if !drainedOrLate(c, now) {
				d.wakeAt(c.drainBy)
			} else if restarts(s.plan.restartPolicy, c.exit) {
				d.restart = append(d.restart, i)
			}
		case containerWaiting:
			if now.Before(c.notBefore) {
				if next.IsZero() || c.notBefore.Before(next) {
					next = c.notBefore
				}
			} else {
				wanted = true
			}
		default:
		}
	}
	if !next.IsZero() {
		d.wakeAt(next)
	}
	// 4. All images, side by side. A machine of a template brings them; only when an
	// earlier process's machine has one that is not on the node any more, it is pulled.
	ready := true
	for _, key := range s.plan.images {
		if s.plan.template != nil && s.machine.step != machineHeld {
			break
		}
		img := s.images[key]
		switch {
		case img.image != nil:
			continue
		case img.pulling, img.fatal:
		case now.Before(img.retryAt):
			d.wakeAt(img.retryAt)
		default:
			d.pull = append(d.pull, key)
		}
		ready = false
	}
	if !ready {
		return
	}
	// 5. A machine, as soon as some container may run in it.
	switch s.machine.step {
	case machineNone:
		if !wanted {
			return
		}
		if now.Before(s.machine.retryAt) {
			d.wakeAt(s.machine.retryAt)
			return
		}
		d.acquire = true
		return
	case machineHeld:
	default:
		return
	}
	// 6. What the containers share.
	if !s.machine.prepared {
		switch {
		case s.machine.preparing:
		case now.Before(s.machine.retryAt):
			d.wakeAt(s.machine.retryAt)
		default:
			d.prepare = true
		}
		return
	}
	// 7. Containers, one after the other in the order of the pod.
	if !s.machine.synced {
		return
	}
	for _, c := range s.containers {
		if c.step == containerStarting {
			return
		}
	}
	for i, c := range s.containers {
		if c.step == containerWaiting && !now.Before(c.notBefore) {
			d.start = i
			return
		}
	}
}

// decideRelease gives the machine back, whatever it is doing, when no start is under way in it.
func decideRelease(s *state, now time.Time, d *decision) {
	if busy(s) {
		return
	}
	m := &s.machine
	if m.step != machineHeld && (m.step != machineNone || !m.adopt) {
		return
	}
	if now.Before(m.retryAt) {
		d.wakeAt(m.retryAt)
		return
	}
	d.release = true
}

// busy: something is under way that may still change what the machine holds.
func busy(s *state) bool {
	if s.machine.step == machineAcquiring || s.machine.step == machineAdopting || s.machine.step == machineReleasing || s.machine.preparing {
		return true
	}
	for _, c := range s.containers {
		if c.step == containerStarting {
			return true
		}
	}
	for _, i := range s.images {
		if i.pulling {
			return true
		}
	}
	return false
}

func decideTerminating(s *state, now time.Time, d *decision) {
	del := s.deletion
	// 1. Everything that was being started was cancelled: wait until it has ended.
	if busy(s) || del.cleaning || del.listing {
		return
	}
	// 2. A machine with containers: end them first.
	if s.machine.step == machineHeld && s.machine.lost == nil && !containersDown(s, now, d) {
		return
	}
	// A machine of an earlier process whose pod may still end gracefully is adopted first.
	if s.machine.step == machineNone && s.machine.adopt && s.machine.acquired && now.Before(del.deadline()) && del.failures == 0 {
		d.adopt = true
		return
	}
	// 3. The machine.
	if s.machine.step == machineHeld || s.machine.adopt {
		decideRelease(s, now, d)
		return
	}
	// 4. Files, record, API object.
	if now.Before(del.retryAt) {
		d.wakeAt(del.retryAt)
		return
	}
	d.cleanup = true
}

// containersDown reports whether all containers have ended or time is up, and what
// to do until then.
func containersDown(s *state, now time.Time, d *decision) bool {
	del := s.deletion
	if !del.listed {
		d.list = true
		return false
	}
	last := del.deadline().Add(killWait)
	down := true
	for i, c := range s.containers {
		switch c.step {
		case containerRunning:
			down = false
			if !c.stopSent && del.grace > 0 {
				d.signals = append(d.signals, signalAct{container: i, signal: s.plan.containers[i].stopSignal})
			}
		case containerExited:
			if !drainedOrLate(c, now) && now.Before(last) {
				down = false
				d.wakeAt(c.drainBy)
			}
		default:
		}
	}
	if down {
		return true
	}
	switch {
	case !now.Before(last):
		return true
	case !now.Before(del.deadline()):
		if !del.killed {
			for i, c := range s.containers {
				if c.step == containerRunning {
					d.signals = append(d.signals, signalAct{container: i, signal: syscall.SIGKILL, all: true})
				}
			}
		}
		d.wakeAt(last)
	default:
		d.wakeAt(del.deadline())
	}
	return false
}
