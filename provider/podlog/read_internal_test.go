// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// mixedRecords has lines of several records, both streams, and a time for each
// record that is its number in seconds.
func mixedRecords() []*agentv1.OutputRecord {
	const out, err2 = agentv1.OutputStream_OUTPUT_STREAM_STDOUT, agentv1.OutputStream_OUTPUT_STREAM_STDERR
	records := []*agentv1.OutputRecord{
		{Stream: out, Data: []byte("one")},
		{Stream: err2, Data: []byte("two")},
		{Stream: out, Partial: true, Data: []byte("three-")},
		{Stream: out, Partial: true, Data: []byte("goes-")},
		{Stream: out, Data: []byte("on")},
		{Stream: out},
		{Stream: err2, Data: []byte("five")},
	}
	for i, r := range records {
		r.Seq, r.TimeUnixNano = uint64(i+1), int64(i+1)*1e9
	}
	return records
}

func TestRead(t *testing.T) {
	num := func(n int64) *int64 { return &n }
	unfinished := append(mixedRecords(), &agentv1.OutputRecord{Seq: 8, TimeUnixNano: 8e9, Stream: agentv1.OutputStream_OUTPUT_STREAM_STDOUT, Partial: true, Data: []byte("prompt> ")})
	for name, c := range map[string]struct {
		records []*agentv1.OutputRecord
		opts    ReadOptions
		want    string
	}{
		"all":                    {mixedRecords(), ReadOptions{}, "one\ntwo\nthree-goes-on\n\nfive\n"},
		"nothing there":          {nil, ReadOptions{}, ""},
		"stdout":                 {mixedRecords(), ReadOptions{Stream: StreamStdout}, "one\nthree-goes-on\n\n"},
		"stderr":                 {mixedRecords(), ReadOptions{Stream: StreamStderr}, "two\nfive\n"},
		"tail 0":                 {mixedRecords(), ReadOptions{Tail: num(0)}, ""},
		"tail 1":                 {mixedRecords(), ReadOptions{Tail: num(1)}, "five\n"},
		"tail 3 counts lines":    {mixedRecords(), ReadOptions{Tail: num(3)}, "three-goes-on\n\nfive\n"},
		"tail 4":                 {mixedRecords(), ReadOptions{Tail: num(4)}, "two\nthree-goes-on\n\nfive\n"},
		"tail 5 is all":          {mixedRecords(), ReadOptions{Tail: num(5)}, "one\ntwo\nthree-goes-on\n\nfive\n"},
		"tail more than all":     {mixedRecords(), ReadOptions{Tail: num(1 << 40)}, "one\ntwo\nthree-goes-on\n\nfive\n"},
		"tail with a part last":  {unfinished, ReadOptions{Tail: num(2)}, "five\nprompt> "},
		"tail of only that part": {unfinished, ReadOptions{Tail: num(1)}, "prompt> "},
		"since":                  {mixedRecords(), ReadOptions{Since: time.Unix(6, 0)}, "\nfive\n"},
		"timestamps once a line": {mixedRecords(), ReadOptions{Timestamps: true, Tail: num(3)},
			"1970-01-01T00:00:03.000000000Z three-goes-on\n1970-01-01T00:00:06.000000000Z \n1970-01-01T00:00:07.000000000Z five\n"},
		"limit 0":                 {mixedRecords(), ReadOptions{LimitBytes: num(0)}, ""},
		"limit within a line":     {mixedRecords(), ReadOptions{LimitBytes: num(6)}, "one\ntw"},
		"limit at a line's end":   {mixedRecords(), ReadOptions{LimitBytes: num(8)}, "one\ntwo\n"},
		"limit more than all":     {mixedRecords(), ReadOptions{LimitBytes: num(1 << 40)}, "one\ntwo\nthree-goes-on\n\nfive\n"},
		"follow of what is ended": {mixedRecords(), ReadOptions{Follow: true, Tail: num(1)}, "five\n"},
	} {
		// One file, and a file for each record: the result is the same.
		for _, maxBytes := range []int64{1 << 20, 1} {
			t.Run(fmt.Sprintf("%s/%d", name, maxBytes), func(t *testing.T) {
				s := New(t.TempDir(), Options{MaxFileBytes: maxBytes, MaxFiles: 100})
				path, err := s.path(testRef)
				if err != nil {
					t.Fatal(err)
				}
				if err := feed(s.newLogFile(path), c.records); err != nil {
					t.Fatal(err)
				}
				if got := contents(t, s, c.opts); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
			})
		}
	}
}

