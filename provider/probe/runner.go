// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Report is an outcome, and what it changes.
type Report struct {
	Kind Kind
	Outcome
	// Changed: the probe has something new to say, which is Holds. A startup probe
	// that holds, and a startup or liveness probe that does not, is not asked again.
	Changed bool
	Holds   bool
}

// Runner asks the probes of one run of a container.
type Runner struct {
	// Startup, Liveness and Readiness are the probes; nil for none.
	Startup, Liveness, Readiness *Spec
	// Began is when the run began.
	Began time.Time
	// Resumed: an earlier process asked before this one. Then Started and Ready are what
	// its probes said, and the first look is not at once, so that a node that comes back
	// does not ask everything at the same time.
	Resumed        bool
	Started, Ready bool
	// Look looks once. It returns soon after the probe's timeout, or when ctx ends.
	Look func(ctx context.Context, kind Kind, timeout time.Duration) Outcome
	// Report is called after each look. Calls for different probes may overlap.
	Report func(Report)
}

// Run asks until ctx ends or there is nothing more to ask, and leaves nothing behind.
// Startup and liveness probes end already with vital: a run that is to end needs to answer
// for its life no more, but whether it gets traffic still counts.
func (r *Runner) Run(ctx, vital context.Context) {
	vital, cancel := context.WithCancel(vital)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	if r.Startup != nil && (!r.Resumed || !r.Started) && !r.ask(vital, Startup, r.Startup, false) {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if r.Liveness != nil {
		wg.Go(func() { r.ask(vital, Liveness, r.Liveness, true) })
	}
	if r.Readiness != nil {
		wg.Go(func() { r.ask(ctx, Readiness, r.Readiness, r.Resumed && r.Ready) })
	}
}

// ask asks one probe until ctx ends or its answer is final, and returns what it says then.
func (r *Runner) ask(ctx context.Context, kind Kind, spec *Spec, holds bool) bool {
	p := New(*spec, holds)
	next := r.Began.Add(p.spec.InitialDelay)
	if now := time.Now(); r.Resumed && next.Before(now.Add(p.spec.Period)) {
		next = later(next, now.Add(rand.N(p.spec.Period)))
	}
	for sleepUntil(ctx, next) {
		began := time.Now()
		out := r.Look(ctx, kind, p.spec.Timeout)
		if ctx.Err() != nil {
			break // what failed because of that says nothing
		}
		before := p.Holds()
		settled := p.Take(out.Result)
		final := settled && (kind == Startup || kind == Liveness && !p.Holds())
		r.Report(Report{Kind: kind, Outcome: out, Changed: final || before != p.Holds(), Holds: p.Holds()})
		if final {
			break
		}
		next = began.Add(spread(p.spec.Period))
	}
	return p.Holds()
}

// spread is d and a little: probes that began together do not stay together. It is never
// less, as d times the threshold is what a container has been promised.
func spread(d time.Duration) time.Duration { return d + rand.N(d/20+1) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
