// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import "time"

// sample tells the observer of a measurement.
func (e *environment) sample(s Sample, took time.Duration) {
	if e.observer != nil {
		e.observer.ObserveSample(s, max(took, 0))
	}
}

// startedAt notes when a run was asked for and when the machine answered that it runs.
func (w *worker) startedAt(c *containerState, requested, answered time.Time) {
	c.requested, c.answered = requested, answered
	w.env.sample(SampleCommandStart, answered.Sub(requested))
	if !c.heard.IsZero() { // the output was quicker than the answer
		w.firstByte(c)
	}
}

// FirstOutput tells that the first output of a run has reached this host. It does not
// block and may be called from anywhere.
func (p *Provider) FirstOutput(ref ContainerRef, at time.Time) {
	p.mu.Lock()
	w := p.workers[ref.PodUID]
	p.mu.Unlock()
	if w == nil {
		return
	}
	w.post(func(s *state) {
		for _, c := range s.containers {
			if c.id(s) != ref.ID || !c.heard.IsZero() {
				continue
			}
			c.heard = at
			if !c.answered.IsZero() {
				w.firstByte(c)
			}
			if !w.mark.heard && !w.mark.resumed.IsZero() {
				w.env.sample(SampleResumeToFirstByte, at.Sub(w.mark.resumed))
			}
			w.mark.heard = true
		}
	})
}

// firstByte measures the first run of a container only: what a restarted one writes
// first says nothing new.
func (w *worker) firstByte(c *containerState) {
	if c.attempt == 0 {
		w.env.sample(SampleFirstByte, c.heard.Sub(c.answered))
	}
}
