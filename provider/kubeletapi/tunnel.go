// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// serveTunnel serves SPDY inside of a WebSocket's binary messages (KEP-4006): serve gets
// the request as if it had come by SPDY.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request)) error {
	inner := tunneledProtocol(r.Header)
	if inner == "" {
		http.Error(w, "unable to upgrade: no tunneled protocol is supported", http.StatusBadRequest)
		return nil
	}
	request := r.Clone(r.Context())
	request.Method = http.MethodPost
	for _, name := range []string{wsstream.WebSocketProtocolHeader, "Sec-Websocket-Key", "Sec-Websocket-Version"} {
		request.Header.Del(name)
	}
	request.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	request.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	request.Header.Set(httpstream.HeaderProtocolVersion, inner)
	served := false
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			c.Protocol = []string{portforward.WebsocketsSPDYTunnelingPrefix + inner}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			served = true
			ws.PayloadType = websocket.BinaryFrame
			serve(&tunnelWriter{conn: ws, header: http.Header{}}, request)
		},
	}.ServeHTTP(w, r)
	if !served {
		return errors.New("upgrade to WebSocket: the handshake failed")
	}
	return nil
}

// tunneledProtocol is the protocol to be spoken in a tunnel, of those that a client
// offers; empty when there is none that is served.
func tunneledProtocol(h http.Header) string {
	for _, line := range h.Values(wsstream.WebSocketProtocolHeader) {
		for offer := range strings.SplitSeq(line, ",") {
			inner, ok := strings.CutPrefix(strings.TrimSpace(offer), portforward.WebsocketsSPDYTunnelingPrefix)
			if ok && slices.Contains(portforward.SupportedProtocols, inner) {
				return inner
			}
		}
	}
	return ""
}

// tunnelWriter is the response of a request whose connection is in a tunnel. The answer
// to the handshake was sent by the tunnel.
type tunnelWriter struct {
	conn   net.Conn
	header http.Header
}

// Header implements http.ResponseWriter, like the methods below.
func (t *tunnelWriter) Header() http.Header { return t.header }

func (t *tunnelWriter) WriteHeader(int) {}

func (t *tunnelWriter) Write([]byte) (int, error) {
	return 0, fmt.Errorf("a tunnel takes no response: %w", http.ErrNotSupported)
}

// Hijack implements http.Hijacker.
func (t *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
