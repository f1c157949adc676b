// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// ErrGuestOutput means that the guest sent output that breaks the protocol. Its log ends at
// the last good record; asking again does not help.
var ErrGuestOutput = errors.New("guest sent invalid container output")

// MaxRecordBytes is the most that the protocol allows in a record.
const MaxRecordBytes = 16 << 10

// The names of the two streams in the CRI log format.
const (
	StreamStdout = "stdout"
	StreamStderr = "stderr"
)

// timeFormat is RFC 3339 with all nine digits of the fraction, as the kubelet
// prints it for --timestamps.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// maxLineBytes bounds a line of a log file: a full record and what the format puts
// before it. A longer one is damage.
const maxLineBytes = MaxRecordBytes + 128

// clockSkew is how far a guest's clock may be ahead of the host's before its
// timestamps are replaced. Guests get the host's time at restore and drift little.
const clockSkew = time.Minute

// appendRecord appends the CRI log line for r to buf. want is the number that r
// must have. An error wraps ErrGuestOutput and leaves buf as it was.
func appendRecord(buf []byte, r *agentv1.OutputRecord, want uint64, now time.Time) ([]byte, error) {
	if r.GetSeq() != want {
		return buf, fmt.Errorf("%w: record %d where %d was due", ErrGuestOutput, r.GetSeq(), want)
	}
	if n := len(r.GetData()); n > MaxRecordBytes {
		return buf, fmt.Errorf("%w: record %d has %d bytes, at most %d are allowed", ErrGuestOutput, want, n, MaxRecordBytes)
	}
	if bytes.IndexByte(r.GetData(), '\n') >= 0 {
		return buf, fmt.Errorf("%w: record %d holds a line break", ErrGuestOutput, want)
	}
	var stream string
	switch r.GetStream() {
	case agentv1.OutputStream_OUTPUT_STREAM_STDOUT:
		stream = StreamStdout
	case agentv1.OutputStream_OUTPUT_STREAM_STDERR:
		stream = StreamStderr
	default:
		return buf, fmt.Errorf("%w: record %d is of stream %d", ErrGuestOutput, want, r.GetStream())
	}
	tag := byte('F')
	if r.GetPartial() {
		tag = 'P'
	}
	buf = saneTime(r.GetTimeUnixNano(), now).AppendFormat(buf, timeFormat)
	buf = append(buf, ' ')
	buf = append(buf, stream...)
	buf = append(buf, ' ', tag, ' ')
	buf = append(buf, r.GetData()...)
	return append(buf, '\n'), nil
}

// saneTime is the guest's time in UTC, or the host's where the guest's is before
// the epoch or in the future: --since must not be fooled for the life of the log.
func saneTime(unixNano int64, now time.Time) time.Time {
	t := time.Unix(0, unixNano)
	if unixNano <= 0 || t.After(now.Add(clockSkew)) {
		t = now
	}
	return t.UTC()
}

// line is a parsed line of a log file.
type line struct {
	time    time.Time
	stream  string
	partial bool
	data    []byte // without the line break; aliases the parsed bytes
}

// parseLine reads a line without its line break. It is false for anything that is
// not in the CRI log format, which only damage to the file brings about.
func parseLine(b []byte) (line, bool) {
	stamp, rest, ok := bytes.Cut(b, []byte{' '})
	if !ok {
		return line{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return line{}, false
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || string(stream) != StreamStdout && string(stream) != StreamStderr {
		return line{}, false
	}
	tag, data, ok := bytes.Cut(rest, []byte{' '})
	if !ok || string(tag) != "F" && string(tag) != "P" {
		return line{}, false
	}
	return line{time: t, stream: string(stream), partial: tag[0] == 'P', data: data}, true
}

// endsLine tells whether a line of a log file, without its line break, ends a line
// of the container's output. What cannot be parsed counts as one.
func endsLine(b []byte) bool {
	l, ok := parseLine(b)
	return !ok || !l.partial
}
