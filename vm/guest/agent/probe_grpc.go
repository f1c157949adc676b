// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// healthCheck is the standard health service's method, see
	// https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
	healthCheck = "/grpc.health.v1.Health/Check"
	// maxHealthAnswer bounds its answer, which is one small number.
	maxHealthAnswer = 4 << 10
)

// probeGRPC asks the standard health service over plain HTTP/2, as the kubelet does. Connect,
// which the agent has for its own services, speaks gRPC too: gRPC's own client would add
// megabytes to every guest kit for two messages of one field each, which are written here by hand.
func probeGRPC(ctx context.Context, address, service string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	transport := &http2.Transport{
		AllowHTTP:         true,
		MaxHeaderListSize: maxProbeHeaderBytes,
		DialTLSContext: func(_ context.Context, network, _ string, _ *tls.Config) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, address)
			if err == nil {
				// CloseIdleConnections would pass over it while the call that timed out is being
				// cleared away, and then nobody ever closes it.
				context.AfterFunc(ctx, func() { _ = conn.Close() })
			}
			return conn, err
		},
	}
	client := connect.NewClient[healthRequest, healthResponse](&http.Client{Transport: transport}, "http://"+address+healthCheck,
		connect.WithGRPC(), connect.WithCodec(healthCodec{}), connect.WithReadMaxBytes(maxHealthAnswer), connect.WithAcceptCompression("gzip", nil, nil))
	res, err := client.CallUnary(ctx, connect.NewRequest(&healthRequest{service: service}))
	switch {
	case connect.CodeOf(err) == connect.CodeUnimplemented:
		return fmt.Errorf("the server does not have the gRPC health service: %w", err)
	case err != nil:
		return fmt.Errorf("gRPC health of service %q: %w", service, err)
	case res.Msg.status != healthServing:
		return fmt.Errorf("service unhealthy (responded with %q)", res.Msg.status)
	}
	return nil
}

type healthRequest struct{ service string }

type healthResponse struct{ status healthStatus }

type healthStatus uint64

// healthServing is HealthCheckResponse.SERVING.
const healthServing healthStatus = 1

func (s healthStatus) String() string {
	if names := [...]string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}; s < healthStatus(len(names)) {
		return names[s]
	}
	return fmt.Sprintf("status %d", uint64(s))
}

// healthCodec writes HealthCheckRequest and reads HealthCheckResponse of grpc.health.v1; in
// both the one field has the number 1.
type healthCodec struct{}

func (healthCodec) Name() string { return "proto" }

func (healthCodec) Marshal(m any) ([]byte, error) {
	r, ok := m.(*healthRequest)
	if !ok {
		return nil, fmt.Errorf("a %T is no request", m)
	}
	if r.service == "" {
		return nil, nil
	}
	return protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), r.service), nil
}

func (healthCodec) Unmarshal(b []byte, m any) error {
	r, ok := m.(*healthResponse)
	if !ok {
		return fmt.Errorf("a %T is no answer", m)
	}
	status, err := decodeHealth(b)
	r.status = status
	return err
}

// decodeHealth reads the status of a HealthCheckResponse. Fields that are unknown are passed
// over, and the last of several counts, as everywhere in protocol buffers.
func decodeHealth(b []byte) (healthStatus, error) {
	var status healthStatus
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, errors.New("the health service's answer is not a message")
		}
		b = b[n:]
		if number == 1 && kind == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return 0, errors.New("the health service's answer has no status")
			}
			status, b = healthStatus(v), b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return 0, errors.New("the health service's answer is cut off")
		}
		b = b[n:]
	}
	return status, nil
}
