// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"os"
	"time"
)

// pace keeps a reader slow: so many bytes per second, and none while there is something
// better to do. Not safe for concurrent use.
type pace struct {
	ctx       context.Context //nolint:containedctx // of the one call that reads
	perSecond int64           // 0 is no limit
	busy      func() bool     // nil is never

	allowed int64 // may be read before the next look at the clock
	read    int64
}

const (
	// paceSteps is how often in a second a paced reader stops and looks whether it is in
	// the way. A read that a pod waits for then waits for a twentieth of a second's worth
	// at most.
	paceSteps = 20
	// busyPause is how often a paced reader looks whether what it makes room for is over.
	busyPause = 250 * time.Millisecond
)

// take waits until n more bytes may be read.
func (p *pace) take(n int) error {
	p.allowed -= int64(n)
	for p.allowed < 0 {
		if err := p.rest(); err != nil {
			return err
		}
	}
	return p.ctx.Err()
}

// rest waits for the next portion.
func (p *pace) rest() error {
	for p.busy != nil && p.busy() {
		if err := pauseFor(p.ctx, busyPause); err != nil {
			return err
		}
	}
	if p.perSecond <= 0 {
		p.allowed += 64 << 20 // a portion after which to look again
		return p.ctx.Err()
	}
	p.allowed += max(p.perSecond/paceSteps, 1)
	return pauseFor(p.ctx, time.Second/paceSteps)
}

func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// pacedFile is a file that is read at a pace and leaves the host's page cache as it was:
// what restores need stays in it, and what only the reader needed does not push that out.
type pacedFile struct {
	*os.File
	pace   *pace
	offset int64 // of Read
}

// Read and ReadAt are io.Reader and io.ReaderAt. Nothing else of the file moves its offset
// between two Reads.
func (f *pacedFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.offset)
	f.offset += int64(n)
	return n, err
}

// ReadAt is io.ReaderAt.
func (f *pacedFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.pace.take(len(p)); err != nil {
		return 0, err
	}
	restore := sparePageCache(f.File, off, int64(len(p)))
	defer restore()
	n, err := f.File.ReadAt(p, off)
	f.pace.read += int64(n)
	return n, err
}
