// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import "time"

// Kind says what follows from a probe.
type Kind int

// The kinds of probes.
const (
	// Startup holds the others back until it succeeds; its failure ends the run.
	Startup Kind = iota
	// Liveness ends the run when it fails.
	Liveness
	// Readiness says whether the run may get traffic.
	Readiness
	kinds
)

// String is the kind as the kubelet's events have it.
func (k Kind) String() string { return [...]string{"Startup", "Liveness", "Readiness"}[k] }

// Result is what one look at a container says.
type Result int

// The results of one look.
const (
	// Unknown: the look itself failed, and says nothing about the container.
	Unknown Result = iota
	Success
	// Warning is a success that somebody should look at.
	Warning
	Failure
)

// Outcome is a result, and why, for people.
type Outcome struct {
	Result  Result
	Message string
}

// Spec is how a probe is to be timed and judged. Fields of zero mean the API's defaults.
type Spec struct {
	// InitialDelay is counted from the begin of the run.
	InitialDelay time.Duration
	// Period is 10 s by default, Timeout 1 s.
	Period, Timeout time.Duration
	// Successes in a row that count, 1 by default; Failures, 3.
	Successes, Failures int
}

// The API's defaults.
const (
	defaultPeriod    = 10 * time.Second
	defaultTimeout   = time.Second
	defaultSuccesses = 1
	defaultFailures  = 3
)

func (s Spec) withDefaults() Spec {
	if s.Period <= 0 {
		s.Period = defaultPeriod
	}
	if s.Timeout <= 0 {
		s.Timeout = defaultTimeout
	}
	if s.Successes <= 0 {
		s.Successes = defaultSuccesses
	}
	if s.Failures <= 0 {
		s.Failures = defaultFailures
	}
	s.InitialDelay = max(0, s.InitialDelay)
	return s
}

// Probe is the state of one probe of one run.
type Probe struct {
	spec Spec
	// last is the last outcome that said something, row how often it came in succession.
	last Result
	row  int
	// holds is what the probe says now.
	holds bool
}

// New is a probe that says holds until its outcomes say otherwise: for a new run liveness
// holds, startup and readiness do not.
func New(spec Spec, holds bool) *Probe { return &Probe{spec: spec.withDefaults(), holds: holds} }

// Holds is what the probe says now.
func (p *Probe) Holds() bool { return p.holds }

// Take takes an outcome in. settled: a threshold is reached, and Holds is what the outcome
// says; else Holds is as before. What is unknown counts for nothing and breaks no row.
func (p *Probe) Take(r Result) (settled bool) {
	switch r {
	case Unknown:
		return false
	case Warning:
		r = Success
	default:
	}
	if r != p.last {
		p.last, p.row = r, 0
	}
	need := p.spec.Successes
	if r == Failure {
		need = p.spec.Failures
	}
	if p.row < need { // it stops to count where it counts no more
		p.row++
	}
	if p.row < need {
		return false
	}
	p.holds = r == Success
	return true
}
