// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/vk-firkin/vk-firkin/provider"
)

// ReadOptions select what Read writes. They mean what they mean in the kubelet.
type ReadOptions struct {
	// Follow goes on with what comes later, until the container's output is complete.
	Follow bool
	// Tail begins with the last so many lines; nil means all. A line that was cut into
	// several records is one.
	Tail *int64
	// LimitBytes ends after so many bytes, within a line if need be; nil means never.
	LimitBytes *int64
	// Since leaves out what is older.
	Since time.Time
	// Timestamps puts the time before each line.
	Timestamps bool
	// Stream leaves out the other stream; empty means both.
	Stream string
}

// errLimit ends a read that has written all it may.
var errLimit = errors.New("byte limit reached")

// Read writes the container's output to w, oldest first, from all files that
// rotation has left. Each Write to w holds what is there at the time, so a w that
// passes it on at once makes following prompt; it waits for news without polling.
// It returns nil at the end of the output and at the byte limit; ctx's error when
// ctx ends; ErrNoLog; and w's errors.
//
// What was damaged on disk is left out.
func (s *Store) Read(ctx context.Context, c provider.ContainerRef, opts ReadOptions, w io.Writer) error {
	path, err := s.path(c)
	if err != nil {
		return err
	}
	log := s.liveLog(path)
	if log == nil {
		// Nobody writes it: what is on disk is all there is.
		if !s.Exists(c) {
			return fmt.Errorf("%w: %q, attempt %d", ErrNoLog, c.Container, c.Attempt)
		}
		log = s.newLogFile(path)
		if err := log.view(); err != nil {
			return err
		}
	}
	out := &lineWriter{w: bufio.NewWriterSize(w, 32<<10), opts: opts, newLine: true, left: -1}
	if opts.LimitBytes != nil {
		out.left = *opts.LimitBytes
	}
	err = read(ctx, log, opts, out)
	if errors.Is(err, errLimit) {
		err = nil
	}
	return errors.Join(err, out.w.Flush())
}

// view fills in what a reader needs of a log that nobody writes.
func (l *logFile) view() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rotated, err := rotatedFiles(l.dir, l.name)
	if err != nil {
		return fmt.Errorf("list log files: %w", err)
	}
	_, size, _, err := countLines(l.current())
	if err != nil {
		return err
	}
	l.rotated, l.currentID, l.size, l.ended = rotated, len(rotated), size, true
	return nil
}

// state is what a reader sees of a log at one time.
type state struct {
	firstID, currentID int
	size               int64 // of the current file
	ended              bool
	changed            <-chan struct{}
}

func (l *logFile) state() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return state{firstID: l.currentID - len(l.rotated), currentID: l.currentID, size: l.size, ended: l.ended, changed: l.changed}
}

