// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// adoption is how a machine of an earlier process is asked for.
type adoption struct {
	// live watches for how long it has not answered; nil before it did not.
	live *liveness
	stop context.CancelFunc
	// told is what was last said about it.
	told string
}

// adopt takes over the machine of an earlier process.
func (w *worker) adopt(ctx context.Context) {
	m := &w.s.machine
	m.step = machineAdopting
	req := w.machineRequest()
	w.log.Info("Adopting machine", "machine", req.MachineID)
	w.acts.Go(func() {
		asking, cancel := context.WithTimeout(ctx, prepareTimeout)
		defer cancel()
		lease, err := w.env.supply.Adopt(asking, req)
		w.post(func(s *state) { w.adopted(ctx, lease, err) })
	})
}

// adopted takes in what came of it. A machine that could not be asked is asked again, for as
// long as it takes: only one that is known to be gone is. One that could be asked and does
// not answer is ended as if this process had always had it, when it is stuck.
func (w *worker) adopted(ctx context.Context, lease Lease, err error) {
	s, m := &w.s, &w.s.machine
	m.step = machineNone
	w.dirty = true
	if err == nil {
		w.endAdoption()
		m.adopt, m.step, m.failures, m.retryAt = false, machineHeld, 0, time.Time{}
		for _, c := range s.containers {
			if c.step == containerExited && !c.drained { // from now on it can be copied
				c.drainBy = time.Now().Add(recoveredDrain)
			}
		}
		w.keep(lease)
		if m.lost == nil { // else it was given up a moment ago
			w.env.events.pod(s.pod, false, eventMachineAdopted, "Machine "+m.id+" goes on after a restart of the node")
		}
		return
	}
	if ctx.Err() != nil {
		return // the next process asks
	}
	w.log.Warn("Machine could not be adopted", "machine", m.id, "err", err)
	m.failures++
	limit := machineRetryMax
	switch {
	case errors.Is(err, vm.ErrNotFound) && s.end() != nil:
		m.acquired = false // nothing to end gracefully
		return
	case errors.Is(err, vm.ErrNotFound):
		w.endAdoption()
		w.lose(reasonMachineDied, "the machine ended while the node was away")
		return
	case errors.Is(err, warmpool.ErrQuarantined) && s.end() != nil:
		m.acquired = false // who ends the pod ends its machine
		return
	case errors.Is(err, warmpool.ErrQuarantined): // until somebody says what it is
		w.unanswered(eventQuarantined, err)
	case notAsked(err):
		if l := w.adoption.live; l != nil {
			l.hear() // it has not been silent
		}
		w.unanswered(eventMachineSilent, err)
	default:
		limit = w.env.stuckTimeout / asksPerTimeout
		w.listen(ctx, err)
	}
	m.retryAt = time.Now().Add(retryDelay(m.failures, min(machineRetryFirst, limit), limit))
}

// notAsked: what is written down of the machine could not be read, so that nobody has asked
// whether it lives.
func notAsked(err error) bool {
	path := (*fs.PathError)(nil)
	return durable.Unusable(err) || errors.As(err, &path)
}

// unanswered tells the pod's owner why the machine is not adopted yet, and again as the time
// goes by: events are forgotten.
func (w *worker) unanswered(reason string, err error) {
	text := bound(err.Error(), maxEventMessage/2)
	if w.adoption.told == text && w.s.machine.failures%10 != 0 {
		return
	}
	w.adoption.told = text
	w.env.events.pod(w.s.pod, true, reason, "Machine "+w.s.machine.id+" is not taken over yet, it is asked again: "+text)
}

// listen begins to count for how long the machine does not answer. There is nothing to ask
// beside it: each adoption asks hypervisor and agent.
func (w *worker) listen(ctx context.Context, err error) {
	if w.adoption.live != nil {
		return
	}
	w.unanswered(eventMachineSilent, err)
	text := bound(err.Error(), maxEventMessage/2)
	l := newLiveness(w.env.stuckTimeout)
	l.tell = func(health MachineHealth, message string) {
		w.post(func(s *state) {
			if w.adoption.live != l {
				return
			}
			if w.env.observer != nil {
				w.env.observer.ObserveMachine(health)
			}
			if health == MachineStuck {
				w.endAdoption()
				w.lose(reasonMachineStuck, message+fmt.Sprintf(", after a restart of the node (%s)", text))
			}
		})
	}
	w.adoption.live = l
	ctx, w.adoption.stop = context.WithCancel(ctx)
	w.acts.Go(func() { l.run(ctx) })
}

// endAdoption ends the listening.
func (w *worker) endAdoption() {
	if w.adoption.stop != nil {
		w.adoption.stop()
	}
	w.adoption = adoption{}
}
