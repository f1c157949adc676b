// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// memoryRecords keeps records as a directory does, and may fail.
type memoryRecords struct {
	host *memoryHost

	mu  sync.Mutex
	all map[string]record
	bad map[string]broken
}

func (r *memoryRecords) load() ([]record, []broken, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []record
	for _, rec := range r.all {
		all = append(all, rec)
	}
	var bad []broken
	for _, b := range r.bad {
		bad = append(bad, b)
	}
	return all, bad, nil
}

// spoil makes a machine's record unreadable, but for what one can guess.
func (r *memoryRecords) spoil(machine string, guess record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, machine)
	r.bad[machine] = broken{machine: machine, err: errBoom, guess: guess}
}

func (r *memoryRecords) write(rec record) error {
	if err := r.host.do(context.Background(), "record", rec.Machine); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[rec.Machine] = rec
	return nil
}

func (r *memoryRecords) remove(machine string) error {
	if err := r.host.do(context.Background(), "unrecord", machine); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, machine)
	delete(r.bad, machine)
	return nil
}

// watcher remembers what an observer is told.
type watcher struct {
	mu      sync.Mutex
	samples map[Metric]int
	paths   map[Path]int
	evicted map[EvictReason]int
	skipped map[SkipReason]int
	refills int
	failed  int
}

func newWatcher() *watcher {
	return &watcher{samples: map[Metric]int{}, paths: map[Path]int{}, evicted: map[EvictReason]int{}, skipped: map[SkipReason]int{}}
}

func (w *watcher) Sampled(s Sample) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples[s.Metric]++
}

func (w *watcher) CheckedOut(p Path, _ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paths[p]++
}

func (w *watcher) Refilled(_ string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.failed++
	} else {
		w.refills++
	}
}

func (w *watcher) Evicted(_ string, r EvictReason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.evicted[r]++
}

func (w *watcher) Skipped(_ string, r SkipReason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.skipped[r]++
}

// pooled is a node with pools, in memory.
type pooled struct {
	t       *testing.T
	host    *memoryHost
	records *memoryRecords
	watch   *watcher
	opts    Options
	supply  *Supply
}

var smallShape = vm.Shape{VCPUs: 1, MemoryBytes: 256 * mi}

func newPooled(t *testing.T, change func(*Options)) *pooled {
	t.Helper()
	h := newMemoryHost()
	p := &pooled{t: t, host: h, records: &memoryRecords{host: h, all: map[string]record{}, bad: map[string]broken{}}, watch: newWatcher()}
	p.opts = Options{
		Driver: memoryDriver{h}, Store: h, Images: memoryImages{h}, Kit: testKit(),
		Capacity: Budget{MilliCPU: 64_000, MemoryBytes: 16 << 30}, Restores: 8, Refills: 4, QueueWait: time.Minute,
		Observer: p.watch, records: p.records,
	}
	if change != nil {
		change(&p.opts)
	}
	p.start()
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *pooled) start() {
	p.t.Helper()
	p.host.reopen()
	supply, err := New(p.opts)
	if err != nil {
		p.t.Fatal(err)
	}
	p.supply = supply
}

func (p *pooled) stop() {
	p.t.Helper()
	if err := p.supply.Shutdown(context.Background()); err != nil {
		p.t.Errorf("shut down: %v", err)
	}
}

// pass lets virtual time pass, and everything happen that is due by then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// run starts the pools.
func (p *pooled) run(targets ...Target) {
	p.t.Helper()
	p.supply.SetTargets(targets)
	if err := p.supply.Start(context.Background()); err != nil {
		p.t.Fatal(err)
	}
}

func template(name, revision string) Template {
	return Template{Namespace: "ns", Name: name, Revision: revision, Shape: smallShape, Images: []string{name + ":1"}}
}

func target(pool string, t Template, desired, priority int) Target {
	return Target{Pool: "ns/" + pool, Template: t, Desired: desired, Priority: priority, Reclaim: ReclaimOnDemand, MaxSurge: 1}
}

func templateRequest(id string, t Template) Request {
	return Request{MachineID: id, PodUID: "uid-" + id, Shape: t.Shape, Template: &t, Refs: t.Images}
}

func (p *pooled) reap(ctx context.Context, known ...Request) ([]string, error) {
	return reap(ctx, p.supply, survey(known...))
}

// reap is what a node does at its start: what is to be cleaned up is discarded. It returns what
// is gone; what cannot be deleted stays, and does not keep the others.
func reap(ctx context.Context, s *Supply, sv Survey) (reaped []string, err error) {
	findings, err := s.Reconcile(ctx, sv)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, f := range findings {
		if f.Verdict != VerdictCleanup {
			continue
		}
		switch err := s.Discard(ctx, f.Machine); {
		case err == nil:
			reaped = append(reaped, f.Machine)
		case ReasonOf(err) == ReasonExists: // somebody has taken it meanwhile
		default:
			errs = append(errs, err)
		}
	}
	return reaped, errors.Join(errs...)
}

func (p *pooled) pool(name string) PoolStatus {
	for _, s := range p.supply.Status().Pools {
		if s.Pool == "ns/"+name {
			return s
		}
	}
	return PoolStatus{}
}

// consistent compares the ledger with the driver. Machines that are being made, or
// deleted, may be missing in the driver; when exact, none are.
func (p *pooled) consistent(exact bool) error {
	a := p.supply.Ledger()
	have := map[string]bool{}
	for _, id := range p.host.ids() {
		have[id] = true
	}
	var active, warm Budget
	for _, e := range a.Machines {
		if e.Warm {
			warm = warm.plus(e.Budget)
		} else {
			active = active.plus(e.Budget)
		}
		if !have[e.Machine] && (exact || e.State == StateWarm || e.State == StateActive) {
			return fmt.Errorf("the ledger has %s (%s), the driver has not", e.Machine, e.State)
		}
		if m := p.host.machine(e.Machine); m != nil && (e.State == StateWarm || e.State == StateActive) && (m.cfg.GuestOS == vm.GuestMacOS) != (e.Budget.Slots == 1) {
			return fmt.Errorf("%s is a guest of %q and has %d slots", e.Machine, m.cfg.GuestOS, e.Budget.Slots)
		}
		delete(have, e.Machine)
	}
	if len(have) > 0 {
		return fmt.Errorf("the driver has %v, the ledger has not", have)
	}
	if active != a.Active || warm != a.Warm || a.Available != a.Capacity.minus(active.plus(warm)) {
		return fmt.Errorf("account %+v, the machines are %+v active, %+v warm", a, active, warm)
	}
	for _, b := range []Budget{a.Capacity, a.Active, a.Warm, a.Available} {
		if err := b.validate(); err != nil {
			return err
		}
	}
	return nil
}
