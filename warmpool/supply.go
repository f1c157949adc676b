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
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// DefaultRefillFloorBytes is what must be free on the node's disk to fill pools:
// above the store's own floor, so that pods can still start when pools are not
// filled any more.
const DefaultRefillFloorBytes int64 = 20 << 30

// Options of a supply.
type Options struct {
	// Driver is the one that Store restores with.
	Driver vm.Driver
	Store  Store
	// Images are the disks of templates; nil: there are no templates.
	Images Images
	// Kit is what machines run.
	Kit vm.Kit
	// Capacity is what the node has for machines.
	Capacity Budget
	// RecordsDir keeps what a later process must know of warm entries and of the machines
	// that were checked out; absolute, made when it is missing. Empty: nothing is kept, and
	// Start deletes the entries of an earlier process.
	RecordsDir string
	// QuarantineDir is where people hear which machines are in quarantine. Empty: nowhere.
	QuarantineDir QuarantineDir
	// Restores is how many machines are restored at once for requests. 0 is the number
	// of processors: a restored guest runs at once, and more than that only wait for
	// each other.
	Restores int
	// Refills is how many entries of pools are restored at once, besides. 0 is half the
	// number of processors. While requests have machines restored, it is one.
	Refills int
	// QueueLength and QueueWait bound how many requests wait for room, and how long. 0 is
	// 64 and 30 seconds; a negative length is none.
	QueueLength int
	QueueWait   time.Duration
	// RefillFloorBytes must be free for pools to be filled; exactly this much is enough. 0
	// is DefaultRefillFloorBytes, negative is no floor.
	RefillFloorBytes int64
	// FreeBytes measures the disk that the machines are on. nil: no floor.
	FreeBytes func() (int64, error)
	// Tick is how often pools are looked at when nothing has changed. 0 is 30 seconds.
	Tick time.Duration
	// Wakes is how many entries are woken at once for requests; others have their turn
	// after them. 0 is the number of processors.
	Wakes int
	// CheckoutTimeout is how long a warm entry has to answer once it is its turn. 0 is 10
	// seconds: it takes milliseconds, and on a host so busy that it takes seconds, a machine
	// in its place would take longer.
	CheckoutTimeout time.Duration
	// ProbeTimeout bounds the rehearsal of a new entry. 0 is 30 seconds.
	ProbeTimeout time.Duration
	// DialTimeout bounds the attempts of one redial. 0 is 30 seconds.
	DialTimeout time.Duration
	// DeleteTimeout bounds ending a machine by force and deleting it. 0 is 30
	// seconds.
	DeleteTimeout time.Duration
	// Observer is told of measurements and decisions. nil is nobody.
	Observer Observer
	// Logger gets what has no caller to be returned to. nil discards.
	Logger *slog.Logger

	discardPause time.Duration // tests only; 0 is discardPauseMin
	records      recorder      // tests only
	pauses       pauses        // tests only; of a pool after failed restores
	templates    pauses        // tests only; of builds that failed, and of breakers
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if o.Restores <= 0 {
		o.Restores = runtime.NumCPU()
	}
	if o.Wakes <= 0 {
		o.Wakes = runtime.NumCPU()
	}
	if o.Refills <= 0 {
		o.Refills = max(1, runtime.NumCPU()/2)
	}
	if o.QueueLength == 0 {
		o.QueueLength = defaultQueueLength
	}
	if o.RefillFloorBytes == 0 {
		o.RefillFloorBytes = DefaultRefillFloorBytes
	}
	set(&o.QueueWait, defaultQueueWait)
	set(&o.Tick, 30*time.Second)
	set(&o.CheckoutTimeout, 10*time.Second)
	set(&o.ProbeTimeout, 30*time.Second)
	set(&o.DialTimeout, 30*time.Second)
	set(&o.DeleteTimeout, 30*time.Second)
	set(&o.discardPause, discardPauseMin)
	if o.pauses == (pauses{}) {
		o.pauses = pauses{time.Second, 2 * time.Minute}
	}
	if o.templates == (pauses{}) {
		o.templates = pauses{10 * time.Second, 10 * time.Minute}
	}
	if o.records == nil {
		o.records = forgetful{}
		if o.RecordsDir != "" {
			o.records = newDirectory(o.RecordsDir, durable.Host)
		}
	}
	if o.Observer == nil {
		o.Observer = nobody{}
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

// Supply gives machines to callers, and keeps pools of warm ones. All methods are safe
// for concurrent use.
type Supply struct {
	opts      Options
	ledger    *Ledger
	templates *templates
	turns     chan struct{} // restores for requests under way
	boots     chan struct{} // cold boots for requests under way
	wakes     chan struct{} // entries that are being woken for requests
	kicks     chan struct{} // holds one: the pools are to be looked at
	changes   chan struct{} // holds one: see Changes

	ctx    context.Context //nolint:containedctx // the lifetime of the supply's own work, ended by Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup

	graves graves // machines that are to be deleted

	mu      sync.Mutex              // taken before Ledger.mu, never inside it
	closed  bool                    // guarded by mu
	started bool                    // guarded by mu
	leases  map[string]*Lease       // guarded by mu; by machine
	pending map[string]*reservation // guarded by mu; machines of an earlier process that nobody has, by id
	records map[string]record       // guarded by mu; those of an earlier process, by machine, until adopted
	aliases map[string]string       // guarded by mu; machine by request, for those whose ids differ
	broken  map[string]broken       // guarded by mu; records that cannot be read, by machine
	// quarantined are those of pending that are kept for somebody to look at; unsure are
	// requests that may have one of them. See Reconcile.
	quarantined map[string]Quarantined // guarded by mu; by machine
	unreadable  map[string]bool        // guarded by mu; those of quarantined whose own records cannot be read
	unsure      map[string]bool        // guarded by mu; by request
	adoptees    []*warmEntry           // guarded by mu; warm entries of an earlier process, until Start
	refills     int                    // guarded by mu; under way
	press       Skip                   // guarded by mu; see Press
	demand      int                    // guarded by mu; restores for requests under way
}

// New returns a supply that knows of the machines in RecordsDir and has touched none.
// Those that pods have come in by Adopt; Start takes over the warm ones; Reconcile decides
// about the rest. Shutdown ends it.
func New(opts Options) (*Supply, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("set up supply of machines: %w", err)
	}
	s := &Supply{
		opts:        opts,
		ledger:      NewLedger(opts.Capacity),
		turns:       make(chan struct{}, opts.Restores),
		boots:       make(chan struct{}, opts.Restores),
		wakes:       make(chan struct{}, opts.Wakes),
		kicks:       make(chan struct{}, 1),
		changes:     make(chan struct{}, 1),
		leases:      make(map[string]*Lease),
		pending:     make(map[string]*reservation),
		records:     make(map[string]record),
		aliases:     make(map[string]string),
		broken:      make(map[string]broken),
		quarantined: make(map[string]Quarantined), unreadable: make(map[string]bool), unsure: make(map[string]bool),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.templates = newTemplates(s)
	s.graves.wake = make(chan struct{}, 1)
	s.ledger.queue.most = max(0, opts.QueueLength)
	s.ledger.changed = s.changed
	s.ledger.evicted = s.evicted
	if err := s.recall(); err != nil {
		return nil, fmt.Errorf("set up supply of machines: %w", err)
	}
	s.wg.Go(s.undertake)
	return s, nil
}

// changed is told by the ledger, which holds its lock.
func (s *Supply) changed() {
	signal(s.kicks)
	signal(s.changes)
}

// signal leaves a message in a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Ledger returns the node's account at this moment.
func (s *Supply) Ledger() Account { return s.ledger.Account() }

// SetCapacity changes what the node has for machines. What runs stays; warm entries
// give way when a pod needs the room. The error is a *Refusal: Invalid.
func (s *Supply) SetCapacity(capacity Budget) error { return s.ledger.SetCapacity(capacity) }

// SetTargets replaces what pools the node keeps, and how full. It does not block: the
// pools follow in the background once Start was called. Entries of pools that are not
// among the targets end. Idempotent. Of two targets of one pool the last counts.
func (s *Supply) SetTargets(targets []Target) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if s.ledger.shelves.drained > 0 {
		s.ledger.shelves.wanted = slices.Clone(targets)
		return
	}
	s.ledger.retarget(targets)
}

// Changes holds a message when anything in Status has changed since it was last
// read. For one reader.
func (s *Supply) Changes() <-chan struct{} { return s.changes }

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

// start runs f in a goroutine that Shutdown waits for; false when it is too late.
func (s *Supply) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
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
		snap, _, err := s.opts.Store.Ensure(ctx, Source{Shape: shape, Kit: s.opts.Kit})
		if err != nil {
			errs = append(errs, fmt.Errorf("prepare shape %s: %w", shape, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		snap.Release()
	}
	return errors.Join(errs...)
}

// Drain ends all pools: targets are dropped, and further ones wait for Resume. It
// returns when every warm entry is deleted, or with ctx's error. Machines of pods are
// not touched.
func (s *Supply) Drain(ctx context.Context) error {
	_, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	s.ledger.drain()
	s.mu.Lock()
	adoptees := s.adoptees // if Start has not taken them over
	s.adoptees = nil
	s.mu.Unlock()
	for _, e := range adoptees {
		s.bury(grave{id: e.id(), room: e.room})
	}
	const look = 20 * time.Millisecond
	for s.ledger.hasWarm() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("drain pools: %w", ctx.Err())
		case <-s.ctx.Done():
			return refuse(ReasonShutdown, nil, "the node is shutting down")
		case <-time.After(look):
		}
	}
	return nil
}

// Resume undoes one Drain, also one that has failed: pools are filled again, by the targets
// that were set last. Without a Drain it does nothing.
func (s *Supply) Resume() { s.ledger.resume() }

// Shutdown refuses new work, ends what is under way (an unfinished Acquire or refill
// deletes its machine), closes the connections to guests, and waits. Machines of
// leases keep running, and warm entries stay paused, for the next process to adopt;
// Drain before ends those. Idempotent. The error is ctx.Err.
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
	for _, conn := range s.ledger.conns() {
		_ = conn.Close() // the other end notices by itself
	}
	s.templates.close()
	return nil
}
