// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

const (
	sealKeyBytes   = 32
	challengeBytes = 32
	maxPingBytes   = 4 << 10
	// powerOffDelay lets the response leave before the machine ends.
	powerOffDelay = 50 * time.Millisecond
	// powerOffKill is how long containers may take to die before a power-off.
	powerOffKill = 2 * time.Second
)

// Seal is the mark that a machine was saved: a key that exists nowhere but in its
// memory, and so in the snapshot's. The zero value is a machine never sealed.
type Seal struct {
	mu  sync.Mutex
	key []byte // guarded by mu; nil until sealed
}

// Clone copies the mark, as a restore copies memory. It is for simulated machines.
func (s *Seal) Clone() *Seal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Seal{key: bytes.Clone(s.key)}
}

// machineService serves agentv1.AgentService.
type machineService struct{ *Server }

func (s *machineService) Info(context.Context, *connect.Request[agentv1.InfoRequest]) (*connect.Response[agentv1.InfoResponse], error) {
	id, err := s.system.Identity()
	if err != nil {
		return nil, internal("read identity", err)
	}
	stats, err := s.system.Stats()
	if err != nil {
		return nil, internal("measure machine", err)
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return nil, internal("draw random bytes", err)
	}
	s.seal.mu.Lock()
	sealed := s.seal.key != nil
	s.seal.mu.Unlock()
	return connect.NewResponse(&agentv1.InfoResponse{
		AgentVersion:     s.version,
		ProtocolVersion:  guest.ProtocolVersion,
		KernelRelease:    id.KernelRelease,
		MachineId:        id.MachineID,
		Hostname:         id.Hostname,
		TimeUnixNano:     s.system.Now().UnixNano(),
		UptimeNano:       int64(time.Since(s.started)),
		Sealed:           sealed,
		Random:           random,
		MemoryTotalBytes: stats.MemoryTotalBytes,
	}), nil
}

func (s *machineService) Ping(_ context.Context, req *connect.Request[agentv1.PingRequest]) (*connect.Response[agentv1.PingResponse], error) {
	if len(req.Msg.GetPayload()) > maxPingBytes {
		return nil, invalid("payload has %d bytes, at most %d are allowed", len(req.Msg.GetPayload()), maxPingBytes)
	}
	return connect.NewResponse(&agentv1.PingResponse{Payload: req.Msg.GetPayload(), TimeUnixNano: s.system.Now().UnixNano()}), nil
}

func (s *machineService) SetClock(_ context.Context, req *connect.Request[agentv1.SetClockRequest]) (*connect.Response[agentv1.SetClockResponse], error) {
	if req.Msg.GetTimeUnixNano() <= 0 {
		return nil, invalid("time_unix_nano is %d, want a time after 1970", req.Msg.GetTimeUnixNano())
	}
	if err := s.system.SetClock(time.Unix(0, req.Msg.GetTimeUnixNano())); err != nil {
		return nil, internal("set the machine's clock", err)
	}
	return connect.NewResponse(&agentv1.SetClockResponse{}), nil
}

func (s *machineService) Seal(ctx context.Context, req *connect.Request[agentv1.SealRequest]) (*connect.Response[agentv1.SealResponse], error) {
	if len(req.Msg.GetKey()) != sealKeyBytes {
		return nil, invalid("key has %d bytes, want %d", len(req.Msg.GetKey()), sealKeyBytes)
	}
	s.seal.mu.Lock()
	defer s.seal.mu.Unlock()
	if n := s.containers.podContainers(); n > 0 {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("machine has %d containers", n))
	}
	// The agent's own garbage would be saved with every snapshot.
	debug.FreeOSMemory()
	if err := s.system.Quiesce(context.WithoutCancel(ctx), req.Msg.GetKeepCaches()); err != nil {
		return nil, internal("prepare for a save", err)
	}
	s.seal.key = bytes.Clone(req.Msg.GetKey())
	return connect.NewResponse(&agentv1.SealResponse{}), nil
}

func (s *machineService) Refresh(ctx context.Context, req *connect.Request[agentv1.RefreshRequest]) (*connect.Response[agentv1.RefreshResponse], error) {
	r, err := refreshOf(req.Msg)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if err := s.system.Refresh(context.WithoutCancel(ctx), r); err != nil {
		return nil, internal("refresh machine", err)
	}
	resp := &agentv1.RefreshResponse{}
	s.seal.mu.Lock()
	if s.seal.key != nil {
		mac := hmac.New(sha256.New, s.seal.key)
		mac.Write(req.Msg.GetChallenge())
		resp.Proof = mac.Sum(nil)
	}
	s.seal.mu.Unlock()
	return connect.NewResponse(resp), nil
}

