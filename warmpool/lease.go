// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// ErrReleased means that the lease was released, or is being released.
var ErrReleased = errors.New("lease of the machine was released")

// Lease is the right to one machine, until Release. Safe for concurrent use.
type Lease struct {
	supply  *Supply
	req     Request
	room    *reservation
	machine vm.Machine
	path    Path
	timings Timings
	notices []Notice

	images   []SlotImage
	template templateName
	age      time.Duration

	ctx    context.Context //nolint:containedctx // the lifetime of redials, ended by Release and Shutdown
	cancel context.CancelFunc

	mu        sync.Mutex
	conn      Conn          // guarded by mu; nil before the first dial
	dialing   *dialing      // guarded by mu
	releasing chan struct{} // guarded by mu; not nil while a Release works
	released  bool          // guarded by mu; Release was called
	gone      bool          // guarded by mu; Release succeeded
}

// dialing is one redial under way.
type dialing struct {
	done chan struct{}
	conn Conn  // valid after done
	err  error // valid after done
}

func newLease(s *Supply, req Request, room *reservation, m vm.Machine) *Lease {
	l := &Lease{supply: s, req: req, room: room, machine: m}
	l.ctx, l.cancel = context.WithCancel(s.ctx)
	return l
}

// Machine is the machine. Its owner is the lease: do not delete it.
func (l *Lease) Machine() vm.Machine { return l.machine }

// MachineID is the machine's own id: of a warm entry not that of the request.
func (l *Lease) MachineID() string { return l.machine.ID() }

// RequestID is the id under which the machine was asked for, and by which Adopt
// finds it.
func (l *Lease) RequestID() string { return l.req.MachineID }

// Images are the images of the machine's template, in slot order; none without one.
func (l *Lease) Images() []SlotImage { return slices.Clone(l.images) }

// Template is the template that the machine is of, in the revision that it has, which
// may be older than the one that was asked for. Empty without one.
func (l *Lease) Template() (namespace, name, revision string) {
	return l.template.namespace, l.template.name, l.template.revision
}

// Age is how long a warm entry had stood ready; zero for other machines.
func (l *Lease) Age() time.Duration { return l.age }

// Shape is the machine's shape.
func (l *Lease) Shape() vm.Shape { return l.req.Shape }

// Path tells how the machine came about.
func (l *Lease) Path() Path { return l.path }

// Timings tell where the time of its making went; zero for an adopted machine.
func (l *Lease) Timings() Timings { return l.timings }

// Notices tell what went other than planned in its making.
func (l *Lease) Notices() []Notice { return slices.Clone(l.notices) }

// Guest returns the connection to the agent: the one there is, or, when that was
// lost, a new one. Callers share it and one redial; do not close it. It blocks at
// most for the supply's dial timeout.
//
// Errors: ErrReleased; vm.ErrInvalidState when the machine has ended;
// vm.ErrUnavailable or a deadline when the agent does not answer: call again.
func (l *Lease) Guest(ctx context.Context) (*guest.Client, error) {
	l.mu.Lock()
	if l.released {
		l.mu.Unlock()
		return nil, fmt.Errorf("machine %q: %w", l.req.MachineID, ErrReleased)
	}
	if l.conn != nil && l.conn.Err() == nil {
		defer l.mu.Unlock()
		return l.conn.Client(), nil
	}
	d := l.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		if !l.supply.start(func() { l.redial(d) }) {
			l.mu.Unlock()
			return nil, refuse(ReasonShutdown, nil, "the node is shutting down")
		}
		l.dialing = d
	}
	l.mu.Unlock()
	select {
	case <-d.done:
		if d.err != nil {
			return nil, d.err
		}
		return d.conn.Client(), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for agent of machine %q: %w", l.req.MachineID, ctx.Err())
	}
}

// redial connects anew and publishes the result.
func (l *Lease) redial(d *dialing) {
	l.mu.Lock()
	old := l.conn
	l.mu.Unlock()
	if old != nil {
		_ = old.Close() // it is lost; this frees the stream, of which there may be only one
	}
	conn, err := l.dial()
	l.mu.Lock()
	if err == nil && l.released {
		_ = conn.Close() // nobody has seen it
		conn, err = nil, ErrReleased
	}
	if err == nil {
		l.conn = conn
	}
	d.conn, d.err = conn, err
	l.dialing = nil
	l.mu.Unlock()
	close(d.done)
}

func (l *Lease) dial() (Conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, l.supply.opts.DialTimeout)
	defer cancel()
	state, err := l.machine.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at machine %q: %w", l.req.MachineID, err)
	}
	if state != vm.StateRunning {
		return nil, fmt.Errorf("machine %q is %s: %w", l.req.MachineID, state, vm.ErrInvalidState)
	}
	return l.supply.opts.Store.Dial(ctx, l.machine)
}

// disconnect closes the connection and leaves the machine running.
func (l *Lease) disconnect() {
	l.cancel()
	l.mu.Lock()
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // the other end notices by itself
	}
}

// Release ends the machine and gives its room back, exactly once. With a grace
// above zero the agent is asked to power off and has that long, or until ctx is
// done; then the machine is ended by force and deleted, whatever ctx says.
//
// Idempotent: further and concurrent calls wait for the first. When it returns an
// error the machine may still exist and keeps its room: call again, until nil.
func (l *Lease) Release(ctx context.Context, grace time.Duration) error {
	for {
		l.mu.Lock()
		if l.gone {
			l.mu.Unlock()
			return nil
		}
		other := l.releasing
		if other == nil {
			break
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return fmt.Errorf("wait for release of machine %q: %w", l.req.MachineID, ctx.Err())
		}
	}
	mine := make(chan struct{})
	l.releasing = mine
	l.released = true
	conn := l.conn
	l.mu.Unlock()
	_ = l.room.advance(StateStopping)
	l.cancel() // redials

	err := l.end(ctx, conn, grace)

	l.mu.Lock()
	l.releasing = nil
	l.gone = err == nil
	l.mu.Unlock()
	if err == nil {
		l.supply.mu.Lock()
		delete(l.supply.leases, l.machine.ID())
		delete(l.supply.aliases, l.req.MachineID)
		delete(l.supply.records, l.machine.ID())
		l.supply.mu.Unlock()
		l.supply.ledger.unclaim(l.req.MachineID)
		l.room.release()
	}
	close(mine)
	return err
}

// end stops and deletes the machine.
func (l *Lease) end(ctx context.Context, conn Conn, grace time.Duration) error {
	if grace > 0 {
		l.powerOff(ctx, conn, grace)
	}
	if conn != nil {
		_ = conn.Close() // the guest is gone, or about to be
	}
	return l.supply.end(ctx, l.machine)
}

// powerOff gives the guest its grace. What goes wrong here is no error: force
// follows.
func (l *Lease) powerOff(ctx context.Context, conn Conn, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if state, err := l.machine.State(ctx); err != nil || state != vm.StateRunning {
		return // nobody there to ask
	}
	if conn == nil || conn.Err() != nil {
		// Without the agent, by the driver's own means.
		if l.supply.opts.Driver.Features().GracefulStop {
			_ = l.machine.Stop(ctx, grace)
		}
		return
	}
	if err := conn.PowerOff(ctx); err != nil && conn.Err() == nil {
		return // it answers and will not
	}
	// Without an answer the guest may have been quicker than its response.
	_, _ = l.machine.Wait(ctx)
}
