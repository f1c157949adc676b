// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

// serve is a stand-in until vm/guest/agent has its server: greeting, Info, Ping and
// Refresh.
func serve(_ context.Context, l net.Listener, s *linux.System, started time.Time) error {
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewAgentServiceHandler(&stub{system: s, started: started}))
	server := &http2.Server{}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := answer(c); err == nil {
			server.ServeConn(c, &http2.ServeConnOpts{Handler: mux})
		}
		c.Close()
	}
}

func answer(c net.Conn) error {
	var window [20]byte
	var answered [16]byte
	for n := 0; ; n++ {
		copy(window[:], window[1:])
		if _, err := io.ReadFull(c, window[19:]); err != nil {
			return err
		}
		nonce := [16]byte(window[4:])
		switch string(window[:4]) {
		case "FKH1":
			if nonce == answered {
				continue
			}
			answered = nonce
			if _, err := c.Write(append([]byte("FKA1"), nonce[:]...)); err != nil {
				return err
			}
		case "FKS1":
			if nonce == answered {
				return nil
			}
		}
	}
}

type stub struct {
	agentv1connect.UnimplementedAgentServiceHandler
	system  *linux.System
	started time.Time
}

func (s *stub) Info(context.Context, *connect.Request[agentv1.InfoRequest]) (*connect.Response[agentv1.InfoResponse], error) {
	id, err := s.system.Identity()
	if err != nil {
		return nil, err
	}
	st, err := s.system.Stats()
	if err != nil {
		return nil, err
	}
	random := make([]byte, 16)
	rand.Read(random)
	now := time.Now()
	return connect.NewResponse(&agentv1.InfoResponse{
		AgentVersion: s.system.Version(), ProtocolVersion: guest.ProtocolVersion, KernelRelease: id.KernelRelease,
		MachineId: id.MachineID, Hostname: id.Hostname, TimeUnixNano: now.UnixNano(), UptimeNano: int64(now.Sub(s.started)),
		Random: random, MemoryTotalBytes: st.MemoryTotalBytes,
	}), nil
}

func (s *stub) Ping(_ context.Context, r *connect.Request[agentv1.PingRequest]) (*connect.Response[agentv1.PingResponse], error) {
	return connect.NewResponse(&agentv1.PingResponse{Payload: r.Msg.GetPayload()}), nil
}

func (s *stub) Refresh(ctx context.Context, r *connect.Request[agentv1.RefreshRequest]) (*connect.Response[agentv1.RefreshResponse], error) {
	m := r.Msg
	refresh := agent.Refresh{Time: time.Unix(0, m.GetTimeUnixNano()), Entropy: m.GetEntropy(), MachineID: m.GetMachineId(), Hostname: m.GetHostname()}
	if n := m.GetNetwork(); n != nil {
		refresh.Network = &agent.Network{Address: n.GetAddress(), Gateway: n.GetGateway(), Nameservers: n.GetNameservers(), MTU: int(n.GetMtu())}
	}
	if err := s.system.Refresh(ctx, refresh); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return connect.NewResponse(&agentv1.RefreshResponse{}), nil
}

func (s *stub) PowerOff(context.Context, *connect.Request[agentv1.PowerOffRequest]) (*connect.Response[agentv1.PowerOffResponse], error) {
	return nil, errors.Join(fmt.Errorf("power off"), s.system.PowerOff())
}
