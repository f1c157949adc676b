// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import "time"

// decision is what a worker is to do now. Everything in it can be done at once.
type decision struct {
	finish    bool // the pod is over: stage finished
	terminate bool // the pod is deleted: stage terminating
	// kill: the pod's containers are to end although nobody deletes it.
	kill *podKill

	admit   bool // look again whether the pod's template is there
	pull    []imageKey
	acquire bool
	adopt   bool
	prepare bool
	// start is the index of the container to create and start; -1 for none.
	start int
	// restart are containers whose run ended and is to be followed by another.
	restart []int
	// postStart are containers whose hook is to run, now that their run began.
	postStart []int
	preStop   []hookAct

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
		decideSyncing(s, now, &d)
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

// decideSyncing is what to do for a pod that nobody deleted.
func decideSyncing(s *state, now time.Time, d *decision) {
	overdue := deadlineOf(s)
	switch {
	case s.deletion != nil:
		d.terminate = true
	case s.refusal != nil:
		d.finish = true
	case s.kill != nil:
		d.finish = bringDown(s, &s.kill.ending, now, d)
	case podOver(s, now):
		d.finish = true
	case settled(s, now):
		d.kill = &podKill{settled: true, ending: ending{since: now, grace: s.plan.grace}}
	case !overdue.IsZero() && !now.Before(overdue):
		d.kill = &podKill{reason: reasonDeadlineExceeded, message: deadlineMessage, ending: ending{since: now, grace: graceOfSpec(s.pod)}}
	default:
		decideSync(s, now, d)
		if !overdue.IsZero() {
			d.wakeAt(overdue)
		}
	}
}

// deadlineOf is when the pod has been active for too long; zero for never.
func deadlineOf(s *state) time.Time {
	if a := s.pod.Spec.ActiveDeadlineSeconds; a != nil {
		return s.startTime.Add(seconds(*a))
	}
	return time.Time{}
}

func drainedOrLate(c *containerState, now time.Time) bool {
	return c.drained || !now.Before(c.drainBy)
}

// awaitRoom gives the output of a run that has ended more time while it is kept from the
// host's disk by nothing but a want of room: it is safe in the machine, and only there. A pod
// that is brought down has no more than its own time all the same.
func awaitRoom(c *containerState, now time.Time, noRoom func() bool) {
	if c.step == containerExited && !c.drained && !now.Before(c.drainBy) && noRoom() {
		c.drainBy = now.Add(drainWait)
	}
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
	// 3. Runs that ended are followed by others, once their output is safe; runs that go on
	// have their hooks, and end when somebody asked for it.
	passed := progress(s)
	wanted := false
	for i, c := range s.containers {
		switch c.step {
		case containerExited:
			if !drainedOrLate(c, now) {
				d.wakeAt(c.drainBy)
			} else if again(s, i) {
				d.restart = append(d.restart, i)
			}
		case containerWaiting:
			switch {
			case s.plan.containers[i].kind == kindEphemeral, !runnable(s, i, passed):
			case now.Before(c.notBefore):
				d.wakeAt(c.notBefore)
			default:
				wanted = true
			}
		case containerRunning:
			switch {
			case c.stop != nil:
				stopOne(s, i, c.stop.deadline(), c.stop.grace <= 0, now, d)
			case settling(s, i) && c.postStart == hookNone:
				d.postStart = append(d.postStart, i)
			}
		default:
		}
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
	for _, key := range s.plan.late { // nobody waits for those but their containers
		if img := s.images[key]; img.image == nil && !img.pulling && !img.fatal && s.machine.step == machineHeld {
			if now.Before(img.retryAt) {
				d.wakeAt(img.retryAt)
			} else {
				d.pull = append(d.pull, key)
			}
		}
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
	// 7. Containers, one after the other in the order of the pod: none begins while another
	// is being started or has its postStart hook.
	if !s.machine.synced {
		return
	}
	for i, c := range s.containers {
		if c.step == containerStarting || settling(s, i) && c.postStart != hookFailed {
			return
		}
	}
	for i, c := range s.containers {
		if c.step != containerWaiting || !runnable(s, i, passed) {
			continue
		}
		if now.Before(c.notBefore) {
			d.wakeAt(c.notBefore)
			continue
		}
		d.start = i
		return
	}
}

// decideRelease gives the machine back, whatever it is doing, when no start is under way in it.
func decideRelease(s *state, now time.Time, d *decision) {
	// A pod that goes on keeps its images, and need not wait for a pull to get another machine.
	if occupied(s) || s.stage != stageSyncing && busy(s) {
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

// busy: something is under way that may still change what the machine, or the pod, holds.
func busy(s *state) bool {
	if occupied(s) {
		return true
	}
	for _, i := range s.images {
		if i.pulling {
			return true
		}
	}
	return false
}

// occupied: something is under way that may still change what the machine holds.
func occupied(s *state) bool {
	if s.machine.step == machineAcquiring || s.machine.step == machineAdopting || s.machine.step == machineReleasing || s.machine.preparing {
		return true
	}
	for _, c := range s.containers {
		if c.step == containerStarting {
			return true
		}
	}
	return false
}

func decideTerminating(s *state, now time.Time, d *decision) {
	del := s.deletion
	if del.cleaning || !bringDown(s, &del.ending, now, d) {
		return
	}
	if s.machine.step == machineHeld || s.machine.adopt {
		decideRelease(s, now, d)
		return
	}
	// Files, record, API object.
	if now.Before(del.retryAt) {
		d.wakeAt(del.retryAt)
		return
	}
	d.cleanup = true
}
