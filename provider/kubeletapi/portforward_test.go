// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // what the dialers of client-go return
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/vk-firkin/vk-firkin/provider/kubeletapi"
)

// podPort listens in the machine, which is this process, and serves connections.
func podPort(t *testing.T, serve func(net.Conn)) int {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() { lis.Close(); work.Wait() })
	return lis.Addr().(*net.TCPAddr).Port
}

// closedPort is a port that nobody listens on.
func closedPort(t *testing.T) int {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().(*net.TCPAddr).Port
}

// forwarder is a client's connection to /portForward.
func (s *server) forwarder(t *testing.T, transport string) httpstream.Connection {
	t.Helper()
	u, err := url.Parse(s.url + "/portForward/ns/p")
	if err != nil {
		t.Fatal(err)
	}
	config := s.config(t, "api", "")
	var dialer httpstream.Dialer
	if transport == "SPDY" {
		rt, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			t.Fatal(err)
		}
		dialer = spdy.NewDialer(upgrader, &http.Client{Transport: rt}, "POST", u)
	} else if dialer, err = portforward.NewSPDYOverWebsocketDialer(u, config); err != nil {
		t.Fatal(err)
	}
	conn, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil || protocol != portforward.PortForwardProtocolV1Name {
		t.Fatalf("dial: %q, %v", protocol, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// open opens the streams of one forwarded connection, as kubectl does.
func open(t *testing.T, conn httpstream.Connection, request, port int) (data, errors httpstream.Stream) {
	t.Helper()
	data, errors, err := tryOpen(conn, request, port)
	if err != nil {
		t.Fatal(err)
	}
	return data, errors
}

func tryOpen(conn httpstream.Connection, request, port int) (data, errors httpstream.Stream, err error) {
	h := http.Header{}
	h.Set(corev1.PortHeader, strconv.Itoa(port))
	h.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(request))
	h.Set(corev1.StreamType, corev1.StreamTypeError)
	if errors, err = conn.CreateStream(h); err != nil {
		return nil, nil, err
	}
	errors.Close()
	h.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err = conn.CreateStream(h)
	return data, errors, err
}

// TestPortForward: several connections to two ports over one connection of a client,
// much data, half-closes; a closed port is an error of its own connection only.
func TestPortForward(t *testing.T) {
	s := newServer(t)
	s.runPod(t)
	long := bytes.Repeat([]byte("0123456789abcdef\n"), 50_000)
	echo := podPort(t, func(conn net.Conn) { io.Copy(conn, conn) })
	greet := podPort(t, func(conn net.Conn) { fmt.Fprint(conn, "hello") })
	for _, transport := range []string{"SPDY", "tunnel"} {
		t.Run(transport, func(t *testing.T) {
			conn := s.forwarder(t, transport)
			data, _ := open(t, conn, 0, echo)
			if _, err := data.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(data, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			_, refused, err := tryOpen(conn, 1, closedPort(t))
			if err == nil {
				var text []byte
				if text, err = io.ReadAll(refused); err == nil && !strings.Contains(string(text), "connection refused") || !strings.Contains(string(text), "error forwarding port") {
					t.Errorf("closed port: %q, %v", text, err)
				}
			} else if err.Error() != "Stream reset" { // the server may give up before it has answered that the second stream is there
				t.Errorf("closed port: %v", err)
			}
			hello, _ := open(t, conn, 2, greet)
			if text, err := io.ReadAll(hello); string(text) != "hello" || err != nil {
				t.Errorf("second port: %q, %v", text, err)
			}
			var sending sync.WaitGroup
			sending.Go(func() {
				data.Write(long)
				data.Close() // half
			})
			got, err := io.ReadAll(data)
			sending.Wait()
			if err != nil || !bytes.Equal(got, long) {
				t.Errorf("echo of %d bytes, want %d: %v", len(got), len(long), err)
			}
		})
	}
}

// TestPortForwardClientGone: the pod's side of all connections ends with the client.
func TestPortForwardClientGone(t *testing.T) {
	for _, transport := range []string{"SPDY", "tunnel"} {
		s := newServer(t)
		s.runPod(t)
		ended := make(chan struct{}, 2)
		port := podPort(t, func(conn net.Conn) {
			fmt.Fprint(conn, "x")
			io.Copy(io.Discard, conn)
			ended <- struct{}{}
		})
		conn := s.forwarder(t, transport)
		for i := range 2 {
			data, _ := open(t, conn, i, port)
			if _, err := io.ReadFull(data, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
		for range 2 {
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatalf("%s: the pod's connection is still open", transport)
			}
		}
	}
}

// TestPortForwardTimeouts: a pair of which one stream does not come is given up after
// the creation timeout, and a silent connection after the idle timeout.
func TestPortForwardTimeouts(t *testing.T) {
	t.Run("creation", func(t *testing.T) {
		s := newServer(t, func(o *kubeletapi.Options) { o.StreamCreationTimeout = 100 * time.Millisecond })
		s.runPod(t)
		conn := s.forwarder(t, "SPDY")
		h := http.Header{}
		h.Set(corev1.PortHeader, "80")
		h.Set(corev1.PortForwardRequestIDHeader, "0")
		h.Set(corev1.StreamType, corev1.StreamTypeError)
		errors, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 1000)
		n, err := errors.Read(text)
		if err != nil || !strings.Contains(string(text[:n]), "timed out waiting for streams") {
			t.Errorf("%q, %v", text[:n], err)
		}
	})
	t.Run("idle", func(t *testing.T) {
		s := newServer(t, func(o *kubeletapi.Options) {
			o.StreamIdleTimeout, o.StreamCreationTimeout = 500*time.Millisecond, time.Hour
		})
		s.runPod(t)
		port := podPort(t, func(conn net.Conn) { io.Copy(conn, conn) })
		conn := s.forwarder(t, "SPDY")
		data, _ := open(t, conn, 0, port)
		for range 10 { // longer than the timeout, and not silent
			<-time.After(100 * time.Millisecond)
			if _, err := data.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(data, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-conn.CloseChan():
		case <-time.After(20 * time.Second):
			t.Error("the silent connection stays")
		}
	})
}

// TestPortForwardWebSocket: the protocol of two channels for each port.
func TestPortForwardWebSocket(t *testing.T) {
	s := newServer(t)
	s.runPod(t)
	echo, closed := podPort(t, func(conn net.Conn) { io.Copy(conn, conn) }), closedPort(t)
	tlsConfig, err := rest.TLSConfigFor(s.config(t, "api", ""))
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig(strings.Replace(s.url, "https", "wss", 1)+fmt.Sprintf("/portForward/ns/p?port=%d,%d", echo, closed), s.url)
	if err != nil {
		t.Fatal(err)
	}
	config.TlsConfig, config.Protocol = tlsConfig, []string{"v4.channel.k8s.io"}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetDeadline(time.Now().Add(20 * time.Second))
	got := map[byte][]byte{}
	receive := func(until func() bool) {
		for !until() {
			var m []byte
			if err := websocket.Message.Receive(ws, &m); err != nil || len(m) == 0 {
				t.Fatalf("got %q, then %v", got, err)
			}
			got[m[0]] = append(got[m[0]], m[1:]...)
		}
	}
	receive(func() bool { return len(got[3]) > 2 && len(got[0]) == 2 && len(got[1]) == 2 })
	if binary.LittleEndian.Uint16(got[0]) != uint16(echo) || binary.LittleEndian.Uint16(got[2]) != uint16(closed) {
		t.Errorf("channels are of ports %v and %v", got[0], got[2])
	}
	if !strings.Contains(string(got[3][2:]), "connection refused") {
		t.Errorf("error of the closed port: %q", got[3])
	}
	if err := websocket.Message.Send(ws, append([]byte{0}, "to the port"...)); err != nil {
		t.Fatal(err)
	}
	receive(func() bool { return string(got[0][2:]) == "to the port" })
}

// TestPortForwardRequests: what cannot be is refused before the connection is taken over.
func TestPortForwardRequests(t *testing.T) {
	s := newServer(t)
	s.runPod(t)
	stopped := s.node.targets["ns/p/c"]
	stopped.Dial = nil
	s.node.targets["ns/stopped/c"] = stopped
	handshake := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Sec-Websocket-Version": {"13"}}
	with := func(protocol string) http.Header {
		h := handshake.Clone()
		h.Set("Sec-Websocket-Protocol", protocol)
		return h
	}
	client, err := rest.HTTPClientFor(s.config(t, "api", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	for name, c := range map[string]struct {
		path   string
		header http.Header
		want   int
	}{
		"no ports":            {"/portForward/ns/p", handshake, 400},
		"bad port":            {"/portForward/ns/p?port=0", handshake, 400},
		"too many ports":      {"/portForward/ns/p?port=1" + strings.Repeat(",1", 64), handshake, 400},
		"unknown protocol":    {"/portForward/ns/p?port=1", with("v9.channel.k8s.io"), 403},
		"unknown in a tunnel": {"/portForward/ns/p", with("SPDY/3.1+other.k8s.io"), 400},
		"no upgrade":          {"/portForward/ns/p", nil, 400},
		"pod of another UID":  {"/portForward/ns/p/other", with("SPDY/3.1+portforward.k8s.io"), 404},
		"pod that stopped":    {"/portForward/ns/stopped", with("SPDY/3.1+portforward.k8s.io"), 400},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header = c.header.Clone()
			if req.Header == nil {
				req.Header = http.Header{}
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != c.want {
				t.Errorf("got %d, want %d: %s", resp.StatusCode, c.want, body)
			}
		})
	}
}
