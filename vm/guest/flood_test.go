// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

// allocated is how much this process has ever allocated: unlike the size of the heap it does not
// depend on when the garbage collector ran.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// empties is a message of n empty messages in its first field: two bytes each.
func empties(n int) []byte { return bytes.Repeat([]byte{0x0a, 0}, n) }

// answers are the messages that a guest can send, one of each call.
func answers() []proto.Message {
	return []proto.Message{
		&agentv1.InfoResponse{}, &agentv1.PingResponse{}, &agentv1.StatsResponse{}, &agentv1.ProbeResponse{},
		&agentv1.ListContainersResponse{}, &agentv1.WatchContainersResponse{}, &agentv1.ReadOutputResponse{},
		&agentv1.ForwardResponse{}, &agentv1.PutArchiveResponse{}, &process.StartResponse{}, &process.ListResponse{},
	}
}

// TestDecodedSize: what a message of a guest costs when it is decoded is bounded, whatever its
// few bytes stand for; what an agent sends is not refused.
func TestDecodedSize(t *testing.T) {
	full := &agentv1.ReadOutputResponse{}
	for range 4096 {
		full.Records = append(full.Records, &agentv1.OutputRecord{Seq: 1, Data: []byte("x")})
	}
	good, err := proto.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	if err := (codec{}).Unmarshal(good, &agentv1.ReadOutputResponse{}); err != nil {
		t.Errorf("a full batch of output: %v", err)
	}
	var nested []byte // as deep as it goes, though no message of ours is
	for range 1000 {
		nested = append(protowire.AppendTag(nil, 1, protowire.BytesType), protowire.AppendBytes(nil, nested)...)
	}
	for _, m := range answers() {
		for name, b := range map[string][]byte{"empties": empties(MaxMessageBytes / 8), "nested": nested, "garbage": bytes.Repeat([]byte{0xff}, 1<<20)} {
			before := allocated()
			err := (codec{}).Unmarshal(b, m)
			// The widest message has some 200 bytes; texts that are empty have 16 each.
			if cost := allocated() - before; cost > 24<<20 {
				t.Errorf("%T of %s cost %d bytes, %v", m, name, cost, err)
			}
		}
	}
	if err := (codec{}).Unmarshal(empties(maxMessageParts+1), &agentv1.ListContainersResponse{}); !errors.Is(err, errTooManyParts) {
		t.Errorf("a container too many: %v", err)
	}
}

// FuzzMessages decodes what a guest may send as the answer to each call.
func FuzzMessages(f *testing.F) {
	for i := range answers() {
		f.Add(uint8(i), []byte{0x0a, 2, 0x0a, 0, 0x10, 1})
		f.Add(uint8(i), empties(100))
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		all := answers()
		m := all[int(kind)%len(all)]
		err := (codec{}).Unmarshal(b, m)
		if want := proto.Unmarshal(b, m); !errors.Is(err, errTooManyParts) && (err == nil) != (want == nil) {
			t.Errorf("got %v, want %v", err, want)
		}
	})
}

// TestFloods: a guest that answers with what costs the host more than itself gets nothing but a
// refused answer.
func TestFloods(t *testing.T) {
	envelope := func(flags byte, body []byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(body))), body...)
	}
	details := `{"code":"internal","details":[` + strings.Repeat(`{},`, 1<<20) + `{}]}`
	end := `{"error":` + details + `}`
	unary := func(status int, kind string, body []byte) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			_, _ = w.Write(body)
		}
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		stream bool
	}{
		"containers":                      {answer: unary(http.StatusOK, "application/proto", empties(MaxMessageBytes/2))},
		"an error with a million details": {answer: unary(http.StatusInternalServerError, "application/json", []byte(details))},
		"an error without end": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}},
		"records":                       {stream: true, answer: unary(http.StatusOK, "application/connect+proto", envelope(0, empties(MaxMessageBytes/2)))},
		"an end with a million details": {stream: true, answer: unary(http.StatusOK, "application/connect+proto", envelope(endOfStream, []byte(end)))},
		"a giant end":                   {stream: true, answer: unary(http.StatusOK, "application/connect+proto", []byte{endOfStream, 0xff, 0xff, 0xff, 0xff})},
		"messages behind the end": {stream: true, answer: unary(http.StatusOK, "application/connect+proto",
			append(envelope(endOfStream, []byte("{}")), envelope(endOfStream, []byte(end))...))},
	} {
		t.Run(name, func(t *testing.T) {
			guest := serveMux(t, func(mux *http.ServeMux) { mux.HandleFunc("/", c.answer) })
			before := allocated()
			var err error
			if c.stream {
				var s *connect.ServerStreamForClient[agentv1.ReadOutputResponse]
				if s, err = guest.Containers.ReadOutput(t.Context(), connect.NewRequest(&agentv1.ReadOutputRequest{Id: "x"})); err == nil {
					for s.Receive() {
						t.Error("a message was received")
					}
					err = errors.Join(s.Err(), s.Close())
				}
			} else {
				_, err = guest.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
			}
			// Most of it are the guest's own copies, in the same process.
			if cost := allocated() - before; cost > 64<<20 {
				t.Errorf("it cost %d bytes", cost)
			}
			if name != "messages behind the end" && !errors.Is(err, vm.ErrUnavailable) || err != nil && len(err.Error()) > maxErrorBytes+500 {
				t.Errorf("error %.500v", err)
			}
		})
	}
}

