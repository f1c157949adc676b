// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/clock"
)

// DefaultStuckTimeout is how long a machine may not answer until it is ended: a host that
// swaps may stall a guest for tens of seconds and the guest goes on as if nothing had been,
// while the kubelet takes some 40 s of silence of a whole node to be its end.
const DefaultStuckTimeout = time.Minute

// Within a stuck timeout the machine is looked at so often, and its agent is asked at
// every second look: it has several chances to answer before anything is concluded.
const (
	looksPerTimeout = 12
	asksPerTimeout  = looksPerTimeout / 2
	// suspectAfter is the part of the timeout after which a stall is told.
	suspectAfter = 2
	// missedLooks in a row mean that this process, or its host, stood still.
	missedLooks = 3
)

// MachineHealth is what is thought of a machine that a pod has.
type MachineHealth string

// What machines may be.
const (
	// MachineHealthy: it answers, or nobody listened for long enough to say otherwise.
	MachineHealthy MachineHealth = "healthy"
	// MachineSuspect: it has not answered for a while, or somebody paused it.
	MachineSuspect MachineHealth = "suspect"
	// MachineStuck: it is to be ended.
	MachineStuck MachineHealth = "stuck"
)

// sighting is what is known of a machine at one look.
type sighting struct {
	// silent is how long the agent has not answered, as far as this process was there to
	// hear it.
	silent time.Duration
	// stoodStill: since the look before, this process was stopped or its host asleep (a
	// closed lid). What did not answer meanwhile had no chance to.
	stoodStill bool
	// state is what the hypervisor says, empty when it does not answer either.
	state vm.State
}

// judge says what a machine is that was given timeout to answer. That its hypervisor does
// not answer is no reason to end a machine whose agent does, nor does it shorten the
// time: the processes of a host that swaps come back together.
func judge(s sighting, timeout time.Duration) MachineHealth {
	switch {
	case s.stoodStill, s.silent < timeout/suspectAfter:
		return MachineHealthy
	case s.state == vm.StatePaused:
		return MachineSuspect // only this node can pause it, and it need not answer then
	case s.silent < timeout:
		return MachineSuspect
	default:
		return MachineStuck
	}
}

// liveness watches one machine until it is stuck.
type liveness struct {
	timeout time.Duration
	// ask is answered by the agent; look by the hypervisor, nil when it cannot be asked.
	ask  func(context.Context) error
	look func(context.Context) (vm.State, error)
	// tell is called when the health changed, with words for the pod's owner.
	tell func(h MachineHealth, message string)
	// wall is the time of the wall clock.
	wall func() time.Time

	mu sync.Mutex
	// answered is when the agent last answered, or when listening began anew. Guarded by mu.
	answered time.Time
	// deafSince is since when the watch of the containers has been broken, zero while it
	// stands: an agent that answers pings and nothing else is no use. Guarded by mu.
	deafSince time.Time
}

func newLiveness(timeout time.Duration) *liveness {
	return &liveness{timeout: timeout, wall: time.Now, answered: time.Now()}
}

// watching says whether the watch of the machine's containers stands.
func (l *liveness) watching(stands bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case stands:
		l.answered, l.deafSince = time.Now(), time.Time{}
	case l.deafSince.IsZero():
		l.deafSince = time.Now()
	}
}

func (l *liveness) hear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered = time.Now()
}

// silence is how long the agent has not answered, or its watch not stood.
func (l *liveness) silence(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	silent := now.Sub(l.answered)
	if !l.deafSince.IsZero() {
		silent = max(silent, now.Sub(l.deafSince))
	}
	return silent
}

// forgive lets the silence begin anew.
func (l *liveness) forgive(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered = now
	if !l.deafSince.IsZero() {
		l.deafSince = now
	}
}

// beat asks the agent again and again until ctx ends. An answer may take as long as a
// machine has: one that answers slowly is not stuck.
func (l *liveness) beat(ctx context.Context) {
	for sleep(ctx, l.timeout/asksPerTimeout) {
		asking, cancel := context.WithTimeout(ctx, l.timeout)
		err := l.ask(asking)
		cancel()
		if err == nil {
			l.hear()
		}
	}
}

