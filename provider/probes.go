// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider/probe"
)

// probing is what the probes of one run of a container say, and what asks them.
type probing struct {
	// known: what follows is about the run of this attempt.
	known   bool
	attempt int
	// unstarted: the startup probe has not succeeded yet. unready: the readiness probe says
	// no, or nothing yet.
	unstarted, unready bool
	// resumed: an earlier process asked before.
	resumed bool
	// hold is the machine whose goroutines ask; nil when nobody does.
	hold *machineHold
	// stop ends the asking, calm that of startup and liveness probes.
	stop, calm context.CancelFunc
}

// probeRecord is what has to be known about the probes of a run after the node process died:
// until they say otherwise, the pod is what it was.
type probeRecord struct {
	Started bool `json:"started,omitempty"`
	Ready   bool `json:"ready,omitempty"`
}

func (p *probing) record(attempt int) *probeRecord {
	if !p.known || p.attempt != attempt {
		return nil
	}
	return &probeRecord{Started: !p.unstarted, Ready: !p.unready}
}

func (r *probeRecord) state(attempt int) probing {
	if r == nil {
		return probing{}
	}
	return probing{known: true, attempt: attempt, unstarted: !r.Started, unready: !r.Ready, resumed: true}
}

// runs: the machine runs it, or did so when an earlier process last saw it, and has not
// said otherwise yet.
func (c *containerState) runs() bool {
	return c.step == containerRunning || c.step == containerUnknown && !c.startedAt.IsZero()
}

// isStarted: the run is up, and its startup probe has succeeded.
func (c *containerState) isStarted() bool { return c.runs() && !c.probes.unstarted }

// isReady: the run may get traffic, as far as its probes say.
func (c *containerState) isReady() bool { return c.isStarted() && !c.probes.unready }

func probed(c *corev1.Container) bool {
	return c.StartupProbe != nil || c.LivenessProbe != nil || c.ReadinessProbe != nil
}

// beginProbes takes in that a container runs, and begins the probes of the run as soon as its
// postStart hook is over. Idempotent for a run.
func (w *worker) beginProbes(c *containerState) {
	s, h, p := &w.s, w.hold, &c.probes
	i := s.plan.index(c.name)
	if i < 0 {
		return
	}
	spec := s.plan.containers[i].spec
	if !p.known || p.attempt != c.attempt {
		p.end()
		*p = probing{known: true, attempt: c.attempt, unstarted: spec.StartupProbe != nil, unready: spec.ReadinessProbe != nil}
		w.dirty = true
	}
	if !probed(spec) || settling(s, i) || s.machine.step != machineHeld || p.hold == h {
		return
	}
	p.end()
	ctx, stop := context.WithCancel(h.ctx)
	vital, calm := context.WithCancel(ctx)
	p.hold, p.stop, p.calm = h, stop, calm
	target := handlerTarget{pod: s.pod, container: spec, id: c.id(s), hold: h}
	attempt := c.attempt
	handlers := map[probe.Kind]*corev1.Probe{probe.Startup: spec.StartupProbe, probe.Liveness: spec.LivenessProbe, probe.Readiness: spec.ReadinessProbe}
	r := &probe.Runner{
		Startup: probeSpec(spec.StartupProbe), Liveness: probeSpec(spec.LivenessProbe), Readiness: probeSpec(spec.ReadinessProbe),
		Began: c.startedAt, Resumed: p.resumed, Started: !p.unstarted, Ready: !p.unready,
		Look: func(ctx context.Context, kind probe.Kind, timeout time.Duration) probe.Outcome {
			return w.env.runProbe(ctx, target, &handlers[kind].ProbeHandler, timeout)
		},
		Report: func(r probe.Report) {
			if r.Result == probe.Success && !r.Changed {
				return // nobody waits for it
			}
			w.here(h, func(*state) {
				if c.attempt == attempt && c.step == containerRunning {
					w.probed(i, c, handlers[r.Kind], r)
				}
			})
		},
	}
	h.wg.Go(func() {
		defer stop()
		defer calm()
		r.Run(ctx, vital)
	})
}

// end ends the asking. It does not wait: the hold does.
func (p *probing) end() {
	if p.hold != nil {
		p.stop()
		p.hold = nil
	}
}

// probeSpec is how a probe is timed and judged.
func probeSpec(p *corev1.Probe) *probe.Spec {
	if p == nil {
		return nil
	}
	return &probe.Spec{
		InitialDelay: seconds(int64(p.InitialDelaySeconds)), Period: seconds(int64(p.PeriodSeconds)), Timeout: seconds(int64(p.TimeoutSeconds)),
		Successes: int(p.SuccessThreshold), Failures: int(p.FailureThreshold),
	}
}

// tendProbes begins and ends what asks the probes, as the state has it now: a run that is to
// end need not be alive any more, and one that has ended is asked for nothing.
func (w *worker) tendProbes() {
	for _, c := range w.s.containers {
		if c.step != containerRunning || c.probes.attempt != c.attempt || c.probes.hold != w.hold {
			c.probes.end()
		}
		if c.step != containerRunning || w.hold == nil {
			continue
		}
		w.beginProbes(c)
		if c.probes.hold != nil && (c.stop != nil || w.s.end() != nil) {
			c.probes.calm()
		}
	}
}

// probed takes in what a probe of the current run said.
func (w *worker) probed(i int, c *containerState, spec *corev1.Probe, r probe.Report) {
	s := &w.s
	say := func(reason, text string) {
		w.env.events.container(s.pod, c.name, true, reason, r.Kind.String()+" probe "+text+": "+strings.TrimSpace(r.Message))
	}
	switch r.Result {
	case probe.Failure:
		say(eventUnhealthy, "failed")
	case probe.Unknown:
		say(eventUnhealthy, "errored and resulted in unknown state")
	case probe.Warning:
		say(eventProbeWarning, "warning")
	default:
	}
	if !r.Changed {
		return
	}
	w.dirty = true
	w.log.Info("Probe changed", "container", c.name, "attempt", c.attempt, "probe", r.Kind.String(), "holds", r.Holds, "message", r.Message)
	switch {
	case r.Kind == probe.Readiness:
		c.probes.unready = !r.Holds
	case r.Holds:
		c.probes.unstarted = false
	case s.end() == nil:
		grace := s.plan.grace
		if g := spec.TerminationGracePeriodSeconds; g != nil {
			grace = seconds(*g)
		}
		message := "Container " + c.name + " failed " + probeName(r.Kind) + " probe"
		if restarts(s.plan.restartPolicy, &s.plan.containers[i], &termination{ExitCode: 137, Again: true}) {
			message += ", will be restarted"
		}
		w.restartContainer(c, message, grace)
	}
}

// probeName is the kind in the middle of a sentence.
func probeName(k probe.Kind) string {
	if k == probe.Startup {
		return "startup"
	}
	return "liveness"
}
