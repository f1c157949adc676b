// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// admit makes the plan of the pod, or refuses it. It runs once, first in the loop.
func (w *worker) admit() {
	s := &w.s
	if s.plan != nil || s.refusal != nil {
		return // from a record
	}
	p, refused := translate(s.pod, w.env.supply, w.env.allocatable)
	if refused != nil {
		s.refusal = refused
		w.env.events.pod(s.pod, true, refused.Reason, refused.Message)
		w.log.Info("Refusing pod", "reason", refused.Reason, "message", refused.Message)
		w.dirty = true
		return
	}
	s.plan = p
	s.images = map[imageKey]*imageState{}
	for _, key := range p.images {
		s.images[key] = &imageState{}
	}
	for _, c := range p.containers {
		s.containers = append(s.containers, &containerState{name: c.spec.Name})
	}
	w.dirty = true
	w.mark.begin(w.env.observer, s.pod, s.startTime)
}

// newState is that of a pod that this node has not had before.
func newState(pod *corev1.Pod, now time.Time) state {
	s := state{pod: pod, startTime: now}
	if t := pod.Status.StartTime; t != nil { // an earlier process got as far as reporting it
		s.startTime = t.Time
	}
	return s
}

// milestones are the times of a pod's start, for the observer. Only a pod that this
// process starts from nothing has them.
type milestones struct {
	observer Observer
	path     string
	// waiting are durations that wait for the path to be known.
	waiting []phaseTime

	began, imaged, running time.Time
	acquired, prepared     time.Time
	started, reported      bool
}

type phaseTime struct {
	phase Phase
	took  time.Duration
}

func (m *milestones) begin(o Observer, pod *corev1.Pod, seen time.Time) {
	if o == nil {
		return
	}
	m.observer, m.began = o, seen
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue {
			// The API keeps whole seconds: this is up to a second too long.
			m.observe(PhaseScheduleSeen, max(0, seen.Sub(c.LastTransitionTime.Time)))
		}
	}
}

func (m *milestones) observe(p Phase, took time.Duration) {
	if m.observer == nil {
		return
	}
	if m.path == "" {
		m.waiting = append(m.waiting, phaseTime{p, took})
		return
	}
	m.observer.ObservePhase(p, m.path, took)
}

// know sets the path and tells what waited for it.
func (m *milestones) know(path string) {
	if m.observer == nil || m.path != "" {
		return
	}
	m.path = path
	for _, w := range m.waiting {
		m.observer.ObservePhase(w.phase, path, w.took)
	}
	m.waiting = nil
}
