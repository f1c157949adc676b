// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// A record is written before the act that it announces. So what is to begin (a machine, a
// run of a container) does not begin while the record cannot be written: the next process
// would not know of it, and make, or start, another. What runs goes on, and what is to end
// ends, whatever the disk says: a full one may get its room by that.

// saveRetryFirst, saveRetryMax are the delays before a record that could not be written is
// written again: a full disk may have room again.
const saveRetryFirst, saveRetryMax = 500 * time.Millisecond, 5 * time.Second

// save writes the record, and reports whether it is on disk.
func (w *worker) save() bool {
	s := &w.s
	if s.stage >= stageTerminating && s.deletion.cleaning {
		return false // it is being removed
	}
	err := w.env.records.save(recordOf(s))
	w.dirty = err != nil
	if err == nil {
		if s.unrecorded != nil {
			w.log.Info("Wrote the pod's record again", "failures", s.unrecorded.failures)
			s.unrecorded = nil
		}
		return true
	}
	if s.unrecorded == nil {
		s.unrecorded = &unrecorded{}
	}
	u := s.unrecorded
	u.failures++
	u.retryAt = time.Now().Add(retryDelay(u.failures, saveRetryFirst, saveRetryMax))
	text := bound(err.Error(), maxEventMessage/2)
	w.log.Error("Cannot write the pod's record", "err", err, "failures", u.failures)
	// A record that could not be read is not replaced: of its pod people were told already.
	if fault := (*durable.Fault)(nil); u.message != text && !errors.As(err, &fault) {
		w.env.events.pod(s.pod, true, eventUnrecorded, "The node cannot write down what it does for the pod. It begins nothing more for it until it can, and what runs goes on: "+text)
	}
	u.message = text
	return false
}

// saveIfDue is save, unless it failed a moment ago.
func (w *worker) saveIfDue(now time.Time) bool {
	if u := w.s.unrecorded; u != nil && now.Before(u.retryAt) {
		return false
	}
	return w.save()
}

// begin changes a container for something that is about to begin, and writes that down.
// When it cannot be, nothing has changed.
func (w *worker) begin(c *containerState, change func()) bool {
	before := *c
	change()
	if w.save() {
		return true
	}
	*c = before
	return false
}

// awaitOutput gives runs that ended more time for their output to be copied while it is the
// disk that does not take it: the machine that keeps it goes with the run, or with the pod.
// Who ends the pod does not wait for that, he may be making room.
func (w *worker) awaitOutput(now time.Time) {
	s := &w.s
	if w.hold == nil || s.end() != nil {
		return
	}
	for _, c := range s.containers {
		late := c.step == containerExited && !c.drained && !now.Before(c.drainBy)
		if late && w.env.logs.Blocked(w.ref(c)) {
			c.drainBy = now.Add(drainWait)
		}
	}
}
