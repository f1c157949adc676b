// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

// hostileGuest greets as the protocol says and then does what it likes.
func hostileGuest(t *testing.T, behave func(c net.Conn)) net.Conn {
	t.Helper()
	guestEnd, hostEnd := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = guestEnd.Close() }()
		talk, err := Answer(guestEnd)
		if err != nil {
			return
		}
		behave(talk)
	}()
	t.Cleanup(func() {
		_ = guestEnd.Close()
		<-done
	})
	return hostEnd
}

// h2Guest speaks HTTP/2 frames; answer is called for every request's headers.
func h2Guest(answer func(fr *http2.Framer, stream uint32)) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		fr := http2.NewFramer(c, c)
		for n := 0; ; n++ {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			// A pipe holds nothing: the host writes settings and a window at once.
			if n == 1 && fr.WriteSettings() != nil {
				return
			}
			if h, ok := f.(*http2.HeadersFrame); ok {
				answer(fr, h.StreamID)
			}
		}
	}
}

func headers(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i+1 < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// TestHostileGuests: whatever a guest does, the host gets ErrUnavailable in time and
// holds little memory meanwhile.
func TestHostileGuests(t *testing.T) {
	ok := headers(":status", "200", "content-type", "application/proto")
	for name, behave := range map[string]func(net.Conn){
		"closes": func(net.Conn) {},
		"stays silent": func(c net.Conn) {
			_, _ = io.Copy(io.Discard, c)
		},
		"sends garbage": func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			for {
				if _, err := c.Write(bytes.Repeat([]byte("garbage"), 1000)); err != nil {
					return
				}
			}
		},
		"sends a giant frame": func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			_, _ = c.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1})
			_, _ = c.Write(make([]byte, 1<<24))
		},
		"sends headers without end": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: ok})
			for {
				if fr.WriteContinuation(stream, false, headers("x", strings.Repeat("y", 1000))) != nil {
					return
				}
			}
		}),
		"sends interim responses without end": h2Guest(func(fr *http2.Framer, stream uint32) {
			for fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: headers(":status", "103", "x", strings.Repeat("y", 1000))}) == nil {
			}
		}),
		"sends a message without end": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: ok})
			for fr.WriteData(stream, false, make([]byte, 16<<10)) == nil {
			}
		}),
		"sends an answer of another kind": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: headers(":status", "200", "content-type", "text/html")})
			_ = fr.WriteData(stream, true, []byte("<html>"))
		}),
		"sends nonsense for a message": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: ok})
			_ = fr.WriteData(stream, true, []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
		}),
		"redirects": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, EndStream: true, BlockFragment: headers(":status", "307", "location", "http://127.0.0.1/")})
		}),
		"refuses": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
		}),
		"says goodbye": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		}),
		"pings without end": h2Guest(func(fr *http2.Framer, _ uint32) {
			for fr.WritePing(false, [8]byte{}) == nil {
			}
		}),
		"asks for a window that overflows": h2Guest(func(fr *http2.Framer, stream uint32) {
			_ = fr.WriteWindowUpdate(0, 1<<31-1)
			_ = fr.WriteWindowUpdate(0, 1<<31-1)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			// Real time: the guests that never stop would keep a bubble from its own.
			_, err := Dial(t.Context(), hostileGuest(t, behave), Options{DialTimeout: 300 * time.Millisecond})
			if !errors.Is(err, vm.ErrUnavailable) {
				t.Errorf("error %v, want %v", err, vm.ErrUnavailable)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
				t.Errorf("the heap grew by %d bytes", grown)
			}
		})
	}
}

