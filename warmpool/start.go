// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/clock"
)

// recall reads what an earlier process has left on disk, and counts it in the ledger.
// So are the machines of records that cannot be read, see Reconcile.
func (s *Supply) recall() error {
	records, bad, err := s.opts.records.load()
	if err != nil {
		return err
	}
	records, odd := sift(records, bad)
	bad = append(bad, odd...)
	latest := latestOf(records)
	for i, r := range records {
		if r.Request != "" && latest[r.Request] != i {
			// The request got another one when this did not answer: it is nobody's.
			s.opts.Logger.Warn("Two machines were made for one request", "request", r.Request, "machine", r.Machine)
			r.Request = r.Machine
		}
		e := Entry{Machine: r.Machine, PodUID: r.PodUID, Pool: r.Pool, Template: r.template().ID(), Budget: r.Active}
		if r.Request == "" {
			e.Warm, e.Budget = true, r.Warm
		}
		room, err := s.ledger.admitExisting(e, StateProbing)
		if err == nil && r.Request != "" && r.Request != r.Machine { // that id is taken in the ledger
			if err = s.ledger.claim(r.Request); err != nil {
				room.release()
			}
		}
		if err != nil { // one odd record keeps neither the others nor the node
			bad = append(bad, broken{machine: r.Machine, err: err, guess: r})
			continue
		}
		if r.Request == "" {
			s.adoptees = append(s.adoptees, s.ledger.putBack(r, room))
			continue
		}
		room.rest = r.Warm
		s.records[r.Machine], s.pending[r.Machine] = r, room
		if r.Request != r.Machine {
			s.aliases[r.Request] = r.Machine
		}
	}
	s.recallBroken(bad)
	return nil
}

// sift separates the records that contradict others: those by which a request has the
// machine whose id is that of another machine, of which there is a record too. One of both is
// wrong, and nothing says which pod would get the wrong machine. A record that says that the
// machine of the request's own id is the request's is no contradiction, see latestOf. Pure.
func sift(records []record, bad []broken) (good []record, odd []broken) {
	requests := make(map[string]string, len(records)+len(bad)) // by machine
	for _, r := range records {
		requests[r.Machine] = r.Request
	}
	for _, b := range bad {
		requests[b.machine] = "" // nobody knows
	}
	for _, r := range records {
		other, recorded := requests[r.Request]
		if r.Request == r.Machine || !recorded || other == r.Request {
			good = append(good, r)
			continue
		}
		odd = append(odd, broken{machine: r.Machine, err: fmt.Errorf("it says that the machine is that of request %q, and that is the id of another machine", r.Request), guess: r})
	}
	return good, odd
}

// latestOf returns, for each request, the index of the record of its machine: the
// last that it got. One that was made for it came after all warm ones. Pure.
func latestOf(records []record) map[string]int {
	latest := make(map[string]int)
	for i, r := range records {
		j, ok := latest[r.Request]
		if !ok || r.Machine == r.Request || records[j].Machine != r.Request && r.Bound.After(records[j].Bound) {
			latest[r.Request] = i
		}
	}
	return latest
}

// putBack puts an entry of an earlier process on its shelf: it is on its way until it
// has answered.
func (l *Ledger) putBack(r record, room *reservation) *warmEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &warmEntry{
		room: room, pool: r.Pool, template: r.template(), images: r.Images, created: clock.Anchor(r.Created, l.now()), cost: r.Warm,
		cancel: func() {}, // Start deletes it when it cannot be shelved
	}
	p := l.shelves.pool(r.Pool)
	p.inFlight = append(p.inFlight, e)
	l.shelves.touch(r.Pool, l.now())
	return e
}

// Start takes over the warm entries of an earlier process and then keeps the pools,
// until Shutdown. An entry can be checked out as soon as it has answered, whatever the
// others do; those that do not answer are deleted, and what an earlier process had not
// finished. It blocks for that, at most for the dial timeout for each few of them; no
// other call waits for it. Called again it does nothing.
//
// The error is one of the driver's: what it could not list is left to Reconcile. The pools
// are kept all the same.
func (s *Supply) Start(ctx context.Context) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	s.mu.Lock()
	if s.started {
		s.mu.Unlock()
		return nil
	}
	s.started = true
	adoptees := s.adoptees
	s.adoptees = nil
	s.mu.Unlock()
	// Those that are to leave first are asked first.
	slices.SortFunc(adoptees, func(a, b *warmEntry) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id(), b.id()))
	})
	err = s.sweep(ctx)
	// A few at a time, but not among those that are woken for requests: these do not wait for
	// an entry that does not answer.
	turns := make(chan struct{}, s.opts.Wakes)
	var wg sync.WaitGroup
	for _, e := range adoptees {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			s.takeOver(ctx, e)
		})
	}
	wg.Wait()
	s.start(s.supervise)
	return err
}

// takeOver puts an entry of an earlier process on its shelf when it answers, and has it
// deleted when it does not.
func (s *Supply) takeOver(ctx context.Context, e *warmEntry) {
	err := s.readopt(ctx, e)
	if err == nil && s.ledger.shelve(e) {
		return
	}
	if err != nil && ctx.Err() != nil {
		return // the node stops: the next process tries it
	}
	g := grave{id: e.id(), machine: e.machine, conn: e.conn, room: e.room, pool: e.pool, reason: EvictDead}
	if s.ledger.unshelve(e) {
		g.reason = "" // it was evicted meanwhile, which was told
	} else {
		s.opts.Logger.Warn("Deleting a warm machine of an earlier process", "machine", e.id(), "pool", e.pool, "error", err)
	}
	s.bury(g)
}

// readopt proves that an entry of an earlier process is fit to be checked out.
func (s *Supply) readopt(ctx context.Context, e *warmEntry) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	m, err := s.opts.Driver.Load(ctx, e.id())
	if err != nil {
		return err
	}
	e.machine = m
	if state, err := m.State(ctx); err != nil {
		return err
	} else if state == vm.StateExited {
		return fmt.Errorf("it has ended: %w", vm.ErrInvalidState)
	}
	if proven, known := s.opts.Store.Origin(e.id()); !known || !proven {
		return errors.New("where it was restored from is not known")
	}
	if err := s.keepImages(ctx, e.id(), e.images); err != nil {
		return err
	}
	if err := m.Resume(ctx); err != nil {
		return err
	}
	conn, err := s.reach(ctx, e)
	if err != nil {
		return err
	}
	if err := conn.Ping(ctx); err != nil {
		return err
	}
	return pause(ctx, m, conn)
}

// sweep deletes entries that an earlier process had not finished.
func (s *Supply) sweep(ctx context.Context) error {
	lctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	ids, err := s.opts.Driver.List(lctx)
	if err != nil {
		return fmt.Errorf("list machines: %w", err)
	}
	for _, id := range ids {
		if !isWarmID(id) || s.ledger.Has(id) {
			continue
		}
		room, err := s.ledger.admitExisting(Entry{Machine: id, Warm: true}, StateStopping)
		if err != nil {
			continue // somebody has it meanwhile
		}
		s.opts.Logger.Info("Deleting a warm machine that an earlier process had not finished", "machine", id)
		s.bury(grave{id: id, room: room})
	}
	return nil
}