// openSegment opens the file with this number, or the oldest that is left.
func (l *logFile) openSegment(id int) (*segment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id = min(max(id, l.currentID-len(l.rotated)), l.currentID)
	path := l.current()
	if id < l.currentID {
		path = filepath.Join(l.dir, l.rotated[len(l.rotated)-(l.currentID-id)])
	}
	f, err := os.Open(filepath.Clean(path))
	if errors.Is(err, os.ErrNotExist) && id == l.currentID {
		return &segment{id: id}, nil // no record yet, or none since the rotation
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &segment{id: id, file: f}, nil
}

// segment is one file of a log, open for reading.
type segment struct {
	id   int
	file *os.File // nil while there is none
	pos  int64
}

func (s *segment) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// lines calls each with the lines from pos to limit (the file's end if negative),
// without their line breaks, and moves pos behind them. What follows the last line
// break, and lines that are too long to be lines, are left out.
func (s *segment) lines(limit int64, each func(b []byte, end int64) error) error {
	if s.file == nil {
		return nil
	}
	if limit < 0 {
		info, err := s.file.Stat()
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		limit = info.Size()
	}
	if limit <= s.pos {
		return nil
	}
	r := bufio.NewReaderSize(io.NewSectionReader(s.file, s.pos, limit-s.pos), maxLineBytes)
	skip := false
	for {
		b, err := r.ReadSlice('\n')
		switch {
		case err == nil:
		case errors.Is(err, bufio.ErrBufferFull):
			s.pos += int64(len(b))
			skip = true
			continue
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("read log: %w", err)
		}
		s.pos += int64(len(b))
		if skip {
			skip = false
			continue
		}
		if err := each(b[:len(b)-1], s.pos); err != nil {
			return err
		}
	}
}

func read(ctx context.Context, log *logFile, opts ReadOptions, out *lineWriter) error {
	start := log.state()
	seg, err := findTail(ctx, log, start, opts.Tail)
	if err != nil {
		return err
	}
	defer func() { seg.close() }()
	for {
		now := log.state()
		if !opts.Follow {
			now = start // what came since is not asked for
			now.ended = true
		}
		if !opts.Follow && seg.id > start.currentID {
			return nil // what was asked for was rotated away while we read
		}
		if seg.file == nil && (seg.id < now.currentID || now.size > 0) {
			if seg, err = log.openSegment(seg.id); err != nil {
				return err
			}
		}
		limit := int64(-1) // a rotated file is complete
		if seg.id >= now.currentID {
			limit = now.size
		}
		if err := seg.lines(limit, func(b []byte, _ int64) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return out.line(b)
		}); err != nil {
			return err
		}
		if seg.id < now.currentID {
			next, err := log.openSegment(seg.id + 1)
			if err != nil {
				return err
			}
			seg.close()
			seg = next
			continue
		}
		if now.ended {
			return nil
		}
		if err := out.w.Flush(); err != nil {
			return err
		}
		select {
		case <-now.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// findTail opens the file with the first of the last n lines and moves to it. A nil
// n means all lines.
func findTail(ctx context.Context, log *logFile, at state, n *int64) (*segment, error) {
	if n == nil {
		return log.openSegment(at.firstID)
	}
	if *n <= 0 {
		seg, err := log.openSegment(at.currentID)
		if err == nil && seg.id == at.currentID {
			seg.pos = at.size
		}
		return seg, err
	}
	// From the newest file back: find the ends of lines, until there is one more than
	// asked for. What follows the n+1st from the end is the tail.
	need := *n
	newest := true // no record was seen yet
	for id := at.currentID; ; id-- {
		seg, err := log.openSegment(id)
		if err != nil {
			return nil, err
		}
		limit := int64(-1)
		if seg.id >= at.currentID {
			limit = at.size
		}
		var ends []int64
		some, last := false, true // whether there is a record, and the last one ends a line
		err = seg.lines(limit, func(b []byte, end int64) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			some = true
			if last = endsLine(b); last {
				ends = append(ends, end)
			}
			return nil
		})
		if err != nil {
			seg.close()
			return nil, err
		}
		if newest && !last {
			need-- // the unfinished line at the end is one of them
		}
		newest = newest && !some
		if have := int64(len(ends)); have > need {
			seg.pos = ends[have-need-1]
			return seg, nil
		}
		need -= int64(len(ends))
		if seg.id <= at.firstID || seg.id > id { // the oldest, or it was rotated away
			seg.pos = 0
			return seg, nil
		}
		seg.close()
	}
}

// lineWriter writes records as the kubelet shows them.
type lineWriter struct {
	w       *bufio.Writer
	opts    ReadOptions
	newLine bool  // the last thing written ended a line
	left    int64 // bytes that may still be written; negative means any number
}

func (o *lineWriter) line(b []byte) error {
	l, ok := parseLine(b)
	if !ok || l.time.Before(o.opts.Since) || o.opts.Stream != "" && o.opts.Stream != l.stream {
		return nil
	}
	if o.opts.Timestamps && o.newLine {
		stamp := l.time.AppendFormat(make([]byte, 0, len(timeFormat)+1), timeFormat)
		if err := o.write(append(stamp, ' ')); err != nil {
			return err
		}
	}
	if err := o.write(l.data); err != nil {
		return err
	}
	o.newLine = !l.partial
	if o.newLine {
		return o.write([]byte{'\n'})
	}
	return nil
}

func (o *lineWriter) write(b []byte) error {
	if o.left < 0 {
		_, err := o.w.Write(b)
		return err
	}
	n := min(int64(len(b)), o.left)
	if _, err := o.w.Write(b[:n]); err != nil {
		return err
	}
	if o.left -= n; o.left == 0 {
		return errLimit
	}
	return nil
}
