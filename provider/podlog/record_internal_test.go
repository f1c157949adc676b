// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func TestAppendRecord(t *testing.T) {
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	stamp := now.Add(-time.Hour).UnixNano()
	const out, err2 = agentv1.OutputStream_OUTPUT_STREAM_STDOUT, agentv1.OutputStream_OUTPUT_STREAM_STDERR
	for name, c := range map[string]struct {
		record *agentv1.OutputRecord
		want   string // empty: ErrGuestOutput
	}{
		"full line":       {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp, Stream: out, Data: []byte("hello world")}, "2026-11-22T07:00:00.000000000Z stdout F hello world\n"},
		"part":            {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp, Stream: err2, Partial: true, Data: []byte("a")}, "2026-11-22T07:00:00.000000000Z stderr P a\n"},
		"empty line":      {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp, Stream: out}, "2026-11-22T07:00:00.000000000Z stdout F \n"},
		"no time":         {&agentv1.OutputRecord{Seq: 7, Stream: out}, "2026-11-22T08:00:00.000000000Z stdout F \n"},
		"before epoch":    {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: -1 << 62, Stream: out}, "2026-11-22T08:00:00.000000000Z stdout F \n"},
		"far future":      {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: 1<<63 - 1, Stream: out}, "2026-11-22T08:00:00.000000000Z stdout F \n"},
		"carriage return": {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp, Stream: out, Data: []byte("a\rb\x00\xff")}, "2026-11-22T07:00:00.000000000Z stdout F a\rb\x00\xff\n"},
		"gap":             {&agentv1.OutputRecord{Seq: 8, TimeUnixNano: stamp, Stream: out}, ""},
		"again":           {&agentv1.OutputRecord{Seq: 6, TimeUnixNano: stamp, Stream: out}, ""},
		"no stream":       {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp}, ""},
		"unknown stream":  {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp, Stream: 9}, ""},
		"too long":        {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp, Stream: out, Data: make([]byte, MaxRecordBytes+1)}, ""},
		"line break":      {&agentv1.OutputRecord{Seq: 7, TimeUnixNano: stamp, Stream: out, Data: []byte("a\n2026-11-22T07:00:00Z stdout F forged")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := appendRecord([]byte("kept"), c.record, 7, now)
			if c.want == "" {
				if !errors.Is(err, ErrGuestOutput) || string(got) != "kept" {
					t.Fatalf("got %q, %v", got, err)
				}
				return
			}
			if err != nil || string(got) != "kept"+c.want {
				t.Fatalf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// FuzzAppendRecord: whatever a guest sends, the log gets exactly one line of it that
// reads back as it was, or none.
func FuzzAppendRecord(f *testing.F) {
	f.Add(uint64(1), int64(5), int32(1), true, []byte("x"))
	f.Add(uint64(1), int64(1<<62), int32(2), false, []byte("a b\nc"))
	f.Fuzz(func(t *testing.T, seq uint64, unixNano int64, stream int32, partial bool, data []byte) {
		r := &agentv1.OutputRecord{Seq: seq, TimeUnixNano: unixNano, Stream: agentv1.OutputStream(stream), Partial: partial, Data: data}
		b, err := appendRecord(nil, r, 1, time.Now())
		if err != nil {
			if len(b) != 0 || !errors.Is(err, ErrGuestOutput) {
				t.Fatalf("%q, %v", b, err)
			}
			return
		}
		if bytes.Count(b, []byte{'\n'}) != 1 || len(b) > maxLineBytes {
			t.Fatalf("%q is not one line", b)
		}
		l, ok := parseLine(b[:len(b)-1])
		if !ok || !bytes.Equal(l.data, data) || l.partial != partial || l.stream != StreamStdout && l.stream != StreamStderr {
			t.Fatalf("%q reads back as %+v, %v", b, l, ok)
		}
	})
}

func TestParseLineRejectsDamage(t *testing.T) {
	for _, s := range []string{"", "x", "2026-11-22T07:00:00Z", "2026-11-22T07:00:00Z stdout", "2026-11-22T07:00:00Z stdout X a",
		"2026-11-22T07:00:00Z stdin F a", "yesterday stdout F a", strings.Repeat("\x00", 50)} {
		if l, ok := parseLine([]byte(s)); ok {
			t.Errorf("%q parsed as %+v", s, l)
		}
	}
}
