// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Bounds of what a message costs once it is decoded: an empty message in a list takes two bytes
// on the wire and a hundred times as many in memory.
const (
	// maxMessageParts bounds the messages in one message. An agent sends the most with output:
	// 4096 records.
	maxMessageParts = 32 << 10
	// maxMessageDepth bounds how deep they are nested; ours are four deep.
	maxMessageDepth = 32
	// maxErrorBody bounds what a guest sends of an error and of the end of a stream, which are JSON.
	maxErrorBody = 64 << 10
)

var errTooManyParts = errors.New("a message of the guest has too many parts")

// codec is Connect's codec of protobuf, which does not decode what would cost too much.
type codec struct{}

// Name implements connect.Codec.
func (codec) Name() string { return "proto" }

// Marshal implements connect.Codec.
func (c codec) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

// MarshalAppend is what Connect asks of a codec that is to reuse its buffers.
func (codec) MarshalAppend(b []byte, m any) ([]byte, error) {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", m)
	}
	return proto.MarshalOptions{}.MarshalAppend(b, msg)
}

// Unmarshal implements connect.Codec.
func (codec) Unmarshal(b []byte, m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", m)
	}
	left := maxMessageParts
	if err := weigh(b, msg.ProtoReflect().Descriptor(), &left, maxMessageDepth); err != nil {
		return err
	}
	return proto.Unmarshal(b, msg)
}

// weigh counts the messages in an encoded message. What is no protobuf is left to the decoder
// to refuse.
func weigh(b []byte, md protoreflect.MessageDescriptor, left *int, depth int) error {
	if depth == 0 {
		return errTooManyParts
	}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		fd := md.Fields().ByNumber(number)
		if fd == nil || fd.Message() == nil || kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return nil
			}
			b = b[n:]
			continue
		}
		part, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return nil
		}
		if *left--; *left < 0 {
			return errTooManyParts
		}
		if err := weigh(part, fd.Message(), left, depth-1); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// boundErrors bounds the JSON in a response: the whole body of one that is an error, and in a
// stream the message that ends it.
func boundErrors(resp *http.Response) {
	switch {
	case resp.StatusCode != http.StatusOK:
		resp.Body = &errorBody{ReadCloser: resp.Body, left: maxErrorBody}
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "application/connect+"):
		resp.Body = &streamBody{ReadCloser: resp.Body}
	}
}

var errErrorBody = fmt.Errorf("the guest sent an error of more than %d bytes", maxErrorBody)

type errorBody struct {
	io.ReadCloser
	left int
}

func (b *errorBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errErrorBody
	}
	return n, err
}

// Connect puts five bytes before each message of a stream: flags, and the length in network
// order. One flag marks the last message, which is JSON (Connect's protocol, "Streaming RPCs").
const (
	envelopeBytes = 5
	endOfStream   = 0x02
)

// streamBody looks at what stands before the messages of a stream.
type streamBody struct {
	io.ReadCloser
	head [envelopeBytes]byte
	have int    // of head
	rest uint32 // of the message
}

func (b *streamBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	for read := p[:n]; len(read) > 0; {
		if b.rest > 0 {
			k := min(len(read), int(b.rest))
			b.rest -= uint32(k) //nolint:gosec // no more than rest
			read = read[k:]
			continue
		}
		k := copy(b.head[b.have:], read)
		b.have += k
		read = read[k:]
		if b.have < envelopeBytes {
			break
		}
		b.have, b.rest = 0, binary.BigEndian.Uint32(b.head[1:])
		if b.head[0]&endOfStream != 0 && b.rest > maxErrorBody {
			return 0, errErrorBody
		}
	}
	return n, err
}

// HTTP/2 begins each frame with nine bytes: the length in three, a type, flags, and the stream
// (RFC 9113, section 4.1).
const (
	frameHeadBytes = 9
	frameTypeAt    = 3
	// lastFrameType is CONTINUATION.
	lastFrameType = 0x9
)

var errFrameType = errors.New("the guest sent a frame of a kind that HTTP/2 does not have")

// frameWatch follows the frames in a stream of bytes, to refuse those of unknown kinds. They are to be
// ignored by the standard, an agent sends none, and the library under us writes a line into the
// log for each.
type frameWatch struct {
	head [frameHeadBytes]byte
	have int // of head
	rest int // of the frame
}

func (w *frameWatch) look(read []byte) error {
	for len(read) > 0 {
		if w.rest > 0 {
			k := min(len(read), w.rest)
			w.rest -= k
			read = read[k:]
			continue
		}
		k := copy(w.head[w.have:], read)
		w.have += k
		read = read[k:]
		if w.have < frameHeadBytes {
			return nil
		}
		if w.head[frameTypeAt] > lastFrameType {
			return errFrameType
		}
		w.have, w.rest = 0, int(w.head[0])<<16|int(w.head[1])<<8|int(w.head[2])
	}
	return nil
}
