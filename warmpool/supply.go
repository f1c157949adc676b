// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// Options of a supply.
type Options struct {
	// Driver is the one that Store restores with.
	Driver vm.Driver
	Store  *snapshot.Store
	// Kit is what machines run.
	Kit vm.Kit
	// Capacity is what the node has for machines.
	Capacity Budget
	// Restores is how many machines are restored at once. 0 is the number of
	// processors: a restored guest runs at once, and more than that only wait for
	// each other.
	Restores int
	// DialTimeout bounds the attempts of one redial. 0 is 30 seconds.
	DialTimeout time.Duration
	// DeleteTimeout bounds ending a machine by force and deleting it. 0 is 30
	// seconds.
	DeleteTimeout time.Duration
	// Logger gets what has no caller to be returned to. nil discards.
	Logger *slog.Logger

	discardPause time.Duration // tests only; 0 is discardPauseMin
}

func (o Options) withDefaults() Options {
	if o.Restores <= 0 {
		o.Restores = runtime.NumCPU()
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = 30 * time.Second
	}
	if o.DeleteTimeout <= 0 {
		o.DeleteTimeout = 30 * time.Second
	}
	if o.discardPause <= 0 {
		o.discardPause = discardPauseMin
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Validate reports every fault, joined.
func (o Options) Validate() error {
	var errs []error
	if o.Driver == nil {
		errs = append(errs, errors.New("no driver"))
	}
	if o.Store == nil {
		errs = append(errs, errors.New("no snapshot store"))
	}
	if o.Kit.Digest == "" {
		errs = append(errs, errors.New("no guest kit"))
	}
	errs = append(errs, o.Capacity.validate())
	return errors.Join(errs...)
}

// Request is a wish for a machine.
type Request struct {
	// MachineID names the machine; see vm.ValidateID.
	MachineID string
	// PodUID is kept in the ledger, for people.
	PodUID string
	Shape  vm.Shape
	// Budget is what the machine costs. The zero value is BudgetOf(Shape).
	Budget Budget
	// Images are the files behind the image slots, see vm.Config.
	Images []string
	// Hostname of the machine until its pod is set up; empty is MachineID.
	Hostname string
}

func (r Request) budget() Budget {
	if r.Budget == (Budget{}) {
		return BudgetOf(r.Shape)
	}
	return r.Budget
}

func (r Request) validate() error {
	if err := errors.Join(vm.ValidateID(r.MachineID), r.Shape.Validate()); err != nil {
		return refuse(ReasonInvalid, err, "invalid request for a machine")
	}
	return nil
}

// Path tells how a machine came about.
type Path string

// The paths. A label of metrics: stable.
const (
	// PathRestore: from a snapshot that existed.
	PathRestore Path = "restore"
	// PathBuild: the snapshot had to be built first, by a cold boot.
	PathBuild Path = "build"
	// PathAdopt: an earlier process of the node made it.
	PathAdopt Path = "adopt"
)

// Timings tell where the time of an Acquire went.
type Timings struct {
	// Wait for a turn to restore.
	Wait time.Duration
	// Snapshot is loading, verifying or building it.
	Snapshot time.Duration
	// Restore is the driver's restore and resume, of the attempt that succeeded.
	Restore time.Duration
	// Agent is from there until the agent has proved itself.
	Agent time.Duration
}

// Notice is something about the making of a machine that its user should hear of.
type Notice struct {
	// Reason is CamelCase and stable: SnapshotBuilt, SnapshotQuarantined,
	// RestoreRepeated.
	Reason  string
	Message string
	// Warning: something went wrong on the way.
	Warning bool
}

// Supply gives machines to callers. All methods are safe for concurrent use.
type Supply struct {
	opts   Options
	ledger *Ledger
	turns  chan struct{} // restores under way

	ctx    context.Context //nolint:containedctx // the lifetime of the supply's own work, ended by Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool                    // guarded by mu
	leases  map[string]*Lease       // guarded by mu
	pending map[string]*reservation // guarded by mu; machines that could not be asked
}

// New returns a supply without machines. Those of an earlier process come in by
// Adopt; then Reap deletes the rest.
func New(opts Options) (*Supply, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("set up supply of machines: %w", err)
	}
	s := &Supply{
		opts:    opts,
		ledger:  NewLedger(opts.Capacity),
		turns:   make(chan struct{}, opts.Restores),
		leases:  make(map[string]*Lease),
		pending: make(map[string]*reservation),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Ledger returns the node's account at this moment.
func (s *Supply) Ledger() Account { return s.ledger.Account() }

// begin lets a call in, unless the supply is shut down. The context ends with the
// supply; end must be called.
func (s *Supply) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, refuse(ReasonShutdown, nil, "the node is shutting down")
	}
	s.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.wg.Done()
	}, nil
}

