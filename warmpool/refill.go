// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// warmPrefix begins the ids of entries. A machine that has it and no record is what a
// process left that died while it made it.
const warmPrefix = "warm-"

func isWarmID(id string) bool { return strings.HasPrefix(id, warmPrefix) }

func newWarmID() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails: it ends the process instead
	return warmPrefix + hex.EncodeToString(b)
}

// refill restores an entry of a pool, in the background. False when there is no room
// for it any more. Only the supervisor calls it.
func (s *Supply) refill(t Target) bool {
	ctx, cancel := context.WithCancel(s.ctx)
	e, err := s.ledger.reserveWarm(newWarmID(), t, cancel)
	if err != nil {
		cancel()
		return false
	}
	s.mu.Lock()
	s.refills++
	s.mu.Unlock()
	s.wg.Go(func() {
		defer cancel()
		start := time.Now()
		err := s.restoreEntry(ctx, e)
		if err == nil && !s.ledger.shelve(e) {
			err = context.Canceled
		}
		evicted := ctx.Err() != nil // only an eviction or Shutdown cancels it
		if err != nil {
			s.abandon(ctx, e, err)
		}
		s.mu.Lock()
		s.refills--
		s.mu.Unlock()
		switch {
		case err == nil:
			s.templates.restored(t.Template)
			s.opts.Observer.Sampled(Sample{Metric: MetricRefill, Duration: time.Since(start), Pool: t.Pool, Template: t.Template.ID()})
			s.opts.Observer.Refilled(t.Pool, nil)
		case evicted || errors.Is(err, context.Canceled):
		default:
			s.refillFailed(t, err)
		}
		signal(s.kicks)
	})
	return true
}

// restoreEntry makes an entry ready: restored, proven, rehearsed, paused, recorded.
func (s *Supply) restoreEntry(ctx context.Context, e *warmEntry) error {
	src, snap, _, err := s.templates.ensure(ctx, e.template)
	if err != nil {
		return &snapshotError{err}
	}
	defer snap.Release()
	e.images = src.Images
	if err := s.keepImages(ctx, e.id(), src.Images); err != nil {
		return err
	}
	start := time.Now()
	running, err := s.opts.Store.Restore(ctx, snap, e.id(), src.config(), MakeOptions{
		Stage: func(stage Stage) { _ = e.room.advance(stateOf(stage)) },
	})
	if err != nil {
		return err
	}
	e.machine, e.conn = running.Machine, running.Conn
	s.measured(start, running, e.pool, src)

	start = time.Now()
	pctx, cancel := context.WithTimeout(ctx, s.opts.ProbeTimeout)
	defer cancel()
	if err := s.opts.Store.Rehearse(pctx, e.machine, e.conn, e.images); err != nil {
		return fmt.Errorf("probe machine %q: %w", e.id(), err)
	}
	s.opts.Observer.Sampled(Sample{Metric: MetricReadyProbe, Duration: running.Probe + time.Since(start), Pool: e.pool, Template: e.template.ID()})
	if err := pause(pctx, e.machine, e.conn); err != nil {
		return err
	}
	e.created = time.Now()
	return s.opts.records.write(recordOfEntry(e, nil))
}

// pause lets a machine stand still, and its connection know that.
func pause(ctx context.Context, m vm.Machine, conn Conn) error {
	pauser, ok := m.(vm.Pauser)
	if !ok {
		return fmt.Errorf("pause machine %q: %w", m.ID(), vm.ErrNotSupported)
	}
	conn.Pause(true)
	if err := pauser.Pause(ctx); err != nil {
		return fmt.Errorf("pause machine %q: %w", m.ID(), err)
	}
	return nil
}

// snapshotError marks an error that is about the template's snapshot, which the
// template's status tells.
type snapshotError struct{ error }

func (e *snapshotError) Unwrap() error { return e.error }

// abandon deletes what a failed refill has made, and gives its room back.
func (s *Supply) abandon(ctx context.Context, e *warmEntry, err error) {
	if overLimit(err) {
		e.room.refused(err)
	}
	s.ledger.unshelve(e)
	machine := e.machine
	if leftover := (*snapshot.LeftoverError)(nil); errors.As(err, &leftover) {
		machine = leftover.Machine
	}
	if machine == nil {
		// There is none, but perhaps a reference that could not be dropped.
		if ferr := s.forget(e.id()); ferr != nil {
			s.opts.Logger.Error("Cannot forget a machine that was not made, trying again", "machine", e.id(), "error", ferr)
			e.room.stuck()
			s.lay(grave{id: e.id(), room: e.room})
			return
		}
		e.room.release()
		return
	}
	if e.conn != nil {
		_ = e.conn.Close()
	}
	// At once, also when the supply is shut down: nobody else has it.
	if derr := s.end(ctx, machine); derr != nil {
		s.opts.Logger.Error("Cannot delete a machine, trying again", "machine", e.id(), "error", derr)
		e.room.stuck()
		s.lay(grave{id: e.id(), machine: machine, room: e.room})
		return
	}
	e.room.release()
}

// refillFailed holds a failure against the pool and the template.
func (s *Supply) refillFailed(t Target, err error) {
	s.opts.Observer.Refilled(t.Pool, err)
	s.opts.Logger.Warn("Could not fill a pool", "pool", t.Pool, "template", t.Template.ID(), "error", err)
	if about := (*snapshotError)(nil); errors.As(err, &about) {
		return // it waits for the snapshot
	}
	if overLimit(err) {
		return // it waits for a slot
	}
	if errors.Is(err, vm.ErrNoSpace) {
		s.ledger.retryLater(t.Pool, s.opts.pauses, err.Error()) // the disk, not the template
		return
	}
	s.ledger.retryLater(t.Pool, s.opts.pauses, err.Error())
	s.templates.restoreFailed(t.Template, err)
}

// retryLater makes a pool wait before its next restore.
func (l *Ledger) retryLater(name string, p pauses, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pool := l.shelves.pools[name]
	if pool == nil {
		return
	}
	if now := l.now(); !pool.retry.waits(now) { // several may fail at once
		pool.retry = pool.retry.failed(now, p, message)
	}
	l.changed()
}
