// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

// MaxClockError is how far the clock of a machine may be from its host's before it is set: what
// chrony's documentation takes for too far to be caught up with by running faster.
const MaxClockError = time.Second

// A clock that is wrong again at once is set a second time at once: the host may have slept
// meanwhile. Then it is set ever more rarely: its guest lies, or sets it itself.
const (
	clockRetry    = time.Minute
	maxClockRetry = time.Hour
)

// ClockKeeper gives the guest of one machine its host's time, also over several connections. The
// zero value is usable, and it is safe for concurrent use.
type ClockKeeper struct {
	mu   sync.Mutex
	off  time.Duration // guarded by mu; how far it is ahead at least, by the last answer
	vain int           // guarded by mu; how often it was set in a row, and not right after that
	last time.Time     // guarded by mu; when it was set
}

// clockOff is how far a clock is off at least that said guest at some moment between
// sent and received: ahead, or behind when negative. Zero when it may be right, and when the host's
// own clock was set back meanwhile. Pure.
func clockOff(sent, received, guest time.Time) time.Duration {
	sent, received = sent.Round(0), received.Round(0) // a guest has no other clock to compare
	switch {
	case received.Before(sent):
		return 0
	case guest.Before(sent):
		return guest.Sub(sent)
	case guest.After(received):
		return guest.Sub(received)
	}
	return 0
}

// hear takes an answer in. An agent that does not tell its time, 0, has a clock that
// nothing is known of.
func (k *ClockKeeper) hear(sent, received time.Time, guestUnixNano int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.off = 0
	if guestUnixNano != 0 {
		k.off = clockOff(sent, received, time.Unix(0, guestUnixNano))
	}
	if k.off.Abs() <= MaxClockError {
		k.off, k.vain = 0, 0
	}
}

// due is how far the clock is off, if it is to be set now, and takes it for set.
func (k *ClockKeeper) due(now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	off := k.off
	if off == 0 || k.vain >= 2 && now.Sub(k.last) < min(clockRetry<<min(k.vain-2, 10), maxClockRetry) {
		return 0
	}
	k.off, k.last = 0, now
	k.vain++
	return off
}

// Ask proves that the agent answers, and measures its clock. The error is that of the call.
func (k *ClockKeeper) Ask(ctx context.Context, agent agentv1connect.AgentServiceClient) error {
	sent := time.Now()
	answer, err := agent.Ping(ctx, connect.NewRequest(&agentv1.PingRequest{}))
	if err != nil {
		return err
	}
	k.hear(sent, time.Now(), answer.Msg.GetTimeUnixNano())
	return nil
}

// Set sets the guest's wall clock to the host's when it was away from that by more than
// MaxClockError at the last Ask. off is how far it was ahead, at least; zero when nothing was done: it
// may be right, the agent may be older than this call, or it was set in vain lately. What the guest
// says of its time decides nothing else: one that lies is told the time ever more rarely.
func (k *ClockKeeper) Set(ctx context.Context, agent agentv1connect.AgentServiceClient) (off time.Duration, err error) {
	if off = k.due(time.Now()); off == 0 {
		return 0, nil
	}
	if _, err := agent.SetClock(ctx, connect.NewRequest(&agentv1.SetClockRequest{TimeUnixNano: time.Now().UnixNano()})); err != nil {
		return off, fmt.Errorf("set the guest's clock: %w", err)
	}
	return off, nil
}
