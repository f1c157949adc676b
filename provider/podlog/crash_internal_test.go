// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

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

// TestEveryRecordOnceAfterAnyCrash: the process, or the host, crashes at each change to the
// disk, and again a little later in what follows: every record is in the log once.
func TestEveryRecordOnceAfterAnyCrash(t *testing.T) {
	records := testRecords(30)
	want := plain(records)
	for maxFiles, modes := range map[int][]durabletest.Mode{
		100: {durabletest.Crash, durabletest.CrashLosingData, durabletest.CrashLosingAll},
		2:   {durabletest.Crash}, // the deletions are what is new
	} {
		t.Run(fmt.Sprint(maxFiles), func(t *testing.T) {
			t.Parallel()
			durabletest.Every(t, modes, 30, func(t *testing.T, disk *durabletest.FS, dir string) {
				now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
				opts := Options{MaxFileBytes: 900, MaxFiles: maxFiles, FS: disk, now: func() time.Time { return now }}
				path, err := New(dir, opts).path(testRef)
				if err != nil {
					t.Fatal(err)
				}
				for round := range 3 {
					if err := feed(New(dir, opts).newLogFile(path), records); err != nil && !errors.Is(err, durabletest.ErrCrashed) {
						t.Fatal(err)
					}
					disk.Restart(t)
					disk = durabletest.New(t, durable.Host, dir, durabletest.Fault{At: 4 + 3*round, Mode: durabletest.Crashes[round]})
					opts.FS = disk
				}
				disk.Heal()
				s := New(dir, opts)
				if err := feed(s.newLogFile(path), records); err != nil {
					t.Fatalf("go on: %v", err)
				}
				got := contents(t, s, ReadOptions{})
				if maxFiles == 100 && got != want {
					t.Fatalf("log is\n%s\nwant\n%s", got, want)
				}
				if !strings.HasSuffix(want, got) || len(got) < 200 {
					t.Fatalf("log is\n%s\nwant the end of\n%s", got, want)
				}
				l := s.newLogFile(path)
				if names, err := rotatedFiles(l.dir, "0.log"); err != nil || len(names) > maxFiles-1 {
					t.Fatalf("rotated files %q, %v", names, err)
				}
				left, err := filepath.Glob(filepath.Join(l.dir, durable.TempPrefix+"*"))
				if err != nil || len(left) != 0 {
					t.Fatalf("left %q, %v", left, err)
				}
			})
		})
	}
}

// TestLogGoesOnAfterFault makes each change fail without a crash: the same log is opened
// again and misses nothing, and a reader that was there all the time sees every line once.
func TestLogGoesOnAfterFault(t *testing.T) {
	records := testRecords(40)
	durabletest.Every(t, []durabletest.Mode{durabletest.EIO, durabletest.Full}, 40, func(t *testing.T, disk *durabletest.FS, dir string) {
		s := New(dir, Options{MaxFileBytes: 900, MaxFiles: 100, FS: disk})
		path, err := s.path(testRef)
		if err != nil {
			t.Fatal(err)
		}
		l := s.newLogFile(path)
		if err := s.begin(path, l); err != nil {
			t.Fatal(err)
		}
		for l.open() != nil {
			disk.Heal()
		}
		var out bytes.Buffer
		followed := make(chan error)
		go func() { followed <- s.Read(t.Context(), testRef, ReadOptions{Follow: true}, &out) }()
		for err := feed(l, records); err != nil; err = feed(l, records) {
			if !s.Blocked(testRef) {
				t.Errorf("nothing is said of %v", err)
			}
			disk.Heal()
		}
		if err := <-followed; err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != plain(records) {
			t.Fatalf("followed\n%s", got)
		}
	})
}

// What is written of a log and cannot be read does not get better by waiting: nobody keeps a
// machine for it, as for a disk that is full.
func TestDamagedPositionKeepsNobody(t *testing.T) {
	for _, damaged := range []string{`{"base":`, `{"rotated":"../other"}`} {
		s := New(t.TempDir(), Options{})
		path, err := s.path(testRef)
		if err != nil {
			t.Fatal(err)
		}
		l := s.newLogFile(path)
		if err := s.begin(path, l); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(l.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(l.positionPath(), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.open(); !errors.Is(err, errDamaged) || s.Blocked(testRef) {
			t.Errorf("%s: %v, blocked %v", damaged, err, s.Blocked(testRef))
		}
	}
}
