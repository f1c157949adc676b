// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// HostCondition is a condition of the node that tells what is wrong with its host.
//
// All are named for the problem, like the kubelet's pressures: True is a problem, False
// is well, Unknown could not be found out. So what watches nodes needs one rule for
// them. None of them changes whether the node is Ready, for pods may still run.
type HostCondition struct {
	// Type is "firkin.dev/" and the problem: "firkin.dev/ScreenLocked".
	Type   corev1.NodeConditionType
	Status corev1.ConditionStatus
	// Reason is CamelCase; the event of a transition has it too.
	Reason string
	// Message is for people, and says what to do about a problem.
	Message string
}

const (
	// examineEvery is how often the host is examined: each time starts a few programs.
	examineEvery = time.Minute
	// examineTimeout is when an examination has failed; what it should have found out is
	// Unknown then.
	examineTimeout = 15 * time.Second
)

// reasonNotExamined is the reason of conditions whose examination did not end.
const reasonNotExamined = "NotExamined"

// examiner examines the host, one time after the other, and keeps the latest answer.
type examiner struct {
	examine func(context.Context) []HostCondition
	// examined is sent to when there is another answer.
	examined chan struct{}

	mu     sync.Mutex
	answer []HostCondition
}

func newExaminer(examine func(context.Context) []HostCondition) *examiner {
	return &examiner{examine: examine, examined: make(chan struct{}, 1)}
}

func (e *examiner) latest() []HostCondition {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.answer
}

// run examines until ctx ends.
func (e *examiner) run(ctx context.Context) {
	for e.examine != nil && sleep(ctx, examineEvery) {
		finished := e.once(ctx)
		select {
		case e.examined <- struct{}{}:
		default:
		}
		select {
		case <-finished: // never two at once
		case <-ctx.Done():
		}
	}
}

// once examines and returns at the time-out at the latest; finished is closed when the
// examination is over. The answer of one that comes too late is not taken: it is what
// was found out by a ctx that had ended.
func (e *examiner) once(ctx context.Context) (finished <-chan struct{}) {
	over := make(chan struct{})
	if e.examine == nil {
		close(over)
		return over
	}
	limited, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	answer := make(chan []HostCondition, 1)
	go func() {
		defer close(over)
		answer <- e.examine(limited)
	}()
	select {
	case a := <-answer:
		e.keep(a)
	case <-limited.Done():
		if ctx.Err() == nil {
			e.keep(notExamined(e.latest()))
		}
	}
	return over
}

func (e *examiner) keep(answer []HostCondition) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = answer
}

func notExamined(known []HostCondition) []HostCondition {
	list := slices.Clone(known)
	for i := range list {
		list[i].Status, list[i].Reason = corev1.ConditionUnknown, reasonNotExamined
		list[i].Message = "the host could not be examined within " + examineTimeout.String()
	}
	return list
}

// hostEvents are the events that tell operators what changed of the host: that there is
// a problem, that one is over, that it is not known any more. What is well from the
// beginning is no news.
func hostEvents(was, is []corev1.NodeCondition, host []HostCondition) []Notice {
	var events []Notice
	for _, c := range is {
		if !slices.ContainsFunc(host, func(h HostCondition) bool { return h.Type == c.Type }) {
			continue
		}
		before := corev1.ConditionFalse // as if it was, when nothing was known
		for _, o := range was {
			if o.Type == c.Type {
				before = o.Status
			}
		}
		if c.Status != before {
			events = append(events, Notice{Reason: c.Reason, Message: c.Message, Warning: c.Status == corev1.ConditionTrue})
		}
	}
	return events
}
