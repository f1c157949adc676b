// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// Bounds of the pause between two attempts to reach an agent: short at first,
// since a restored agent answers within milliseconds.
const (
	dialPauseMin = 10 * time.Millisecond
	dialPauseMax = 500 * time.Millisecond
)

// Dial connects to the agent of a running machine and repeats until it answers,
// the machine has ended, or ctx is done: a guest may not listen yet, or may still
// hold the former stream. The error then names the last obstacle.
func (s *Store) Dial(ctx context.Context, m vm.Machine) (*guest.Client, error) {
	// The guest may also die while a dial waits for it to answer.
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if exit, err := m.Wait(ctx); err == nil {
			cancel(fmt.Errorf("machine ended (%s %.200q): %w", exit.Reason, exit.Detail, vm.ErrInvalidState))
		}
	}()
	defer func() {
		cancel(nil)
		<-watched
	}()
	var last error
	pause := dialPauseMin
	for {
		client, err := s.dialOnce(ctx, m)
		if err == nil {
			return client, nil
		}
		switch {
		case errors.Is(err, guest.ErrProtocolVersion), errors.Is(err, vm.ErrNotFound), errors.Is(err, vm.ErrInvalidState):
			return nil, fmt.Errorf("reach agent of machine %q: %w", m.ID(), err)
		case ctx.Err() == nil, last == nil:
			last = err // an error that only says the deadline passed is worth less than the one before
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
				return nil, fmt.Errorf("reach agent of machine %q: %w", m.ID(), cause)
			}
			return nil, fmt.Errorf("reach agent of machine %q: %w (last: %w)", m.ID(), ctx.Err(), last)
		case <-time.After(pause):
		}
		pause = min(2*pause, dialPauseMax)
	}
}

func (s *Store) dialOnce(ctx context.Context, m vm.Machine) (*guest.Client, error) {
	conn, err := m.DialGuest(ctx, vm.AgentPort)
	if err != nil {
		return nil, err
	}
	return s.opts.Dial(ctx, conn)
}
