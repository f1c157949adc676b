// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// maxRecordBytes is CRI's limit of one log record's data.
	maxRecordBytes = 16 << 10
	// maxSegmentBytes is when the next segment file is begun.
	maxSegmentBytes = 1 << 20
	// recordHeader: length 4, sequence 8, time 8, stream 1, partial 1.
	recordHeader = 22
	// maxBatchRecords bounds the records of one message, for output of short lines.
	maxBatchRecords = 4096
	// spoolRetry is how often a write is tried again when the scratch disk is full
	// of something else.
	spoolRetry = time.Second
)

var (
	errSpoolClosed = errors.New("output is closed")
	errReplaced    = errors.New("another reader took over")
)

// record is one piece of output, see agentv1.OutputRecord.
type record struct {
	seq     uint64
	time    int64
	stream  uint8
	partial bool
	data    []byte
}

func (r *record) size() int64 { return recordHeader + int64(len(r.data)) }

func (r *record) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.data)))
	b = binary.BigEndian.AppendUint64(b, r.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(r.time))
	partial := byte(0)
	if r.partial {
		partial = 1
	}
	b = append(b, r.stream, partial)
	return append(b, r.data...)
}

// segment is one file of a spool, named after its first sequence number.
type segment struct {
	path        string
	first, last uint64 // last < first: empty
	size        int64
}

// spool keeps a container's output in segment files until it is acknowledged. It
// is bounded: when it is full, append blocks until there is room.
type spool struct {
	dir string
	max int64 // bytes of all segments
	seg int64 // bytes of one
	// lossy drops the oldest output instead of letting append wait.
	lossy bool

	mu       sync.Mutex
	segments []*segment // guarded by mu, like all below; the last is being written
	file     *os.File   // of the last segment
	total    int64
	last     uint64 // sequence number of the last record
	finished bool   // no more output will come
	closed   bool
	reader   *spoolReader
	changed  chan struct{} // closed and replaced at every change
}

// newSpool makes an empty spool in dir, which it makes and owns.
func newSpool(dir string, maxBytes int64) (*spool, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make output directory: %w", err)
	}
	return &spool{
		dir: dir, max: max(maxBytes, 4*(maxRecordBytes+recordHeader)), seg: max(min(maxSegmentBytes, maxBytes/8), 1),
		changed: make(chan struct{}),
	}, nil
}

// change tells everyone who waits. mu is held.
func (s *spool) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// append adds a record. It blocks while the spool is full, and fails with
// errSpoolClosed once the spool is closed.
func (s *spool) append(stream uint8, at time.Time, partial bool, data []byte) error {
	r := record{time: at.UnixNano(), stream: stream, partial: partial, data: data}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed {
			return errSpoolClosed
		}
		var retry <-chan time.Time
		if s.total+r.size() <= s.max {
			r.seq = s.last + 1
			err := s.write(&r)
			if err == nil {
				s.last++
				s.change()
				return nil
			}
			if s.lossy {
				return nil // there is no room for it, and nobody waits for it
			}
			// The scratch disk may be full of other things: output waits, as it does
			// for the reader.
			retry = time.After(spoolRetry)
		} else if s.lossy && len(s.segments) > 1 {
			s.dropFirst()
			continue
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-retry:
		}
		s.mu.Lock()
	}
}

// write puts one record into the last segment. mu is held.
func (s *spool) write(r *record) error {
	if n := len(s.segments); n == 0 || s.segments[n-1].size >= s.seg {
		g := &segment{path: filepath.Join(s.dir, fmt.Sprintf("%020d", r.seq)), first: r.seq, last: r.seq - 1}
		f, err := os.OpenFile(g.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		if s.file != nil {
			_ = s.file.Close()
		}
		s.file = f
		s.segments = append(s.segments, g)
	}
	g := s.segments[len(s.segments)-1]
	if _, err := s.file.WriteAt(r.append(make([]byte, 0, r.size())), g.size); err != nil {
		return err
	}
	g.last = r.seq
	g.size += r.size()
	s.total += r.size()
	return nil
}

// finish says that no more output will come.
func (s *spool) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = true
	s.change()
}

