// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

var errCrash = errors.New("the process was killed here")

// crashFS ends the process at its nth change: that one happens in part or not at
// all, and nothing after it happens.
type crashFS struct {
	hostFS
	left    int // changes until the end
	portion int // percent of the last write that reaches the file
	dead    bool
}

// step is an error at the end; last tells the first time.
func (c *crashFS) step() (last bool, err error) {
	if c.dead {
		return false, errCrash
	}
	if c.left--; c.left < 0 {
		c.dead = true
		return true, errCrash
	}
	return false, nil
}

func (c *crashFS) MkdirAll(dir string) error {
	if _, err := c.step(); err != nil {
		return err
	}
	return c.hostFS.MkdirAll(dir)
}

func (c *crashFS) OpenAppend(path string) (appendFile, error) {
	if _, err := c.step(); err != nil {
		return nil, err
	}
	f, err := c.hostFS.OpenAppend(path)
	return &crashFile{appendFile: f, fs: c}, err
}

func (c *crashFS) Rename(from, to string) error {
	if _, err := c.step(); err != nil {
		return err
	}
	return c.hostFS.Rename(from, to)
}

func (c *crashFS) Remove(path string) error {
	if _, err := c.step(); err != nil {
		return err
	}
	return c.hostFS.Remove(path)
}

func (c *crashFS) SyncDir(dir string) error {
	if _, err := c.step(); err != nil {
		return err
	}
	return nil
}

type crashFile struct {
	appendFile
	fs *crashFS
}

func (f *crashFile) Write(b []byte) (int, error) {
	last, err := f.fs.step()
	if last {
		n, _ := f.appendFile.Write(b[:len(b)*f.fs.portion/100])
		return n, err
	}
	if err != nil {
		return 0, err
	}
	return f.appendFile.Write(b)
}

func (f *crashFile) Truncate(size int64) error {
	if _, err := f.fs.step(); err != nil {
		return err
	}
	return f.appendFile.Truncate(size)
}

func (f *crashFile) Sync() error {
	if _, err := f.fs.step(); err != nil {
		return err
	}
	return nil // the kernel outlives the process
}

var testRef = provider.ContainerRef{PodUID: "uid-1", Container: "main", ID: "main-0"}

func testRecords(n int) []*agentv1.OutputRecord {
	records := make([]*agentv1.OutputRecord, n)
	for i := range records {
		records[i] = &agentv1.OutputRecord{
			Seq: uint64(i + 1), TimeUnixNano: int64(1e18) + int64(i)*1e6, Stream: agentv1.OutputStream_OUTPUT_STREAM_STDOUT,
			Data: fmt.Appendf(nil, "line %d %s", i+1, strings.Repeat("x", i%40)),
		}
	}
	return records
}

func plain(records []*agentv1.OutputRecord) string {
	var b strings.Builder
	for _, r := range records {
		b.Write(r.GetData())
		if !r.GetPartial() {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// feed appends what the log lacks, in batches of several sizes, as a guest would.
func feed(l *logFile, records []*agentv1.OutputRecord) error {
	if err := l.open(); err != nil {
		return err
	}
	for batch := 1; ; batch = batch%7 + 1 {
		rest := records[l.last():]
		if len(rest) == 0 {
			return l.end()
		}
		if err := l.append(rest[:min(batch, len(rest))]); err != nil {
			return err
		}
		if batch%3 == 0 {
			if _, err := l.sync(); err != nil {
				return err
			}
		}
	}
}

func contents(t *testing.T, s *Store, opts ReadOptions) string {
	t.Helper()
	var out bytes.Buffer
	if err := s.Read(t.Context(), testRef, opts, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestEveryRecordOnceAfterAnyCrash kills the process at each of its changes to the
// disk, once, and again in the recovery from it.
func TestEveryRecordOnceAfterAnyCrash(t *testing.T) {
	records := testRecords(45)
	want := plain(records)
	for _, maxFiles := range []int{100, 2} {
		for _, portion := range []int{0, 55, 100} {
			if maxFiles == 2 && portion != 55 {
				continue // the deletions are what is new
			}
			for n, done := 0, false; !done; n++ {
				dir := t.TempDir()
				now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
				opts := Options{MaxFileBytes: 900, MaxFiles: maxFiles, now: func() time.Time { return now }}
				path, err := New(dir, opts).path(testRef)
				if err != nil {
					t.Fatal(err)
				}
				for round := range 4 { // killed at n, then again a little later each time
					fs := &crashFS{left: n + 3*round, portion: portion}
					opts.fs = fs
					err := feed(New(dir, opts).newLogFile(path), records)
					if err != nil && !errors.Is(err, errCrash) {
						t.Fatalf("killed at %d: %v", n, err)
					}
					done = done || round == 0 && !fs.dead
				}
				opts.fs = nil
				s := New(dir, opts)
				if err := feed(s.newLogFile(path), records); err != nil {
					t.Fatalf("killed at change %d, portion %d: go on: %v", n, portion, err)
				}
				got := contents(t, s, ReadOptions{})
				if maxFiles == 100 && got != want {
					t.Fatalf("killed at change %d, portion %d: log is\n%s\nwant\n%s", n, portion, got, want)
				}
				if !strings.HasSuffix(want, got) || len(got) < 200 {
					t.Fatalf("killed at change %d, portion %d, %d files: log is\n%s\nwant the end of\n%s", n, portion, maxFiles, got, want)
				}
				if names, err := rotatedFiles(s.newLogFile(path).dir, "0.log"); err != nil || len(names) > maxFiles-1 {
					t.Fatalf("killed at change %d: rotated files %q, %v", n, names, err)
				}
			}
		}
	}
}

// TestLogGoesOnAfterFault makes each change fail once without a crash: the same log
// is opened again and misses nothing, and a reader that was there all the time sees
// every line once.
func TestLogGoesOnAfterFault(t *testing.T) {
	records := testRecords(60)
	for n := range 60 {
		dir := t.TempDir()
		fs := &crashFS{left: n, portion: 30}
		s := New(dir, Options{MaxFileBytes: 900, MaxFiles: 100, fs: fs})
		path, err := s.path(testRef)
		if err != nil {
			t.Fatal(err)
		}
		l := s.newLogFile(path)
		if err := s.begin(path, l); err != nil {
			t.Fatal(err)
		}
		for l.open() != nil {
			fs.dead, fs.left = false, 1000
		}
		var out bytes.Buffer
		followed := make(chan error)
		go func() { followed <- s.Read(t.Context(), testRef, ReadOptions{Follow: true}, &out) }()
		for err := feed(l, records); err != nil; err = feed(l, records) {
			fs.dead, fs.left = false, 1000
		}
		if err := <-followed; err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != plain(records) {
			t.Fatalf("fault at change %d: followed\n%s", n, got)
		}
	}
}
