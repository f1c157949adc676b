// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Adopt takes over a machine that an earlier process of the node made, with its
// room in the ledger, whether there is room or not. A machine that has ended is
// adopted as well: its exit is for the caller to read.
//
// Errors: vm.ErrNotFound when there is no such machine, also when it was never
// finished: it is deleted then. vm.ErrUnavailable when it could not be asked: it
// keeps its room, and Adopt may be called again, or Discard. A *Refusal with reason
// Exists when somebody has it, with Invalid or Shutdown.
func (s *Supply) Adopt(ctx context.Context, req Request) (*Lease, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	room, err := s.take(req.MachineID, req.PodUID, req.budget())
	if err != nil {
		return nil, err
	}
	lease, err := s.adopt(ctx, req, room)
	switch {
	case err == nil:
		s.register(lease)
		return lease, nil
	case errors.Is(err, vm.ErrNotFound):
		if ferr := s.opts.Store.Forget(req.MachineID); ferr != nil {
			err = errors.Join(err, ferr)
		}
		room.release()
	default:
		s.suspend(req.MachineID, room)
		if !errors.Is(err, vm.ErrUnavailable) {
			err = fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
		}
	}
	return nil, fmt.Errorf("adopt machine %q: %w", req.MachineID, err)
}

func (s *Supply) adopt(ctx context.Context, req Request, room *reservation) (*Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	m, err := s.opts.Driver.Load(ctx, req.MachineID)
	if err != nil {
		return nil, err
	}
	state, err := m.State(ctx)
	if err != nil {
		return nil, err
	}
	lease := newLease(s, req, room, m)
	lease.path = PathAdopt
	if state == vm.StateExited {
		return lease, nil
	}
	ref, known := s.opts.Store.Reference(req.MachineID)
	if state == vm.StatePaused || known && !ref.Proven {
		// Its maker died before it had its own identity: it may share it with others.
		if err := s.delete(ctx, m); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: it was never finished", vm.ErrNotFound)
	}
	if !known {
		s.opts.Logger.Warn("Adopting a machine whose snapshot is not known", "machine", req.MachineID)
	}
	client, err := s.opts.Store.Dial(ctx, m)
	if err != nil {
		if errors.Is(err, vm.ErrInvalidState) {
			return lease, nil // it has just ended
		}
		return nil, err
	}
	if err := client.Ping(ctx); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	lease.client = client
	return lease, nil
}

// take returns the room of a machine that exists: what a former attempt left
// suspended, or new.
func (s *Supply) take(id, podUID string, b Budget) (*reservation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if room := s.pending[id]; room != nil {
		delete(s.pending, id)
		return room, nil
	}
	return s.ledger.admit(id, podUID, b, StateProbing)
}

// suspend keeps the room of a machine that could not be asked.
func (s *Supply) suspend(id string, room *reservation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[id] = room
}

// Discard deletes a machine that nobody has leased, adopted in vain or unknown, and
// what it left. Nil when it is gone. A *Refusal with reason Exists when somebody
// has it; other errors leave it as it was.
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
	room, err := s.take(id, "", Budget{})
	if err != nil {
		return err
	}
	if err := s.discard(ctx, id); err != nil {
		if room.entry.Budget == (Budget{}) {
			room.release() // was not in the ledger before
		} else {
			s.suspend(id, room)
		}
		return fmt.Errorf("discard machine %q: %w", id, err)
	}
	room.release()
	return nil
}

func (s *Supply) discard(ctx context.Context, id string) error {
	lctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	m, err := s.opts.Driver.Load(lctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return s.opts.Store.Forget(id)
	}
	if err != nil {
		return err // could not ask is not gone
	}
	return s.delete(ctx, m)
}

// Orphans returns the machines of the driver that nobody knows: neither the caller
// nor the ledger nor a build of a snapshot. Sorted.
func (s *Supply) Orphans(ctx context.Context, known []string) ([]string, error) {
	// The driver first: a machine is in the ledger before the driver has it.
	ids, err := s.opts.Driver.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	builders := s.opts.Store.Builders()
	return slices.DeleteFunc(ids, func(id string) bool {
		return slices.Contains(known, id) || slices.Contains(builders, id) || s.ledger.Has(id)
	}), nil
}

// Reap deletes the orphans and returns those that are gone. One that cannot be
// deleted, or asked, stays and does not keep the others; the errors are joined.
func (s *Supply) Reap(ctx context.Context, known []string) ([]string, error) {
	orphans, err := s.Orphans(ctx, known)
	if err != nil {
		return nil, err
	}
	var reaped []string
	var errs []error
	for _, id := range orphans {
		s.opts.Logger.Info("Reaping machine", "machine", id)
		switch err := s.Discard(ctx, id); {
		case err == nil:
			reaped = append(reaped, id)
		case ReasonOf(err) == ReasonExists: // somebody has taken it meanwhile
		default:
			errs = append(errs, err)
		}
	}
	return reaped, errors.Join(errs...)
}