// refreshOf decodes and checks a request.
func refreshOf(m *agentv1.RefreshRequest) (Refresh, error) {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if m.GetTimeUnixNano() <= 0 {
		fault("time_unix_nano is %d, want a time after 1970", m.GetTimeUnixNano())
	}
	if n := len(m.GetEntropy()); n < 32 || n > 256 {
		fault("entropy has %d bytes, want 32 to 256", n)
	}
	if len(m.GetMachineId()) != 32 || strings.Trim(m.GetMachineId(), "0123456789abcdef") != "" {
		fault("machine_id is %q, want 32 hex digits in lower case", m.GetMachineId())
	}
	if err := checkHostname(m.GetHostname()); err != nil {
		errs = append(errs, err)
	}
	if n := len(m.GetChallenge()); n != challengeBytes {
		fault("challenge has %d bytes, want %d", n, challengeBytes)
	}
	r := Refresh{
		Time:      time.Unix(0, m.GetTimeUnixNano()),
		Entropy:   m.GetEntropy(),
		MachineID: m.GetMachineId(),
		Hostname:  m.GetHostname(),
	}
	if n := m.GetNetwork(); n != nil {
		if _, err := netip.ParsePrefix(n.GetAddress()); err != nil {
			fault("network.address: %v", err)
		}
		for _, a := range append(append([]string(nil), n.GetNameservers()...), n.GetGateway()) {
			if _, err := netip.ParseAddr(a); err != nil && a != "" {
				fault("network: %v", err)
			}
		}
		if n.GetMtu() != 0 && (n.GetMtu() < 576 || n.GetMtu() > 65535) {
			fault("network.mtu is %d, want 576 to 65535", n.GetMtu())
		}
		r.Network = &Network{Address: n.GetAddress(), Gateway: n.GetGateway(), Nameservers: n.GetNameservers(), MTU: int(n.GetMtu())}
	}
	return r, errors.Join(errs...)
}

func (s *machineService) PowerOff(context.Context, *connect.Request[agentv1.PowerOffRequest]) (*connect.Response[agentv1.PowerOffResponse], error) {
	s.powerOff.Do(func() {
		s.work.Go(func() {
			time.Sleep(powerOffDelay) //nolint:forbidigo // the response must leave first, and nothing tells when it has
			ctx, cancel := context.WithTimeout(context.Background(), powerOffKill)
			defer cancel()
			s.containers.kill(ctx)
			if err := s.system.PowerOff(); err != nil {
				s.log.Error("Powering off failed", "error", err)
			}
		})
	})
	return connect.NewResponse(&agentv1.PowerOffResponse{}), nil
}

func (s *machineService) Stats(ctx context.Context, _ *connect.Request[agentv1.StatsRequest]) (*connect.Response[agentv1.StatsResponse], error) {
	m, err := s.system.Stats()
	if err != nil {
		return nil, internal("measure machine", err)
	}
	resp := &agentv1.StatsResponse{
		TimeUnixNano:         s.system.Now().UnixNano(),
		MemoryTotalBytes:     m.MemoryTotalBytes,
		MemoryAvailableBytes: m.MemoryAvailableBytes,
		CpuNano:              int64(m.CPUTime),
		ScratchTotalBytes:    m.ScratchTotalBytes,
		ScratchUsedBytes:     m.ScratchUsedBytes,
		ScratchInodesTotal:   m.ScratchInodesTotal,
		ScratchInodesUsed:    m.ScratchInodesUsed,
		Containers:           s.containers.stats(ctx),
		Volumes:              s.volumes.stats(ctx),

		MemoryWorkingSetBytes: m.MemoryWorkingSetBytes,
	}
	if n := m.Network; n != nil {
		resp.Network = &agentv1.NetworkStats{Interface: n.Interface, RxBytes: n.RxBytes, RxErrors: n.RxErrors, TxBytes: n.TxBytes, TxErrors: n.TxErrors}
	}
	return connect.NewResponse(resp), nil
}

// invalid is a fault of the request.
func invalid(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// internal is a fault of the machine.
func internal(doing string, err error) error {
	return connect.NewError(connect.CodeInternal, fmt.Errorf("%s: %w", doing, err))
}

// runtimeError gives an error of the runtime its code.
func runtimeError(doing string, err error) error {
	code := connect.CodeInternal
	var start *StartError
	switch {
	case errors.Is(err, ErrInvalid), errors.As(err, &start):
		code = connect.CodeInvalidArgument
	case errors.Is(err, ErrPrecondition):
		code = connect.CodeFailedPrecondition
	}
	return connect.NewError(code, fmt.Errorf("%s: %w", doing, err))
}