// attempts bounds how often an Acquire restores: once more after a failure without
// a clear cause, and once more from a snapshot that was built anew.
const attempts = 4

// Acquire makes a machine: its agent answers and has proved that it was restored.
// It blocks while the snapshot is built, which takes as long as a cold boot, and
// while other restores have their turn. A snapshot that cannot be restored is built
// anew once; Path tells.
//
// The error is a *Refusal. Nothing is left of the attempt then, unless its Leftover
// is set.
func (s *Supply) Acquire(ctx context.Context, req Request) (*Lease, error) {
	callerCtx := ctx
	if err := req.validate(); err != nil {
		return nil, err
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	room, err := s.ledger.reserve(req.MachineID, req.PodUID, req.budget())
	if err != nil {
		return nil, err
	}
	made, err := s.make(ctx, req, room)
	if err == nil {
		return s.lease(req, room, made), nil
	}
	refusal := classify(ReasonRestoreFailed, err, callerCtx.Err() != nil, s.ctx.Err() != nil)
	if leftover := (*snapshot.LeftoverError)(nil); errors.As(err, &leftover) {
		refusal.Leftover = true
		s.discardLater(leftover.Machine, room)
		return nil, refusal
	}
	room.release()
	return nil, refusal
}

// made is a machine on its way to a lease.
type made struct {
	running *snapshot.Running
	path    Path
	timings Timings
	notices []Notice
}

// make restores a machine for a reservation.
func (s *Supply) make(ctx context.Context, req Request, room *reservation) (made, error) {
	m := made{path: PathRestore}
	spec := snapshot.Spec{Kind: snapshot.KindBase, Shape: req.Shape, Kit: s.opts.Kit}
	var last error
	for range attempts {
		start := time.Now()
		ref, built, err := s.opts.Store.Ensure(ctx, spec)
		m.timings.Snapshot += time.Since(start)
		if built {
			m.path = PathBuild
			m.notices = append(m.notices, Notice{Reason: "SnapshotBuilt", Message: fmt.Sprintf("Had to wait for the base snapshot of shape %s", req.Shape)})
		}
		if err != nil {
			return m, classify(ReasonSnapshotFailed, errors.Join(err, last), ctx.Err() != nil, s.ctx.Err() != nil)
		}
		running, err := s.restore(ctx, ref, req, room, &m.timings)
		ref.Release()
		if err == nil {
			m.running = running
			m.timings.Restore, m.timings.Agent = running.Timings.Restore, running.Timings.Agent
			return m, nil
		}
		if !repeatable(err) || ctx.Err() != nil {
			return m, err
		}
		m.notices = append(m.notices, noticeOf(err))
		last = err
	}
	return m, last
}

// noticeOf says why a restore is repeated.
func noticeOf(err error) Notice {
	n := Notice{Reason: "RestoreRepeated", Warning: true, Message: fmt.Sprintf("Restoring once more: %v", err)}
	if errors.Is(err, vm.ErrSnapshotInvalid) {
		n.Reason, n.Message = "SnapshotQuarantined", fmt.Sprintf("Building the snapshot anew: %v", err)
	}
	return n
}

// repeatable tells whether another attempt may end differently. Pure.
func repeatable(err error) bool {
	if leftover := (*snapshot.LeftoverError)(nil); errors.As(err, &leftover) {
		return false // the id is taken
	}
	if errors.Is(err, vm.ErrSnapshotInvalid) {
		return true // there will be another snapshot
	}
	for _, final := range []error{vm.ErrNoSpace, vm.ErrInvalidConfig, vm.ErrAlreadyExists, vm.ErrNotSupported, snapshot.ErrClosed, snapshot.ErrReadOnly} {
		if errors.Is(err, final) {
			return false
		}
	}
	return true
}

// restore waits for a turn and restores.
func (s *Supply) restore(ctx context.Context, ref *snapshot.Ref, req Request, room *reservation, t *Timings) (*snapshot.Running, error) {
	start := time.Now()
	select {
	case s.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a turn to restore: %w", ctx.Err())
	}
	defer func() { <-s.turns }()
	t.Wait += time.Since(start)
	cfg := vm.Config{Shape: req.Shape, Kit: s.opts.Kit, Images: slices.Clone(req.Images)}
	return s.opts.Store.Restore(ctx, ref, req.MachineID, cfg, snapshot.RestoreOptions{
		Hostname: req.Hostname,
		Phase: func(p snapshot.Phase) {
			to := StateRestoring
			if p == snapshot.PhaseAgent {
				to = StateProbing
			}
			// A second attempt begins where the first one got to.
			_ = room.advance(to)
		},
	})
}

// lease hands a machine over.
func (s *Supply) lease(req Request, room *reservation, m made) *Lease {
	l := newLease(s, req, room, m.running.Machine)
	l.path, l.timings, l.notices, l.client = m.path, m.timings, m.notices, m.running.Guest
	s.register(l)
	return l
}

func (s *Supply) register(l *Lease) {
	_ = l.room.advance(StateActive) // it is in an earlier state, and ours
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[l.req.MachineID] = l
}

// Prepare makes sure that the base snapshots of these shapes exist and are
// verified, one after the other, so that the first pod of each restores. One that
// fails does not keep the others; the errors are joined.
func (s *Supply) Prepare(ctx context.Context, shapes []vm.Shape) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	var errs []error
	for _, shape := range shapes {
		ref, _, err := s.opts.Store.Ensure(ctx, snapshot.Spec{Kind: snapshot.KindBase, Shape: shape, Kit: s.opts.Kit})
		if err != nil {
			errs = append(errs, fmt.Errorf("prepare shape %s: %w", shape, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		ref.Release()
	}
	return errors.Join(errs...)
}

// Bounds of the pause between attempts to delete what could not be deleted.
const (
	discardPauseMin = time.Second
	discardPauseMax = 30 * time.Second
)

// discardLater deletes a machine in the background, until it is gone or the supply
// is shut down; then the next process reaps it. It keeps its room until then.
func (s *Supply) discardLater(m vm.Machine, room *reservation) {
	_ = room.advance(StateStopping)
	s.wg.Go(func() { // the caller is inside begin, so nobody waits yet
		pause := s.opts.discardPause
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(pause):
			}
			err := s.delete(s.ctx, m)
			if err == nil {
				room.release()
				return
			}
			s.opts.Logger.Error("Cannot delete a machine, trying again", "machine", m.ID(), "error", err)
			pause = min(2*pause, discardPauseMax)
		}
	})
}

// delete ends a machine and what it left on the host, also when ctx is over.
func (s *Supply) delete(ctx context.Context, m vm.Machine) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.DeleteTimeout)
	defer cancel()
	if err := m.Delete(ctx); err != nil {
		return fmt.Errorf("delete machine %q: %w", m.ID(), err)
	}
	return s.opts.Store.Forget(m.ID())
}

// Shutdown refuses new work, ends what is under way (an unfinished Acquire deletes
// its machine), closes the connections to guests, and waits. Machines of leases keep
// running, for the next process to adopt. Idempotent. The error is ctx.Err.
func (s *Supply) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.wg.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("shut down supply of machines: %w", ctx.Err())
	}
	s.mu.Lock()
	leases := make([]*Lease, 0, len(s.leases))
	for _, l := range s.leases {
		leases = append(leases, l)
	}
	s.mu.Unlock()
	for _, l := range leases {
		l.disconnect()
	}
	return nil
}
