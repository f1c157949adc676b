// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// Request is a wish for a machine.
type Request struct {
	// MachineID names the machine to the caller; see vm.ValidateID. A warm entry has an id
	// of its own and is found by this one all the same.
	MachineID string
	// PodUID is kept in the ledger, for people.
	PodUID string
	Shape  vm.Shape
	// Budget is what the machine costs. The zero value is BudgetOf(Shape); the slot of a
	// macOS guest is added in any case.
	Budget Budget
	// Template that the machine is of; nil is none. Its shape is Shape.
	Template *Template
	// Refs are the image references that the machine must have, of those of Template: an
	// entry of an outdated revision that has them all will do.
	Refs []string
	// Pool, "namespace/name", is the only one to take a warm entry from. Empty is any: see
	// comparePools.
	Pool string
	// Path asks for a way: PathRestore leaves warm entries alone, PathCold also
	// snapshots. Empty is the fastest.
	Path Path
	// Images are the files behind the image slots, see vm.Config. A machine of a template
	// has the template's: see Lease.Images.
	Images []string
	// Hostname of the machine until its pod is set up; empty is MachineID.
	Hostname string
}

func (r Request) budget() Budget {
	b := r.Budget
	if b == (Budget{}) {
		b = BudgetOf(r.Shape)
	}
	if r.Template == nil {
		return b
	}
	return r.Template.charge(b)
}

func (r Request) hostname() string {
	if r.Hostname == "" {
		return r.MachineID
	}
	return r.Hostname
}

