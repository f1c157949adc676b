// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"fmt"
	"time"
)

// checkout hands a warm entry over that the ledger has promoted for the request. One
// that does not answer in time is deleted in the background, and the promotion is
// taken back.
func (s *Supply) checkout(ctx context.Context, req Request, e *warmEntry, m made) (*Lease, error) {
	m.path, m.machine, m.images = PathWarm, e.machine, e.images
	err := s.wake(ctx, req, e, &m)
	if err == nil {
		l := s.lease(req, e.room, m)
		l.template = templateName{e.template.Namespace, e.template.Name, e.template.Revision}
		l.age = time.Since(e.created)
		return l, nil
	}
	reason := EvictDead
	if ctx.Err() != nil {
		reason = EvictAbandoned
	} else {
		s.opts.Logger.Warn("Discarding a warm machine that does not answer", "machine", e.id(), "pool", e.pool, "error", err)
	}
	// Before the request gets another: a later process must not take this one for it.
	if err := s.opts.records.remove(e.id()); err != nil {
		s.opts.Logger.Error("Leaving the record of a machine that is to be deleted", "machine", e.id(), "error", err)
	}
	e.room.demote()
	s.lay(grave{id: e.id(), machine: e.machine, conn: e.conn, room: e.room, pool: e.pool, reason: reason})
	return nil, fmt.Errorf("check out machine %q of pool %s: %w", e.id(), e.pool, err)
}

// wake lets a paused entry run and proves that it answers. A few at a time: guests that
// wake all at once on as many processors as the host has not got are each as late as the
// last, and look dead.
func (s *Supply) wake(ctx context.Context, req Request, e *warmEntry, m *made) error {
	waiting := time.Now()
	select {
	case s.wakes <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for a turn to wake: %w", ctx.Err())
	}
	defer func() { <-s.wakes }()
	m.timings.Wait += time.Since(waiting)
	ctx, cancel := context.WithTimeout(ctx, s.opts.CheckoutTimeout)
	defer cancel()
	// Before it runs: a later process must know whose it is.
	if err := s.opts.records.write(recordOfEntry(e, &req)); err != nil {
		return err
	}
	start := time.Now()
	if err := e.machine.Resume(ctx); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if e.conn != nil {
		e.conn.Pause(false)
	}
	resumed := time.Now()
	m.timings.Restore = resumed.Sub(start)
	conn, err := s.reach(ctx, e)
	if err != nil {
		return err
	}
	// What proves that it is alive is this answer: a ping before it would cost a hot path
	// one more round through the guest.
	if err := s.opts.Store.Refresh(ctx, e.machine, conn, req.hostname()); err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	m.timings.Agent = time.Since(resumed)
	m.conn = conn
	return nil
}

// reach is the connection to a running entry: the one that there is, or a new one.
func (s *Supply) reach(ctx context.Context, e *warmEntry) (Conn, error) {
	if e.conn == nil || e.conn.Err() != nil {
		if e.conn != nil {
			_ = e.conn.Close() // it is lost; this frees the stream, of which there may be only one
		}
		conn, err := s.opts.Store.Dial(ctx, e.machine)
		if err != nil {
			return nil, err
		}
		e.conn = conn
	}
	return e.conn, nil
}

// recordOfEntry is what a later process has to know of an entry, and of the request
// that has it, nil for none.
func recordOfEntry(e *warmEntry, req *Request) record {
	r := record{
		Machine: e.id(), Pool: e.pool,
		Namespace: e.template.Namespace, Name: e.template.Name, Revision: e.template.Revision, Shape: e.template.Shape,
		Images: e.images, Created: e.created, Warm: e.cost,
	}
	if req != nil {
		r.Request, r.PodUID, r.Active, r.Bound = req.MachineID, req.PodUID, req.budget(), time.Now()
	}
	return r
}

// recordOf is what a later process has to know of a machine that was made for a
// request.
func recordOf(req Request, room *reservation, m made) record {
	t := req.Template
	return record{
		Machine: room.entry.Machine, Request: req.MachineID, PodUID: req.PodUID,
		Namespace: t.Namespace, Name: t.Name, Revision: t.Revision, Shape: t.Shape,
		Images: m.images, Created: time.Now(), Bound: time.Now(), Active: req.budget(),
	}
}

// keepImages keeps the images of a machine on the node until forget.
func (s *Supply) keepImages(ctx context.Context, machine string, images []SlotImage) error {
	for _, i := range images {
		if s.opts.Images == nil {
			return refuse(ReasonInvalid, nil, "the node has no images for templates")
		}
		if _, err := s.opts.Images.Pin(ctx, machine, i.Digest); err != nil {
			return fmt.Errorf("keep image %s: %w", i.Ref, err)
		}
	}
	return nil
}
