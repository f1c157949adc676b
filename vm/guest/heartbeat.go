// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/clock"
)

// heartbeat finds out that a guest has fallen silent. HTTP/2 has such a check of its own,
// but none that can be told that the guest stands still for a while, as a paused machine
// does.
type heartbeat struct {
	idle, timeout time.Duration
	ping          func(context.Context) error
	lost          func() // gives the connection up
	silent        *clock.Idle

	mu     sync.Mutex
	paused bool               // guarded by mu
	cancel context.CancelFunc // guarded by mu; of the ping under way
	wake   chan struct{}      // holds one when paused changed
}

func newHeartbeat(idle, timeout time.Duration) *heartbeat {
	return &heartbeat{idle: idle, timeout: timeout, silent: clock.NewIdle(), wake: make(chan struct{}, 1)}
}

// hear notes that something came from the guest.
func (h *heartbeat) hear() { h.silent.Touch() }

// pause says whether silence means nothing from now on.
func (h *heartbeat) pause(paused bool) {
	h.mu.Lock()
	h.paused = paused
	if paused && h.cancel != nil {
		h.cancel()
	}
	h.mu.Unlock()
	h.hear() // the clock of the silence starts anew
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run beats until done is closed.
func (h *heartbeat) run(done <-chan struct{}) {
	timer := time.NewTimer(h.idle)
	defer timer.Stop()
	for {
		h.mu.Lock()
		paused := h.paused
		h.mu.Unlock()
		silent := h.silent.For()
		switch {
		case paused:
			timer.Reset(time.Hour)
		case silent < h.idle:
			timer.Reset(h.idle - silent)
		default:
			if !h.beat() {
				h.lost()
				return
			}
			continue
		}
		select {
		case <-done:
			return
		case <-h.wake:
		case <-timer.C:
		}
	}
}

// beat pings once. It is true when the guest answered, or a pause made the answer
// meaningless.
func (h *heartbeat) beat() bool {
	ctx, cancel := context.WithTimeout(context.Background(), h.timeout)
	defer cancel()
	h.mu.Lock()
	if h.paused {
		h.mu.Unlock()
		return true
	}
	h.cancel = cancel
	h.mu.Unlock()
	err := h.ping(ctx)
	h.mu.Lock()
	h.cancel = nil
	h.mu.Unlock()
	if err == nil {
		h.hear()
	}
	// Only a pause cancels before the time is over.
	return err == nil || errors.Is(ctx.Err(), context.Canceled)
}
