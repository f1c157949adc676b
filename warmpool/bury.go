// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Bounds of the pause between attempts to delete what could not be deleted.
const (
	discardPauseMin = time.Second
	discardPauseMax = 30 * time.Second
)

// graves are machines that are to be deleted in the background. It has its own lock,
// since the ledger hands over what it evicts while it holds its own.
type graves struct {
	wake chan struct{} // holds one

	mu    sync.Mutex
	queue []grave // guarded by mu
}

// grave is a machine that is to be deleted, and the room that it holds until then.
type grave struct {
	id      string
	machine vm.Machine // nil: to be looked up
	conn    Conn       // nil: none
	room    *reservation
	// What the observer is told at first.
	pool   string
	reason EvictReason // empty: nothing
}

// bury deletes a machine in the background, until it is gone or the supply is shut
// down; then the next process reaps it. It keeps its room until then.
func (s *Supply) bury(g grave) {
	_ = g.room.advance(StateStopping)
	s.lay(g)
}

func (s *Supply) lay(g grave) {
	s.graves.mu.Lock()
	s.graves.queue = append(s.graves.queue, g)
	s.graves.mu.Unlock()
	signal(s.graves.wake)
}

// evicted is told by the ledger, which holds its lock.
func (s *Supply) evicted(e *warmEntry, reason EvictReason, inFlight bool) {
	g := grave{pool: e.pool, reason: reason}
	if inFlight {
		e.cancel() // the refill deletes what it has made
	} else {
		g.id, g.machine, g.conn, g.room = e.id(), e.machine, e.conn, e.room
	}
	s.lay(g)
}

// undertake is the goroutine that deletes, until the supply is shut down.
func (s *Supply) undertake() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.graves.wake:
		}
		s.graves.mu.Lock()
		queue := s.graves.queue
		s.graves.queue = nil
		s.graves.mu.Unlock()
		for _, g := range queue {
			if g.reason != "" {
				s.opts.Observer.Evicted(g.pool, g.reason)
			}
			if g.room != nil {
				s.wg.Go(func() { s.burial(g) })
			}
		}
	}
}

// burial deletes one machine and tries again until it is gone.
func (s *Supply) burial(g grave) {
	if g.conn != nil {
		_ = g.conn.Close() // the guest is about to be gone
	}
	pause := s.opts.discardPause
	for {
		err := s.endByID(s.ctx, g.id, g.machine)
		if err == nil {
			g.room.release()
			return
		}
		g.room.stuck()
		s.opts.Logger.Error("Cannot delete a machine, trying again", "machine", g.id, "error", err)
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, discardPauseMax)
	}
}

// endByID ends a machine of which perhaps only the id is known.
func (s *Supply) endByID(ctx context.Context, id string, m vm.Machine) error {
	if m == nil {
		lctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
		defer cancel()
		var err error
		m, err = s.opts.Driver.Load(lctx, id)
		if errors.Is(err, vm.ErrNotFound) {
			return s.forget(id)
		}
		if err != nil {
			return fmt.Errorf("look for machine %q: %w", id, err) // could not ask is not gone
		}
	}
	return s.end(ctx, m)
}

// end ends a machine by force, also when ctx is over, and drops everything that it
// left on the host.
func (s *Supply) end(ctx context.Context, m vm.Machine) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.DeleteTimeout)
	defer cancel()
	// First, so that no later process takes for usable what is half deleted.
	if err := s.opts.records.remove(m.ID()); err != nil {
		return err
	}
	if err := m.Delete(ctx); err != nil {
		return fmt.Errorf("delete machine %q: %w", m.ID(), err)
	}
	if err := s.forget(m.ID()); err != nil {
		return err
	}
	s.opts.Observer.Sampled(Sample{Metric: MetricKillDelete, Duration: time.Since(start)})
	return nil
}

// forget drops what is kept for a machine that does not exist.
func (s *Supply) forget(id string) error {
	if err := errors.Join(s.opts.records.remove(id), s.opts.Store.Forget(id)); err != nil {
		return err
	}
	if s.opts.Images != nil {
		s.opts.Images.Release(id)
	}
	return nil
}