// TestLyingAgent: an agent's own errors keep their code, bounded and printable.
func TestLyingAgent(t *testing.T) {
	text := strings.Repeat("x", maxErrorBody/2) + "\x1b[2J"
	c := serveMux(t, func(mux *http.ServeMux) {
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"code":"not_found","message":"`+strings.ReplaceAll(text, "\x1b", `\u001b`)+`"}`)
		})
	})
	_, err := c.Agent.Info(t.Context(), connect.NewRequest(&agentv1.InfoRequest{}))
	if connect.CodeOf(err) != connect.CodeNotFound || errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if n := len(err.Error()); n > maxErrorBytes+200 {
		t.Errorf("the error has %d bytes", n)
	}
	if strings.ContainsRune(err.Error(), '\x1b') {
		t.Error("the error carries control characters")
	}
}

// serveMux serves a mux as a guest and returns a client of it.
func serveMux(t *testing.T, fill func(*http.ServeMux)) *Client {
	t.Helper()
	mux := http.NewServeMux()
	fill(mux)
	guestEnd, hostEnd := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&http2.Server{}).ServeConn(guestEnd, &http2.ServeConnOpts{Handler: mux})
	}()
	c, err := newClient(hostEnd, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return c
}

// TestEndlessStream: a stream that nobody reads costs a bounded buffer, and a message
// that is too long ends the call.
func TestEndlessStream(t *testing.T) {
	c := serveMux(t, func(mux *http.ServeMux) {
		mux.HandleFunc("/process.Process/Start", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/connect+proto")
			var prefix [5]byte
			binary.BigEndian.PutUint32(prefix[1:], MaxMessageBytes+1)
			for {
				if _, err := w.Write(prefix[:]); err != nil {
					return
				}
				if _, err := w.Write(make([]byte, MaxMessageBytes+1)); err != nil {
					return
				}
			}
		})
	})
	s, err := c.Process.Start(t.Context(), connect.NewRequest(&process.StartRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if s.Receive() {
		t.Error("a message of more than the bound was received")
	}
	if err := s.Err(); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

func TestLostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guestEnd, hostEnd := net.Pipe()
		go h2Guest(func(*http2.Framer, uint32) {})(guestEnd)
		c, err := newClient(hostEnd, Options{CallTimeout: -1, IdleTimeout: time.Second, PingTimeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if c.Err() != nil {
			t.Errorf("a connection that stands has the error %v", c.Err())
		}
		failed := make(chan error, 1)
		go func() {
			_, err := c.Agent.Info(context.Background(), connect.NewRequest(&agentv1.InfoRequest{}))
			failed <- err
		}()
		// The guest reads and answers no ping: only health checks end the call.
		if err := <-failed; !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("call: %v", err)
		}
		<-c.Done()
		if !errors.Is(c.Err(), vm.ErrUnavailable) {
			t.Errorf("connection: %v", c.Err())
		}
		if err := c.Ping(t.Context()); !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("ping: %v", err)
		}
		_ = c.Close()
		_ = guestEnd.Close()
	})
}

// TestPausedGuest: silence means nothing while a machine stands still, and is an end again
// once it runs.
func TestPausedGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guestEnd, hostEnd := net.Pipe()
		go h2Guest(func(*http2.Framer, uint32) {})(guestEnd)
		c, err := newClient(hostEnd, Options{IdleTimeout: 10 * time.Second, PingTimeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second) // in the middle of a ping
		c.Pause(true)
		time.Sleep(time.Hour)
		if err := c.Err(); err != nil {
			t.Fatalf("lost while it stood still: %v", err)
		}
		c.Pause(false)
		time.Sleep(29 * time.Second)
		if err := c.Err(); err != nil {
			t.Fatalf("lost too early: %v", err)
		}
		time.Sleep(2 * time.Second)
		if err := c.Err(); !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("a silent guest: %v", err)
		}
		_ = c.Close()
		_ = guestEnd.Close()
	})
}

func TestCancelledCallIsNotTheGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guestEnd, hostEnd := net.Pipe()
		go h2Guest(func(*http2.Framer, uint32) {})(guestEnd)
		c, err := newClient(hostEnd, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := c.Ping(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("cancelled call: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Ping(short); !errors.Is(err, vm.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call without an answer: %v", err)
		}
		before := time.Now()
		if err := c.Ping(t.Context()); !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("call without an answer: %v", err)
		}
		if d := time.Since(before); d > DefaultCallTimeout {
			t.Errorf("it took %v", d)
		}
		_ = c.Close()
		_ = guestEnd.Close()
	})
}

func TestOtherProtocolVersion(t *testing.T) {
	c := serveMux(t, func(mux *http.ServeMux) {
		mux.Handle("/firkin.agent.v1.AgentService/Info", connect.NewUnaryHandler("/firkin.agent.v1.AgentService/Info",
			func(context.Context, *connect.Request[agentv1.InfoRequest]) (*connect.Response[agentv1.InfoResponse], error) {
				return connect.NewResponse(&agentv1.InfoResponse{ProtocolVersion: ProtocolVersion + 1}), nil
			}))
	})
	if err := c.check(t.Context()); !errors.Is(err, ErrProtocolVersion) || errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

// FuzzGuestBytes feeds the host's HTTP/2, Connect and protobuf decoders with what a
// guest may send after the greeting.
func FuzzGuestBytes(f *testing.F) {
	var good bytes.Buffer
	fr := http2.NewFramer(&good, nil)
	_ = fr.WriteSettings()
	_ = fr.WriteSettingsAck()
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: headers(":status", "200", "content-type", "application/proto")})
	_ = fr.WriteData(1, true, []byte{0x0a, 4, 't', 'e', 's', 't', 0x10, 1})
	f.Add(good.Bytes())
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		guestEnd, hostEnd := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, guestEnd) }()
		go func() {
			_, _ = guestEnd.Write(data)
			_ = guestEnd.Close()
		}()
		c, err := newClient(hostEnd, Options{CallTimeout: 5 * time.Second})
		if err == nil {
			_, err = c.Agent.Info(t.Context(), connect.NewRequest(&agentv1.InfoRequest{}))
			var answer *connect.Error
			if err != nil && !errors.Is(err, vm.ErrUnavailable) && !errors.As(err, &answer) {
				t.Errorf("error %v is neither unavailable nor an answer", err)
			}
			_ = c.Close()
		}
		_ = hostEnd.Close()
	})
}
