// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newTestSpool(t *testing.T, maxBytes int64) *spool {
	t.Helper()
	s, err := newSpool(filepath.Join(t.TempDir(), "spool"), maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	return s
}

func fill(t *testing.T, s *spool, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := s.append(1, time.Unix(0, int64(i)), i%2 == 0, fmt.Appendf(nil, "record %d", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// all reads until there is nothing more.
func all(t *testing.T, r *spoolReader, batch int) []record {
	t.Helper()
	var out []record
	for {
		records, _, err := r.next(batch)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if len(records) == 0 {
			return out
		}
		out = append(out, records...)
	}
}

func TestSpoolReadsFromAnywhere(t *testing.T) {
	const n = 2000
	s := newTestSpool(t, 1<<20)
	s.seg = 4 << 10
	fill(t, s, 1, n)
	for _, after := range []uint64{0, 1, 500, n - 1, n} {
		for _, batch := range []int{1, 100, 1 << 20} {
			got := all(t, s.read(after), batch)
			if len(got) != n-int(after) {
				t.Fatalf("after %d: %d records", after, len(got))
			}
			for i, r := range got {
				want := int(after) + i + 1
				if r.seq != uint64(want) || string(r.data) != fmt.Sprintf("record %d", want) || r.time != int64(want) || r.partial != (want%2 == 0) || r.stream != 1 {
					t.Fatalf("after %d: record %d is %+v", after, i, r)
				}
			}
		}
	}
}

// TestSpoolCrashes: a host that dies between any reads and acknowledgements, and
// resumes from what it made durable, gets every record once.
func TestSpoolCrashes(t *testing.T) {
	const n = 3000
	s := newTestSpool(t, 64<<10)
	s.seg = 2 << 10
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 1; i <= n; i++ {
			if err := s.append(2, time.Unix(0, int64(i)), false, bytes.Repeat([]byte{byte(i)}, i%300)); err != nil {
				t.Error(err)
				return
			}
		}
		s.finish()
	})
	var durable []uint64
	random := rand.New(rand.NewPCG(1, 2))
	for done := false; !done; {
		last := uint64(len(durable))
		r := s.read(last)
		for range random.IntN(5) {
			records, changed, err := r.next(1 + random.IntN(5000))
			if errors.Is(err, io.EOF) {
				done = true
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(records) == 0 {
				<-changed
				continue
			}
			for _, rec := range records {
				if random.IntN(50) == 0 {
					break // dies with the rest of the batch in memory
				}
				durable = append(durable, rec.seq)
			}
			if random.IntN(2) == 0 {
				if err := s.ack(uint64(len(durable))); err != nil {
					t.Fatal(err)
				}
			}
			if uint64(len(durable)) != records[len(records)-1].seq {
				break
			}
		}
		r.close()
		if err := s.ack(uint64(len(durable))); err != nil {
			t.Fatal(err)
		}
	}
	writer.Wait()
	if len(durable) != n {
		t.Fatalf("%d records, want %d", len(durable), n)
	}
	for i, seq := range durable {
		if seq != uint64(i+1) {
			t.Fatalf("record %d has number %d", i+1, seq)
		}
	}
}

func TestSpoolIsBounded(t *testing.T) {
	const limit = 128 << 10
	s := newTestSpool(t, limit)
	blocked := make(chan int)
	go func() {
		defer close(blocked)
		for i := 0; ; i++ {
			if err := s.append(1, time.Now(), false, make([]byte, 1000)); err != nil {
				if !errors.Is(err, errSpoolClosed) {
					t.Error(err)
				}
				return
			}
			if i == 200 {
				blocked <- i
			}
		}
	}()
	r := s.read(0)
	for n := 0; n < 100; {
		records, changed, err := r.next(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		if n += len(records); len(records) == 0 {
			<-changed
		}
	}
	select {
	case <-blocked:
		t.Fatal("more was written than the limit allows")
	case <-time.After(20 * time.Millisecond):
	}
	if size := dirSize(t, s.dir); size > limit {
		t.Errorf("%d bytes on disk, at most %d are allowed", size, limit)
	}
	// Room for the writer comes only from acknowledgements.
	for done := false; !done; {
		if err := s.ack(s.lastSeq()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-blocked:
			done = true
		case <-time.After(time.Millisecond):
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	<-blocked
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files are left: %v", err)
	}
}

func dirSize(t *testing.T, dir string) (size int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	return size
}

func TestSpoolOneReader(t *testing.T) {
	s := newTestSpool(t, 1<<20)
	fill(t, s, 1, 3)
	first := s.read(0)
	second := s.read(0)
	if _, _, err := first.next(100); !errors.Is(err, errReplaced) {
		t.Errorf("the former reader: %v", err)
	}
	if got := all(t, second, 100); len(got) != 3 {
		t.Errorf("the new reader has %d records", len(got))
	}
	if err := s.ack(4); !errors.Is(err, ErrInvalid) {
		t.Errorf("acknowledging what is not there: %v", err)
	}
	s.finish()
	if _, _, err := second.next(100); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestCapture(t *testing.T) {
	long := strings.Repeat("x", maxRecordBytes)
	for _, test := range []struct {
		name, in string
		want     []string // "F " and "P " as CRI's tags
	}{
		{name: "nothing"},
		{name: "lines", in: "a\nb\n", want: []string{"F a", "F b"}},
		{name: "empty lines", in: "\n\n", want: []string{"F ", "F "}},
		{name: "no newline at the end", in: "a\nb", want: []string{"F a", "P b"}},
		{name: "carriage return stays", in: "a\r\n", want: []string{"F a\r"}},
		{name: "longest line", in: long[1:] + "\n", want: []string{"F " + long[1:]}},
		{name: "just too long", in: long + "\n", want: []string{"P " + long, "F "}},
		{name: "much too long", in: long + long + "yz\n", want: []string{"P " + long, "P " + long, "F yz"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			err := capture(strings.NewReader(test.in), 1, func(_ uint8, _ time.Time, partial bool, data []byte) error {
				tag := "F "
				if partial {
					tag = "P "
				}
				got = append(got, tag+string(data))
				return nil
			})
			if err != nil || len(got) != len(test.want) {
				t.Fatalf("%d records %v, want %d", len(got), err, len(test.want))
			}
			for i := range got {
				if got[i] != test.want[i] {
					t.Errorf("record %d: %.20q, want %.20q", i, got[i], test.want[i])
				}
			}
		})
	}
}

// TestLossySpool: it never blocks, keeps the end, and is bounded.
func TestLossySpool(t *testing.T) {
	s := newTestSpool(t, 64<<10)
	s.lossy = true
	s.max = 16 << 10
	s.seg = 2 << 10
	const n = 5000
	fill(t, s, 1, n)
	got := all(t, s.read(0), 1<<20)
	if len(got) < 100 || got[0].seq == 1 || got[len(got)-1].seq != n {
		t.Fatalf("%d records are left, from %d to %d", len(got), got[0].seq, got[len(got)-1].seq)
	}
	for i, r := range got {
		if r.seq != got[0].seq+uint64(i) || string(r.data) != fmt.Sprintf("record %d", r.seq) {
			t.Fatalf("record %d is %d %q", i, r.seq, r.data)
		}
	}
	if s.total > s.max {
		t.Errorf("it holds %d bytes, at most %d are allowed", s.total, s.max)
	}
	if err := s.ack(n); err != nil {
		t.Error(err)
	}
}
