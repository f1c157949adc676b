// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http/httpguts"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Bounds of probes.
const (
	minProbeTimeout     = time.Millisecond
	maxProbeTimeout     = time.Minute
	maxProbePath        = 4 << 10
	maxProbeHeaders     = 64
	maxProbeMessage     = 1 << 10
	maxProbeHeaderBytes = 64 << 10 // of the answer
)

// Probe implements agentv1connect.AgentServiceHandler.
func (s *machineService) Probe(ctx context.Context, req *connect.Request[agentv1.ProbeRequest]) (*connect.Response[agentv1.ProbeResponse], error) {
	timeout := time.Duration(req.Msg.GetTimeoutNano())
	if timeout < minProbeTimeout || timeout > maxProbeTimeout {
		return nil, invalid("timeout_nano is %d, want %d to %d", req.Msg.GetTimeoutNano(), minProbeTimeout, maxProbeTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var status int
	var err error
	switch k := req.Msg.GetKind().(type) {
	case *agentv1.ProbeRequest_Tcp:
		if err := checkPort(k.Tcp.GetPort()); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		err = probeTCP(ctx, k.Tcp.GetPort())
	case *agentv1.ProbeRequest_Http:
		get, bad := probeRequest(ctx, k.Http)
		if bad != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, bad)
		}
		status, err = probeHTTP(get)
	default:
		return nil, invalid("kind is not set")
	}
	resp := &agentv1.ProbeResponse{Success: err == nil, HttpStatus: int32(status)}
	if err != nil {
		resp.Message = err.Error()
		if len(resp.Message) > maxProbeMessage {
			resp.Message = resp.Message[:maxProbeMessage]
		}
		resp.Message = strings.ToValidUTF8(resp.Message, "?")
	}
	return connect.NewResponse(resp), nil
}

func checkPort(port int32) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port is %d, want 1 to 65535", port)
	}
	return nil
}

func loopback(port int32) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) }

func probeTCP(ctx context.Context, port int32) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", loopback(port))
	if err != nil {
		return err
	}
	_ = conn.Close()
	return nil
}

// probeRequest decodes and checks a probe.
func probeRequest(ctx context.Context, p *agentv1.HTTPProbe) (*http.Request, error) {
	if err := checkPort(p.GetPort()); err != nil {
		return nil, err
	}
	target, err := url.ParseRequestURI(p.GetPath())
	if err != nil || !strings.HasPrefix(p.GetPath(), "/") || len(p.GetPath()) > maxProbePath {
		return nil, fmt.Errorf("path is %.100q, want one that begins with a slash, at most %d bytes", p.GetPath(), maxProbePath)
	}
	target.Scheme, target.Host = "http", loopback(p.GetPort())
	if p.GetTls() {
		target.Scheme = "https"
	}
	if len(p.GetHeaders()) > maxProbeHeaders {
		return nil, fmt.Errorf("headers has %d entries, at most %d are allowed", len(p.GetHeaders()), maxProbeHeaders)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	for i, h := range p.GetHeaders() {
		if !httpguts.ValidHeaderFieldName(h.GetName()) || !httpguts.ValidHeaderFieldValue(h.GetValue()) {
			return nil, fmt.Errorf("headers[%d] is not a header", i)
		}
		req.Header.Add(h.GetName(), h.GetValue())
	}
	req.Host = cmp.Or(p.GetHost(), "localhost")
	if !httpguts.ValidHostHeader(req.Host) {
		return nil, fmt.Errorf("host is %.100q", req.Host)
	}
	return req, nil
}

// probeHTTP does it. Nothing of the answer but its status counts, so that no body is read.
func probeHTTP(req *http.Request) (status int, err error) {
	transport := &http.Transport{
		Proxy:                  nil,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxProbeHeaderBytes,
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it asks whether something answers, as the kubelet does, not who
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return resp.StatusCode, fmt.Errorf("answered with status %d", resp.StatusCode)
	}
	return resp.StatusCode, nil
}
