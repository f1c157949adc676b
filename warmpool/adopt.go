// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Adopt takes over a machine that an earlier process of the node made for this
// request, with its room in the ledger, whether there is room or not; a warm entry that
// was checked out is found by the request's MachineID. A machine that has ended is
// adopted as well: its exit is for the caller to read.
//
// Errors: vm.ErrNotFound when there is no such machine, also when it was never
// finished: it is deleted then. vm.ErrUnavailable when it could not be asked: it
// keeps its room, and Adopt may be called again, or Discard. ErrQuarantined when it, or what may be
// it, is in quarantine: nothing has changed. A *Refusal with reason Exists when somebody has it, with Invalid or Shutdown.
func (s *Supply) Adopt(ctx context.Context, req Request) (*Lease, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	s.readAgain(ctx, req.MachineID)
	f, err := s.take(req.MachineID, Entry{PodUID: req.PodUID, Budget: req.budget()}, true)
	if err != nil {
		return nil, err
	}
	lease, err := s.adopt(ctx, req, f)
	switch {
	case err == nil:
		s.register(lease)
		s.opts.Observer.CheckedOut(PathAdopt, lease.template.id())
		return lease, nil
	case errors.Is(err, vm.ErrNotFound):
		if ferr := s.forget(f.id); ferr != nil {
			err = errors.Join(err, ferr)
		}
		s.settle(f.id)
		s.ledger.unclaim(f.request)
		f.room.release()
	case errors.Is(err, vm.ErrUnreadable): // which the next look says people
		s.suspend(f)
		s.mu.Lock()
		s.unsure[req.MachineID] = true
		s.mu.Unlock()
		err = fmt.Errorf("%w: %w", ErrQuarantined, err)
	default:
		s.suspend(f)
		if !errors.Is(err, vm.ErrUnavailable) {
			err = fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
		}
	}
	return nil, fmt.Errorf("adopt machine %q: %w", req.MachineID, err)
}

func (s *Supply) adopt(ctx context.Context, req Request, f found) (*Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	m, err := s.opts.Driver.Load(ctx, f.id)
	if err != nil {
		return nil, err
	}
	state, err := m.State(ctx)
	if err != nil {
		return nil, err
	}
	lease := newLease(s, req, f.room, m)
	lease.path = PathAdopt
	if f.record.Machine != "" {
		lease.images = f.record.Images
		lease.template = nameOf(f.record.template())
		if err := s.keepImages(ctx, f.id, lease.images); err != nil {
			s.opts.Logger.Warn("Adopting a machine whose images are not on the node any more", "machine", f.id, "error", err)
		}
	}
	if state == vm.StateExited {
		return lease, nil
	}
	proven, known := s.opts.Store.Origin(f.id)
	if state == vm.StatePaused || known && !proven {
		// Its maker died before it had its own identity, it may share it with others; or
		// before it was handed over.
		if err := s.end(ctx, m); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: it was never finished", vm.ErrNotFound)
	}
	if !known {
		s.opts.Logger.Warn("Adopting a machine whose snapshot is not known", "machine", f.id)
	}
	conn, err := s.opts.Store.Dial(ctx, m)
	if err != nil {
		if errors.Is(err, vm.ErrInvalidState) {
			return lease, nil // it has just ended
		}
		return nil, err
	}
	if err := conn.Ping(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	lease.conn = conn
	return lease, nil
}

// found is a machine that was looked up by the id of its request or its own.
type found struct {
	id, request string
	record      record // zero when there is none
	room        *reservation
	before      bool // it was in the ledger before
}

// take gives the caller a machine that exists and that nobody has, and the claim to
// its request. Its room is what it had, or as e says. Nobody adopts what is in quarantine.
func (s *Supply) take(id string, e Entry, adopting bool) (found, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := found{id: id, request: id}
	if machine := s.aliases[id]; machine != "" {
		f.id = machine
	}
	if adopting {
		if err := s.quarantineOf(id, f.id); err != nil {
			return found{}, err
		}
	}
	if r, ok := s.records[f.id]; ok {
		if adopting && r.Request != id {
			return found{}, fmt.Errorf("%w: by the record of machine %q request %q has it, and not %q", ErrQuarantined, f.id, r.Request, id)
		}
		f.record, f.request = r, r.Request
	} else if b, ok := s.broken[f.id]; ok && s.aliases[b.guess.Request] == f.id {
		f.request = b.guess.Request
	}
	if room := s.pending[f.id]; room != nil {
		f.room, f.before = room, true
		delete(s.pending, f.id)
		return f, nil
	}
	if err := s.ledger.claim(f.request); err != nil {
		return found{}, err
	}
	e.Machine = f.id
	room, err := s.ledger.admitExisting(e, StateProbing)
	if err != nil {
		s.ledger.unclaim(f.request)
		return found{}, err
	}
	f.room = room
	return f, nil
}

// suspend keeps a machine that could not be asked.
func (s *Supply) suspend(f found) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[f.id] = f.room
}

// Discard deletes a machine that nobody has leased, adopted in vain, quarantined or unknown,
// and what it left; by its own id or that of its request. It does not ask whether it should:
// Reconcile says what is to be deleted. Nil when it is gone. A *Refusal
// with reason Exists when somebody has it, also as a warm entry; other errors leave it
// as it was.
func (s *Supply) Discard(ctx context.Context, id string) error {
	if err := vm.ValidateID(id); err != nil {
		return err
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	// In the ledger meanwhile, so that nobody makes a machine of this id.
	f, err := s.take(id, Entry{}, false)
	if err != nil {
		return err
	}
	if err := s.endByID(ctx, f.id, nil); err != nil {
		if f.before {
			s.suspend(f)
		} else {
			s.ledger.unclaim(f.request)
			f.room.release()
		}
		return fmt.Errorf("discard machine %q: %w", id, err)
	}
	s.settle(f.id)
	s.ledger.unclaim(f.request)
	f.room.release()
	if err := s.opts.QuarantineDir.forget(f.id); err != nil {
		s.opts.Logger.Error("Cannot write down that a machine is not in quarantine any more", "machine", f.id, "error", err)
	}
	return nil
}

// settle forgets what an earlier process left to know about a machine.
func (s *Supply) settle(machine string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	request := s.records[machine].Request
	if bad, ok := s.broken[machine]; ok {
		request = bad.guess.Request
	}
	if s.aliases[request] == machine {
		delete(s.aliases, request)
	}
	delete(s.records, machine)
	delete(s.broken, machine)
	delete(s.quarantined, machine)
	delete(s.unreadable, machine)
}
