// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

const (
	// ackTimeout bounds an acknowledgement: it is a small call to a local machine.
	ackTimeout = 10 * time.Second
	// dialTimeout bounds one attempt to reach the agent.
	dialTimeout = 30 * time.Second
	// syncBytes makes a sync due before its time, so that a container that writes much
	// is not held up by a full spool in the guest.
	syncBytes = 1 << 20
	// firstBackoff and maxBackoff bound the pause before a connection or a disk that
	// failed is tried again.
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// Copy appends the container's output, after what is already on disk, to the log
// of this attempt, and acknowledges to the guest what a loss of power cannot take
// away any more. It blocks until the container has exited and all of its output is
// on disk (nil), or until ctx ends (its error). A lost connection, a guest that
// does not answer and a full disk are tried again with back-off until then; the
// guest keeps the output meanwhile.
//
// Other errors: ErrGuestOutput; provider.ErrNotFound when the guest does not have
// the container; one when the log is being written already. When Copy returns,
// whatever the outcome, a later Copy goes on where it ended.
func (s *Store) Copy(ctx context.Context, c provider.ContainerRef, dial provider.Dial) error {
	path, err := s.path(c)
	if err != nil {
		return err
	}
	log := s.newLogFile(path)
	if err := s.begin(path, log); err != nil {
		return err
	}
	defer s.finish(path)
	err = s.copy(ctx, path, log, c, dial)
	return errors.Join(err, log.end())
}

func (s *Store) copy(ctx context.Context, path string, log *logFile, c provider.ContainerRef, dial provider.Dial) error {
	logger := s.opts.Logger.With("podUID", c.PodUID, "container", c.Container, "attempt", c.Attempt)
	backoff := firstBackoff
	for {
		before := log.last()
		err := s.session(ctx, log, c, dial)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("copy output of container %q: %w", c.Container, context.Cause(ctx))
		case errors.Is(err, ErrGuestOutput):
			return fmt.Errorf("copy output of container %q: %w", c.Container, err)
		case connect.CodeOf(err) == connect.CodeNotFound:
			return fmt.Errorf("copy output of container %q: %w: %w", c.Container, provider.ErrNotFound, err)
		}
		if log.last() > before {
			backoff = firstBackoff
		}
		s.interrupted(path, err)
		logger.Warn("Copying of container output interrupted", "error", err, "retryAfter", backoff)
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// session copies over one connection. It is nil when all output is on disk.
func (s *Store) session(ctx context.Context, log *logFile, c provider.ContainerRef, dial provider.Dial) error {
	if err := log.open(); err != nil {
		return err
	}
	dialCtx, cancelDial := context.WithTimeout(ctx, dialTimeout)
	g, err := dial(dialCtx)
	cancelDial()
	if err != nil {
		return fmt.Errorf("reach agent: %w", err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	acks := &acknowledger{log: log, guest: g, id: c.ID, interval: s.opts.SyncInterval, due: make(chan struct{}, 1), dirty: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := acks.run(ctx); err != nil {
			cancel(err) // ends the stream below
		}
	})
	defer wg.Wait()
	defer cancel(nil)

	// A connection that dies silently does not end the stream by itself.
	wg.Go(func() {
		select {
		case <-g.Done:
			cancel(errors.New("connection to the agent lost"))
		case <-ctx.Done():
		}
	})

	stream, err := g.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: c.ID, AfterSeq: log.last(), Follow: true}))
	if err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	defer stream.Close()
	for stream.Receive() {
		records := stream.Msg().GetRecords()
		if len(records) > 0 && log.last() == 0 && s.opts.FirstOutput != nil {
			s.opts.FirstOutput(c, time.Now())
		}
		if err := log.append(records); err != nil {
			return err
		}
		acks.appended(records)
	}
	if err := stream.Err(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("read output: %w", err)
	}
	// The stream ended by itself: the container has exited and this was all. It is on
	// disk then, whether the guest still hears of it or not.
	if err := acks.flush(ctx); err != nil && !errors.Is(err, errAck) {
		return err
	}
	return nil
}

// errAck: the log is synced, but the guest could not be told.
var errAck = errors.New("acknowledge output")

// acknowledger syncs a log and acknowledges it, at intervals while there is
// something to acknowledge, and not at all otherwise.
type acknowledger struct {
	log      *logFile
	guest    *provider.Guest
	id       string
	interval time.Duration
	dirty    chan struct{} // something was appended
	due      chan struct{} // much was appended

	pending int // of the appending goroutine: bytes since due was last raised

	mu    sync.Mutex
	acked uint64 // guarded by mu
}

// appended notes that records are in the log.
func (a *acknowledger) appended(records []*agentv1.OutputRecord) {
	for _, r := range records {
		a.pending += len(r.GetData()) + 64 // a record has its own cost in the guest's spool
	}
	raise(a.dirty)
	if a.pending >= syncBytes {
		a.pending = 0
		raise(a.due)
	}
}

func raise(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (a *acknowledger) run(ctx context.Context) error {
	for {
		select {
		case <-a.dirty:
		case <-ctx.Done():
			return nil
		}
		timer := time.NewTimer(a.interval)
		select {
		case <-timer.C:
		case <-a.due:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		if err := a.flush(ctx); err != nil {
			return err
		}
	}
}

// flush syncs the log and acknowledges what it holds.
func (a *acknowledger) flush(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	seq, err := a.log.sync()
	if err != nil {
		return err
	}
	if seq <= a.acked {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	_, err = a.guest.Containers.AckOutput(ctx, connect.NewRequest(&agentv1.AckOutputRequest{Id: a.id, ThroughSeq: seq}))
	if err != nil {
		return fmt.Errorf("%w: %w", errAck, err)
	}
	a.acked = seq
	return nil
}