// TestStrayFrames: answers to calls that nobody made, wrong numbers, floods of what HTTP/2 has
// beside answers, and an answer a byte at a time, reach nobody and keep nobody waiting for longer
// than the call may take, and what the library under us says of them does not fill the log.
func TestStrayFrames(t *testing.T) {
	ok := headers(":status", "200", "content-type", "application/proto")
	info, err := proto.Marshal(&agentv1.InfoResponse{ProtocolVersion: ProtocolVersion})
	if err != nil {
		t.Fatal(err)
	}
	answer := func(fr *http2.Framer, stream uint32) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: ok})
		_ = fr.WriteData(stream, true, info)
	}
	for name, c := range map[string]struct {
		behave func(fr *http2.Framer, stream uint32)
		well   bool // the call is answered all the same
	}{
		"before the answer, one to a call of the future": {behave: func(fr *http2.Framer, stream uint32) {
			answer(fr, stream+100)
			answer(fr, stream)
		}},
		"an answer on a stream of the guest's own": {behave: func(fr *http2.Framer, stream uint32) {
			answer(fr, 2)
			answer(fr, stream)
		}},
		"the answer, twice": {well: true, behave: func(fr *http2.Framer, stream uint32) {
			answer(fr, stream)
			answer(fr, stream)
		}},
		"a promise of pushes": {behave: func(fr *http2.Framer, stream uint32) {
			_ = fr.WritePushPromise(http2.PushPromiseParam{StreamID: stream, PromiseID: 2, EndHeaders: true, BlockFragment: ok})
			answer(fr, stream)
		}},
		"settings without end": {behave: func(fr *http2.Framer, _ uint32) {
			for fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) == nil {
			}
		}},
		"resets of strangers without end": {behave: func(fr *http2.Framer, _ uint32) {
			for n := uint32(1); fr.WriteRSTStream(n|1, http2.ErrCodeCancel) == nil; n += 2 {
			}
		}},
		"windows without end": {behave: func(fr *http2.Framer, stream uint32) {
			for fr.WriteWindowUpdate(stream, 1) == nil {
			}
		}},
		"frames of no kind without end": {behave: func(fr *http2.Framer, stream uint32) {
			for fr.WriteRawFrame(0xee, 0xff, stream, make([]byte, 1000)) == nil {
			}
		}},
		"empty data without end": {behave: func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: ok})
			for fr.WriteData(stream, false, nil) == nil {
			}
		}},
		"settings that allow nothing": {behave: func(fr *http2.Framer, _ uint32) {
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1})
		}},
		"an answer that never ends, in single bytes": {behave: func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: ok})
			for fr.WriteData(stream, false, []byte{0x08}) == nil {
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			guestEnd, hostEnd := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { _ = guestEnd.Close() }()
				// What the host writes meanwhile is read, or the pipe would hold it up.
				in, w := io.Pipe()
				go func() { _, _ = io.Copy(w, guestEnd); _ = w.Close() }()
				h2Guest(c.behave)(readFrom{guestEnd, in})
			}()
			var lines lineCount
			log.SetOutput(&lines)
			defer log.SetOutput(os.Stderr)
			patience := 300 * time.Millisecond // most of them keep the call until it is over
			if c.well {
				patience = time.Minute
			}
			client, err := newClient(hostEnd, Options{CallTimeout: patience})
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.Agent.Info(t.Context(), connect.NewRequest(&agentv1.InfoRequest{}))
			if c.well && err != nil || err != nil && !errors.Is(err, vm.ErrUnavailable) {
				t.Errorf("error %v", err)
			}
			_ = client.Close()
			<-done
			if n := lines.Load(); n > 10 {
				t.Errorf("%d lines were logged", n)
			}
		})
	}
}

type lineCount struct{ atomic.Int64 }

func (c *lineCount) Write(p []byte) (int, error) {
	c.Add(1)
	return len(p), nil
}

// readFrom is a connection that is read elsewhere.
type readFrom struct {
	net.Conn
	in *io.PipeReader
}

func (r readFrom) Read(p []byte) (int, error) { return r.in.Read(p) }
