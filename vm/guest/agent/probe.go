// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http/httpguts"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Bounds of probes.
const (
	minProbeTimeout     = time.Millisecond
	maxProbeTimeout     = time.Hour
	maxProbePath        = 4 << 10
	maxProbeHost        = 253 // a DNS name
	maxProbeHeaders     = 64
	maxProbeService     = 4 << 10
	maxProbeMessage     = 1 << 10
	maxProbeHeaderBytes = 64 << 10 // of the answer
	maxProbeBody        = 10 << 10 // that is read of an answer: the kubelet's bound
	maxProbeRedirects   = 10       // the kubelet's as well
)

// Probe implements agentv1connect.AgentServiceHandler.
func (s *machineService) Probe(ctx context.Context, req *connect.Request[agentv1.ProbeRequest]) (*connect.Response[agentv1.ProbeResponse], error) {
	timeout := time.Duration(req.Msg.GetTimeoutNano())
	if timeout < minProbeTimeout || timeout > maxProbeTimeout {
		return nil, invalid("timeout_nano is %d, want %d to %d", req.Msg.GetTimeoutNano(), minProbeTimeout, maxProbeTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp := &agentv1.ProbeResponse{}
	var err error
	switch k := req.Msg.GetKind().(type) {
	case *agentv1.ProbeRequest_Tcp:
		if err := errors.Join(checkPort(k.Tcp.GetPort()), checkHost(k.Tcp.GetConnectHost())); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		err = probeTCP(ctx, connectAddress(k.Tcp.GetConnectHost(), k.Tcp.GetPort()))
	case *agentv1.ProbeRequest_Http:
		get, bad := probeRequest(ctx, k.Http)
		if bad != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, bad)
		}
		var status int
		status, resp.Message, err = probeHTTP(get)
		resp.HttpStatus = int32(status) //nolint:gosec // three digits
	case *agentv1.ProbeRequest_Grpc:
		if err := checkPort(k.Grpc.GetPort()); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		if len(k.Grpc.GetService()) > maxProbeService {
			return nil, invalid("service has %d bytes, at most %d are allowed", len(k.Grpc.GetService()), maxProbeService)
		}
		err = probeGRPC(ctx, connectAddress("", k.Grpc.GetPort()), k.Grpc.GetService())
	default:
		return nil, invalid("kind is not set")
	}
	resp.Success = err == nil
	if err != nil {
		resp.Message = err.Error()
	}
	resp.Message = strings.ToValidUTF8(resp.Message[:min(len(resp.Message), maxProbeMessage)], "")
	return connect.NewResponse(resp), nil
}

func checkPort(port int32) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port is %d, want 1 to 65535", port)
	}
	return nil
}

func checkHost(host string) error {
	if len(host) > maxProbeHost {
		return fmt.Errorf("connect_host has %d bytes, at most %d are allowed", len(host), maxProbeHost)
	}
	return nil
}

// connectAddress is where to connect to; an empty host is the machine itself.
func connectAddress(host string, port int32) string {
	return net.JoinHostPort(cmp.Or(host, "127.0.0.1"), strconv.Itoa(int(port)))
}

func probeTCP(ctx context.Context, address string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	_ = conn.Close()
	return nil
}

// probeRequest decodes and checks a probe.
func probeRequest(ctx context.Context, p *agentv1.HTTPProbe) (*http.Request, error) {
	if err := errors.Join(checkPort(p.GetPort()), checkHost(p.GetConnectHost())); err != nil {
		return nil, err
	}
	target, err := url.ParseRequestURI(p.GetPath())
	if err != nil || !strings.HasPrefix(p.GetPath(), "/") || len(p.GetPath()) > maxProbePath {
		return nil, fmt.Errorf("path is %.100q, want one that begins with a slash, at most %d bytes", p.GetPath(), maxProbePath)
	}
	target.Scheme, target.Host = "http", connectAddress(p.GetConnectHost(), p.GetPort())
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

// probeHTTP does it. Redirects are followed as long as they stay with the host: the one
// connected to, or the one by the name of the Host header, which a server that makes its
// redirects absolute uses; both are reached at the same address. One that leads elsewhere
// ends the probe as a success, and note says so.
func probeHTTP(req *http.Request) (status int, note string, err error) {
	connected, named := req.URL.Hostname(), (&url.URL{Host: req.Host}).Hostname()
	var d net.Dialer
	transport := &http.Transport{
		Proxy:                  nil,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxProbeHeaderBytes,
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it asks whether something answers, as the kubelet does, not who
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return d.DialContext(ctx, network, net.JoinHostPort(connected, port))
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		switch {
		case next.URL.Hostname() != connected && next.URL.Hostname() != named:
			return http.ErrUseLastResponse
		case len(via) >= maxProbeRedirects:
			return fmt.Errorf("stopped after %d redirects", maxProbeRedirects)
		default:
			return nil
		}
	}}
	resp, err := client.Do(req) //nolint:gosec // asking what the host names is what it is for
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return 0, "", errors.New(guest.ProbePlainHTTP)
	case err != nil:
		if resp != nil { // a redirect that was not followed
			return resp.StatusCode, "", err
		}
		return 0, "", err
	}
	defer resp.Body.Close()
	// An answer that does not come is none, whatever its status was.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	switch {
	case err != nil:
		return 0, "", fmt.Errorf("read the answer: %w", err)
	case resp.StatusCode < 200 || resp.StatusCode > 399:
		return resp.StatusCode, "", fmt.Errorf("answered with status %d", resp.StatusCode)
	case resp.StatusCode >= 300:
		// Kubernetes' conformance tests look for these words in the event that comes of it.
		return resp.StatusCode, "Probe terminated redirects, Response body: " + string(body), nil
	}
	return resp.StatusCode, "", nil
}