func TestReadLeavesOutDamage(t *testing.T) {
	s := New(t.TempDir(), Options{})
	path, err := s.path(testRef)
	if err != nil {
		t.Fatal(err)
	}
	if err := feed(s.newLogFile(path), mixedRecords()[:2]); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write(make([]byte, 100))
	f.WriteString("\nnot a log line\n")
	f.WriteString("1970-01-01T00:00:08Z stdout F kept\n1970-01-01T00:00:08Z stdout F torn")
	f.Close()
	if got := contents(t, s, ReadOptions{}); got != "one\ntwo\nkept\n" {
		t.Errorf("got %q", got)
	}
}

func TestReadErrors(t *testing.T) {
	s := New(t.TempDir(), Options{})
	if err := s.Read(t.Context(), testRef, ReadOptions{}, io.Discard); !errors.Is(err, ErrNoLog) {
		t.Errorf("no log: %v", err)
	}
	for _, c := range []provider.ContainerRef{{PodUID: "..", Container: "c"}, {PodUID: "u", Container: "../../x"}, {PodUID: "u", Container: "c", Attempt: -1}, {}} {
		if err := s.Read(t.Context(), c, ReadOptions{}, io.Discard); err == nil || errors.Is(err, ErrNoLog) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestFollow reads while records arrive, over rotations, to the end.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t.TempDir(), Options{MaxFileBytes: 100, MaxFiles: 100})
		path, err := s.path(testRef)
		if err != nil {
			t.Fatal(err)
		}
		l := s.newLogFile(path)
		if err := s.begin(path, l); err != nil {
			t.Fatal(err)
		}
		if err := l.open(); err != nil {
			t.Fatal(err)
		}
		records := mixedRecords()
		if err := l.append(records[:2]); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		done := make(chan error, 2)
		go func() { done <- s.Read(t.Context(), testRef, ReadOptions{Follow: true}, &out) }()
		synctest.Wait()
		if got := out.String(); got != "one\ntwo\n" {
			t.Fatalf("before more arrives: %q", got)
		}
		if err := l.append(records[2:4]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := out.String(); got != "one\ntwo\nthree-goes-" {
			t.Fatalf("after a part of a line: %q", got)
		}
		// A reader that goes away.
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- s.Read(ctx, testRef, ReadOptions{Follow: true}, io.Discard) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled: %v", err)
		}
		if err := l.append(records[4:]); err != nil {
			t.Fatal(err)
		}
		if err := l.end(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != plain(records) {
			t.Fatalf("at the end: %q", got)
		}
	})
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, Options{MaxFileBytes: 1})
	for attempt := range 2 {
		ref := testRef
		ref.Attempt = attempt
		path, err := s.path(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := feed(s.newLogFile(path), mixedRecords()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.RemoveAttempt(testRef); err != nil {
			t.Fatal(err)
		}
	}
	second := testRef
	second.Attempt = 1
	if s.Exists(testRef) || !s.Exists(second) {
		t.Fatal("the wrong attempt is gone")
	}
	left, err := filepath.Glob(filepath.Join(dir, "uid-1", "logs", "main", "0.*"))
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %q, %v", left, err)
	}
	for range 2 {
		if err := s.RemovePod("uid-1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "uid-1", "logs")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("logs of the pod: %v", err)
	}
	if err := s.RemovePod("../x"); err == nil {
		t.Fatal("a path was taken for a UID")
	}
}