// lastSeq is the sequence number of the last record, 0 before the first.
func (s *spool) lastSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// ack forgets the records up to through, whole segments at a time.
func (s *spool) ack(through uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if through > s.last {
		return fmt.Errorf("%w: output %d is not captured yet, the last is %d", ErrInvalid, through, s.last)
	}
	for len(s.segments) > 0 && s.segments[0].last <= through {
		if len(s.segments) == 1 {
			if s.segments[0].size < s.seg {
				break // it is still being filled
			}
			_ = s.file.Close()
			s.file = nil
		}
		s.dropFirst()
	}
	s.change()
	return nil
}

// dropFirst deletes the oldest segment. mu is held.
func (s *spool) dropFirst() {
	g := s.segments[0]
	s.segments = s.segments[1:]
	s.total -= g.size
	_ = os.Remove(g.path)
}

// close ends all readers and writers and deletes the files.
func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.change()
		if s.file != nil {
			_ = s.file.Close()
			s.file = nil
		}
	}
	return os.RemoveAll(s.dir)
}

// read opens the reader of the records after a sequence number. It replaces the
// reader before it.
func (s *spool) read(after uint64) *spoolReader {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reader = &spoolReader{s: s, after: after}
	s.change()
	return s.reader
}

// spoolReader reads a spool in order. It is for one goroutine.
type spoolReader struct {
	s     *spool
	after uint64 // the last record that was returned

	file   *os.File // of the segment that begins with first
	buf    *bufio.Reader
	first  uint64
	offset int64
}

// next returns the records that follow, at most maxBytes of data but at least one
// record. It returns none, and what to wait for, when there is none yet; io.EOF
// when there will be none; errReplaced and errSpoolClosed.
func (r *spoolReader) next(maxBytes int) ([]record, <-chan struct{}, error) {
	for {
		r.s.mu.Lock()
		changed := r.s.changed
		var g segment
		found := false
		for _, c := range r.s.segments {
			if c.last > r.after {
				g, found = *c, true
				break
			}
		}
		var err error
		switch {
		case r.s.closed:
			err = errSpoolClosed
		case r.s.reader != r:
			err = errReplaced
		case !found && r.s.finished:
			err = io.EOF
		}
		r.s.mu.Unlock()
		if err != nil || !found {
			return nil, changed, err
		}
		records, err := r.from(g, maxBytes)
		if errors.Is(err, os.ErrNotExist) {
			continue // acknowledged meanwhile
		}
		if err != nil || len(records) > 0 {
			return records, changed, err
		}
	}
}

// from reads records of one segment as it was when g was copied.
func (r *spoolReader) from(g segment, maxBytes int) ([]record, error) {
	if r.file == nil || r.first != g.first {
		r.close()
		f, err := os.Open(g.path)
		if err != nil {
			return nil, err
		}
		r.file, r.first, r.offset = f, g.first, 0
	}
	if r.buf == nil {
		r.buf = bufio.NewReaderSize(r.file, 32<<10)
	}
	var records []record
	for size := 0; r.offset < g.size && size < maxBytes; {
		var h [recordHeader]byte
		if _, err := io.ReadFull(r.buf, h[:]); err != nil {
			return nil, fmt.Errorf("read output: %w", err)
		}
		n := binary.BigEndian.Uint32(h[:])
		if n > maxRecordBytes {
			return nil, fmt.Errorf("read output: record of %d bytes", n)
		}
		rec := record{
			seq:    binary.BigEndian.Uint64(h[4:]),
			time:   int64(binary.BigEndian.Uint64(h[12:])),
			stream: h[20], partial: h[21] != 0,
		}
		r.offset += recordHeader + int64(n)
		if rec.seq <= r.after {
			if _, err := r.buf.Discard(int(n)); err != nil {
				return nil, fmt.Errorf("read output: %w", err)
			}
			continue
		}
		rec.data = make([]byte, n)
		if _, err := io.ReadFull(r.buf, rec.data); err != nil {
			return nil, fmt.Errorf("read output: %w", err)
		}
		r.after = rec.seq
		size += int(n)
		records = append(records, rec)
		if len(records) >= maxBatchRecords {
			break
		}
	}
	return records, nil
}

func (r *spoolReader) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
	r.file, r.buf = nil, nil
}