func (r Request) validate() error {
	errs := []error{vm.ValidateID(r.MachineID), r.Shape.Validate()}
	switch r.Path {
	case "", PathRestore, PathCold:
	default:
		errs = append(errs, fmt.Errorf("no machine can be asked for by path %.20q", r.Path))
	}
	if t := r.Template; t != nil {
		if t.Shape != r.Shape {
			errs = append(errs, fmt.Errorf("shape %s, template %s has %s", r.Shape, t.ID(), t.Shape))
		}
		if len(r.Images) > 0 {
			errs = append(errs, errors.New("images besides those of the template"))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return refuse(ReasonInvalid, err, "invalid request for a machine")
	}
	return nil
}

// Path tells how a machine came about.
type Path string

// The paths. A label of metrics: stable.
const (
	// PathWarm: a warm entry of a pool.
	PathWarm Path = "warm"
	// PathRestore: from a snapshot that existed.
	PathRestore Path = "restore"
	// PathBuild: the snapshot had to be built first, by a cold boot.
	PathBuild Path = "build"
	// PathCold: booted without any snapshot, because the request asked for it or the host
	// can restore nothing as it stands.
	PathCold Path = "cold"
	// PathAdopt: an earlier process of the node made it.
	PathAdopt Path = "adopt"
)

// Timings tell where the time of an Acquire went.
type Timings struct {
	// Wait for room and for a turn to restore.
	Wait time.Duration
	// Snapshot is loading, verifying or building it.
	Snapshot time.Duration
	// Restore is the driver's restore and resume, of the attempt that succeeded; of a warm
	// entry the resume.
	Restore time.Duration
	// Agent is from there until the agent has proved itself.
	Agent time.Duration
}

// Notice is something about the making of a machine that its user should hear of.
type Notice struct {
	// Reason is CamelCase and stable: SnapshotBuilt, SnapshotQuarantined,
	// RestoreRepeated, EntryDiscarded.
	Reason  string
	Message string
	// Warning: something went wrong on the way.
	Warning bool
}

// attempts bounds how often an Acquire restores: once more after a failure without
// a clear cause, and once more from a snapshot that was built anew.
const attempts = 4

// deadEntries bounds how many warm entries an Acquire tries: each that does not answer
// costs its deadline.
const deadEntries = 3

// Acquire gives a machine: its agent answers and has proved that it was restored.
//
// A warm entry of the request's template is taken if there is one that answers; a
// refill is never waited for. Else a machine is restored: that blocks while the
// snapshot is built, which takes as long as a cold boot, and while other requests'
// restores have their turn. A snapshot that cannot be restored is built anew once;
// Path tells.
//
// A request that does not fit evicts warm entries if that makes it fit, and waits for
// its room in order of arrival, at most for QueueWait.
//
// The error is a *Refusal. Nothing is left of the attempt then, unless its Leftover
// is set.
func (s *Supply) Acquire(ctx context.Context, req Request) (*Lease, error) {
	start := time.Now()
	callerCtx := ctx
	if err := req.validate(); err != nil {
		return nil, err
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := s.ledger.claim(req.MachineID); err != nil {
		return nil, err
	}
	lease, err := s.acquire(ctx, req, start)
	if err == nil {
		s.opts.Observer.CheckedOut(lease.path, lease.template.id())
		return lease, nil
	}
	s.ledger.unclaim(req.MachineID)
	return nil, classify(ReasonRestoreFailed, err, callerCtx.Err() != nil, s.ctx.Err() != nil)
}

// acquire does the work for a request whose id is claimed.
func (s *Supply) acquire(ctx context.Context, req Request, start time.Time) (*Lease, error) {
	w := want{
		entry: Entry{Machine: req.MachineID, PodUID: req.PodUID, Budget: req.budget()},
		refs:  req.Refs, shape: req.Shape, pool: req.Pool,
	}
	if req.Template != nil {
		w.entry.Template = req.Template.ID()
		if req.Path == "" {
			w.template, w.revision = w.entry.Template, req.Template.Revision
		}
	}
	var m made
	again := false // it has had its turn
	for dead := 0; ; again = true {
		if dead == deadEntries {
			w.template = ""
		}
		asked := time.Now()
		g, err := s.ledger.admit(ctx, w, s.opts.QueueWait, again)
		m.timings.Wait += time.Since(asked)
		if err != nil {
			return nil, err
		}
		if g.entry == nil {
			lease, err := s.onDemand(ctx, req, g.room, m)
			if overLimit(err) && ctx.Err() == nil && time.Since(start) < s.opts.QueueWait {
				continue // until slots are offered again
			}
			return lease, err
		}
		dead++
		lease, err := s.checkout(ctx, req, g.entry, m)
		if err == nil {
			s.opts.Observer.Sampled(Sample{Metric: MetricWarmPoolCheckout, Duration: time.Since(start), Pool: g.entry.pool, Template: w.entry.Template})
			return lease, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		m.notices = append(m.notices, Notice{Reason: "EntryDiscarded", Warning: true, Message: fmt.Sprintf("A warm machine could not be used: %v", err)})
	}
}

// made is a machine on its way to a lease.
type made struct {
	machine vm.Machine
	conn    Conn
	images  []SlotImage
	path    Path
	timings Timings
	notices []Notice
}

// onDemand makes a machine for a request that has its room. When it fails, the room
// is given back or in the care of a burial.
func (s *Supply) onDemand(ctx context.Context, req Request, room *reservation, m made) (*Lease, error) {
	s.mu.Lock()
	s.demand++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.demand--
		s.mu.Unlock()
		signal(s.kicks) // refills may use all of their slots again
	}()
	err := s.make(ctx, req, room, &m)
	if overLimit(err) {
		room.refused(err)
	}
	if err == nil && req.Template != nil {
		if err = s.opts.records.write(recordOf(req, room, m)); err != nil {
			err = errors.Join(err, m.conn.Close(), s.leftover(ctx, m.machine))
		}
	}
	if err == nil {
		return s.lease(req, room, m), nil
	}
	if leftover := (*snapshot.LeftoverError)(nil); errors.As(err, &leftover) {
		s.bury(grave{id: req.MachineID, machine: leftover.Machine, room: room})
		refusal := classify(ReasonRestoreFailed, err, ctx.Err() != nil, s.ctx.Err() != nil)
		refusal.Leftover = true
		return nil, refusal
	}
	if req.Template != nil && s.opts.Images != nil {
		s.opts.Images.Release(req.MachineID)
	}
	// A reference that could not be dropped would keep the id from being used again.
	if !errors.Is(err, vm.ErrAlreadyExists) {
		if ferr := s.opts.Store.Forget(req.MachineID); ferr != nil {
			s.bury(grave{id: req.MachineID, room: room})
			return nil, err
		}
	}
	room.release()
	return nil, err
}

// leftover deletes a machine; one that stays is a *snapshot.LeftoverError.
func (s *Supply) leftover(ctx context.Context, m vm.Machine) error {
	if err := s.end(ctx, m); err != nil {
		return &snapshot.LeftoverError{Machine: m, Err: err}
	}
	return nil
}

// make makes the machine of a reservation.
func (s *Supply) make(ctx context.Context, req Request, room *reservation, m *made) error {
	m.path = PathRestore
	if req.Path == PathCold {
		m.path = PathCold
	}
	var last error
	for range attempts {
		err := s.attempt(ctx, req, room, m)
		if err == nil {
			return nil
		}
		if leftover := (*snapshot.LeftoverError)(nil); errors.Is(err, vm.ErrHostNotReady) && m.path != PathCold && ctx.Err() == nil && !errors.As(err, &leftover) {
			// Nothing can be restored now, nor saved to be restored. A boot takes longer, and works.
			m.notices = append(m.notices, Notice{Reason: string(ReasonHostNotReady), Warning: true, Message: fmt.Sprintf("Booting instead of restoring: %v", err)})
			m.path, req.Path = PathCold, PathCold
			return s.attempt(ctx, req, room, m)
		}
		if ReasonOf(err) == ReasonSnapshotFailed {
			return refuse(ReasonSnapshotFailed, errors.Join(errors.Unwrap(err), last), "there is no snapshot to restore from")
		}
		if !repeatable(err) || ctx.Err() != nil || m.path == PathCold {
			return err
		}
		m.notices = append(m.notices, noticeOf(err))
		last = err
	}
	return last
}

// attempt makes it once.
func (s *Supply) attempt(ctx context.Context, req Request, room *reservation, m *made) error {
	start := time.Now()
	src, snap, built, err := s.source(ctx, req)
	m.timings.Snapshot += time.Since(start)
	if built {
		m.path = PathBuild
		m.notices = append(m.notices, Notice{Reason: "SnapshotBuilt", Message: fmt.Sprintf("Had to wait for the snapshot of %s", src)})
	}
	if err != nil {
		return classify(ReasonSnapshotFailed, err, ctx.Err() != nil, s.ctx.Err() != nil)
	}
	if snap != nil {
		defer snap.Release()
	}
	start = time.Now()
	turns := s.turns
	if snap == nil {
		turns = s.boots // a set-up may take long: restores do not wait behind it
	}
	select {
	case turns <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for a turn to make a machine: %w", ctx.Err())
	}
	defer func() { <-turns }()
	m.timings.Wait += time.Since(start)

	cfg := src.config()
	if src.Template == nil {
		cfg.Images = slices.Clone(req.Images)
	}
	opts := MakeOptions{Hostname: req.Hostname, Stage: func(stage Stage) {
		// A second attempt begins where the first one got to.
		_ = room.advance(stateOf(stage))
	}}
	start = time.Now()
	var running *Running
	if snap == nil {
		running, err = s.opts.Store.Boot(ctx, src, req.MachineID, cfg, opts)
	} else {
		running, err = s.opts.Store.Restore(ctx, snap, req.MachineID, cfg, opts)
	}
	if err != nil {
		return err
	}
	if snap != nil {
		s.measured(start, running, "", src)
	}
	m.machine, m.conn, m.images = running.Machine, running.Conn, src.Images
	m.timings.Restore, m.timings.Agent = running.Restore, running.Probe
	return nil
}

// source is what the request's machine is made from, and the snapshot of it, none for
// a cold boot. The images of a template are kept for the machine.
func (s *Supply) source(ctx context.Context, req Request) (src Source, snap Snapshot, built bool, err error) {
	if req.Template == nil {
		src = Source{Shape: req.Shape, Kit: s.opts.Kit}
		if req.Path != PathCold {
			snap, built, err = s.opts.Store.Ensure(ctx, src)
		}
		return src, snap, built, err
	}
	if req.Path == PathCold {
		src, err = s.templates.source(ctx, *req.Template)
	} else {
		src, snap, built, err = s.templates.ensure(ctx, *req.Template)
	}
	if err == nil {
		if err = s.keepImages(ctx, req.MachineID, src.Images); err != nil && snap != nil {
			snap.Release()
		}
	}
	return src, snap, built, err
}

// measured tells the samples of a machine that was made.
func (s *Supply) measured(start time.Time, r *Running, pool string, src Source) {
	id := ""
	if src.Template != nil {
		id = src.Template.ID()
	}
	s.opts.Observer.Sampled(Sample{Metric: MetricWarmSnapshotRestore, Duration: time.Since(start), Pool: pool, Template: id})
	if pool == "" { // an entry of a pool is rehearsed yet
		s.opts.Observer.Sampled(Sample{Metric: MetricReadyProbe, Duration: r.Probe, Template: id})
	}
}

// stateOf is the state of a machine in a stage of its making. Pure.
func stateOf(stage Stage) State {
	if stage == StageProbe {
		return StateProbing
	}
	return StateRestoring
}

// String names it in messages.
func (s Source) String() string {
	if s.Template != nil {
		return "template " + s.Template.ID()
	}
	return "shape " + s.Shape.String()
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
	if ReasonOf(err) != "" {
		return false
	}
	for _, final := range []error{vm.ErrNoSpace, vm.ErrInvalidConfig, vm.ErrAlreadyExists, vm.ErrNotSupported, vm.ErrLimitExceeded, vm.ErrHostNotReady, snapshot.ErrClosed, snapshot.ErrReadOnly} {
		if errors.Is(err, final) {
			return false
		}
	}
	return true
}

// lease hands a machine over.
func (s *Supply) lease(req Request, room *reservation, m made) *Lease {
	l := newLease(s, req, room, m.machine)
	l.path, l.timings, l.notices, l.conn, l.images = m.path, m.timings, m.notices, m.conn, m.images
	if req.Template != nil {
		l.template = templateName{req.Template.Namespace, req.Template.Name, req.Template.Revision}
	}
	s.register(l)
	return l
}

func (s *Supply) register(l *Lease) {
	_ = l.room.advance(StateActive) // it is in an earlier state, and ours
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[l.machine.ID()] = l
	if id := l.machine.ID(); id != l.req.MachineID {
		s.aliases[l.req.MachineID] = id
	}
}
