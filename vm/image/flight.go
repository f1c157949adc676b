// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"sync"
)

// flights runs work once for all who want the same at the same time. The work
// goes on while at least one waits and is cancelled when none does.
type flights[V any] struct {
	mu      sync.Mutex
	running map[string]*flight[V]
	closed  bool
	wg      sync.WaitGroup
}

type flight[V any] struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{}
	value   V
	err     error
}

// do waits for the work under key, which it starts if nobody did, and hands its
// value to use. No waiter's value is given up by release before the last one's use has
// returned. The work's context ends with base, not with ctx.
func (g *flights[V]) do(ctx, base context.Context, key string, work func(context.Context) (V, error), use func(V) error, release func(V)) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	f, ok := g.running[key]
	if !ok {
		workCtx, cancel := context.WithCancel(base)
		f = &flight[V]{cancel: cancel, done: make(chan struct{})}
		if g.running == nil {
			g.running = map[string]*flight[V]{}
		}
		g.running[key] = f
		g.wg.Go(func() {
			f.value, f.err = work(workCtx)
			g.mu.Lock()
			g.forget(key, f)
			abandoned := f.waiters == 0
			close(f.done)
			g.mu.Unlock()
			cancel()
			if abandoned && f.err == nil {
				release(f.value)
			}
		})
	}
	f.waiters++
	g.mu.Unlock()

	var err error
	select {
	case <-f.done:
		if err = f.err; err == nil {
			err = use(f.value)
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}

	g.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	finished := false
	select {
	case <-f.done:
		finished = true
	default:
	}
	if last && !finished {
		// Whoever comes now starts anew instead of joining work that is ending.
		g.forget(key, f)
		f.cancel()
	}
	g.mu.Unlock()
	if last && finished && f.err == nil {
		release(f.value)
	}
	return err
}

// forget takes f out of the running flights. g.mu is held.
func (g *flights[V]) forget(key string, f *flight[V]) {
	if g.running[key] == f {
		delete(g.running, key)
	}
}

// close refuses new work and returns when none is running any more.
func (g *flights[V]) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