// run looks at the machine until it is stuck or ctx ends.
func (l *liveness) run(ctx context.Context) {
	period := l.timeout / looksPerTimeout
	health := MachineHealthy
	last, lastWall := time.Now(), l.wall()
	for sleep(ctx, period) {
		now, wall := time.Now(), l.wall()
		s := sighting{stoodStill: clock.StoodStill(now.Sub(last), wall.Round(0).Sub(lastWall.Round(0)), missedLooks*period)}
		if s.stoodStill {
			l.forgive(now)
		}
		s.silent = l.silence(now)
		hypervisor := ""
		if s.silent >= l.timeout/suspectAfter {
			s.state, hypervisor = l.inquire(ctx, period)
		}
		if ctx.Err() != nil {
			return
		}
		if h := judge(s, l.timeout); h != health {
			l.tell(h, describe(h, s, hypervisor, l.timeout))
			if health = h; h == MachineStuck {
				return
			}
		}
		last, lastWall = time.Now(), l.wall() // asking the hypervisor took time of ours
	}
}

// inquire asks the hypervisor, and says what came of it.
func (l *liveness) inquire(ctx context.Context, limit time.Duration) (vm.State, string) {
	if l.look == nil {
		return "", ""
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	state, err := l.look(ctx)
	if err != nil {
		return "", ", and its hypervisor does not answer either"
	}
	return state, fmt.Sprintf("; its hypervisor answers that it is %s", state)
}

// describe says for the pod's owner what became of the machine.
func describe(h MachineHealth, s sighting, hypervisor string, timeout time.Duration) string {
	silent := s.silent.Round(time.Second)
	switch h {
	case MachineStuck:
		return fmt.Sprintf("the machine's agent has not answered for %s%s: it is stuck", silent, hypervisor)
	case MachineSuspect:
		return fmt.Sprintf("the machine's agent has not answered for %s%s; it is ended after %s", silent, hypervisor, timeout)
	default:
		return "the machine answers again"
	}
}

// watchLiveness watches the machine that is held, and gives it up when it is stuck.
func (w *worker) watchLiveness(h *machineHold) {
	h.live.ask = func(ctx context.Context) error {
		g, err := h.lease.Guest(ctx)
		if err != nil {
			return err
		}
		if err := h.clock.Ask(ctx, g.Agent); err != nil {
			return err
		}
		w.keepClock(ctx, h, g)
		return nil
	}
	if p, ok := h.lease.(Prober); ok {
		h.live.look = p.State
	}
	h.live.tell = func(health MachineHealth, message string) {
		w.here(h, func(s *state) {
			if w.env.observer != nil {
				w.env.observer.ObserveMachine(health)
			}
			switch health {
			case MachineStuck:
				w.lose(reasonMachineStuck, message)
				return
			case MachineSuspect:
				w.log.Warn("Machine does not answer", "machine", s.machine.id, "message", message)
			case MachineHealthy:
				w.log.Info("Machine answers again", "machine", s.machine.id)
			}
			w.env.events.pod(s.pod, health == MachineSuspect, healthEvents[health], "Machine "+s.machine.id+": "+message)
		})
	}
	h.wg.Go(func() { h.live.beat(h.ctx) })
	h.live.run(h.ctx)
}

// keepClock gives a machine that answers the host's time when it has another: while a host
// sleeps its machines' clocks stand, and nothing in a guest would notice.
func (w *worker) keepClock(ctx context.Context, h *machineHold, g *Guest) {
	// Part of the time that an answer may take: an agent that answers is not stuck.
	ctx, cancel := context.WithTimeout(ctx, w.env.stuckTimeout/asksPerTimeout)
	defer cancel()
	switch off, err := h.clock.Set(ctx, g.Agent); {
	case err != nil:
		w.log.Warn("The machine's clock is wrong and could not be set", "off", off, "error", err)
	case off != 0:
		w.log.Info("Set the machine's clock", "off", off)
	}
}

// healthEvents are the reasons of events that tell of a machine's health.
var healthEvents = map[MachineHealth]string{MachineSuspect: eventMachineSilent, MachineHealthy: eventMachineAnswers}
