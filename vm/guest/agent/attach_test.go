// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// What is kept for one who does not read is bounded in pieces as well as in bytes, and
// all of it is there for others again once it was read.
func TestTapIsBounded(t *testing.T) {
	const stream = agentv1.OutputStream_OUTPUT_STREAM_STDOUT
	var ts taps
	tap := ts.open(map[agentv1.OutputStream]bool{stream: true})
	defer tap.close()
	for range maxTapBytes {
		ts.give(stream, []byte("x"))
	}
	if n := len(tap.pending); n == 0 || n > maxTapBytes/32 {
		t.Errorf("%d pieces of one byte are kept", n)
	}
	for {
		if _, ok := tap.take(); !ok {
			break
		}
	}
	if tap.size != 0 {
		t.Errorf("%d bytes are accounted of nothing", tap.size)
	}
	ts.give(stream, make([]byte, maxAttachBytes))
	if piece, ok := tap.take(); !ok || len(piece.data) != maxAttachBytes {
		t.Errorf("%d bytes, %v", len(piece.data), ok)
	}
}
