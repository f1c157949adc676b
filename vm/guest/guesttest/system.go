// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

type identity struct{ machineID, hostname string }

// system is a machine without a kernel.
type system struct {
	dir      string
	opts     Options
	powerOff func()

	mu       sync.Mutex
	identity identity      // guarded by mu, like all below
	ahead    time.Duration // of its clock
	sets     int           // how often that was set
	mounted  map[int]bool
	network  *agent.Network
	answers  map[netip.AddrPort]string // by address of others, the host's that stands for it
}

var (
	_ agent.System          = (*system)(nil)
	_ agent.AddressListener = (*system)(nil)
)

func newSystem(dir string, o Options, id identity, powerOff func()) *system {
	return &system{dir: dir, opts: o, identity: id, powerOff: powerOff, mounted: map[int]bool{}, answers: map[netip.AddrPort]string{}}
}

func (s *system) id() identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity
}

// Refresh implements agent.System, like the methods below.
func (s *system) Refresh(_ context.Context, r agent.Refresh) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identity = identity{machineID: r.MachineID, hostname: r.Hostname}
	s.network = r.Network
	s.ahead = r.Time.Sub(time.Now().Round(0))
	return nil
}

func (s *system) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

func (s *system) SetClock(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead = t.Sub(time.Now().Round(0))
	s.sets++
	return nil
}

func (s *system) Identity() (agent.Identity, error) {
	id := s.id()
	return agent.Identity{MachineID: id.machineID, Hostname: id.hostname, KernelRelease: "0.0.0-simulated"}, nil
}

func (s *system) MountImage(_ context.Context, slot int) (string, error) {
	if slot < 0 || slot >= s.opts.ImageSlots {
		return "", fmt.Errorf("the machine has no image slot %d", slot)
	}
	dir := filepath.Join(s.dir, "images", fmt.Sprint(slot))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounted[slot] = true
	return dir, nil
}

func (s *system) ScratchDir() string                  { return s.dir }
func (s *system) Quiesce(context.Context, bool) error { return nil }

func (s *system) PowerOff() error {
	s.powerOff()
	return nil
}

func (s *system) Stats() (agent.SystemStats, error) {
	return agent.SystemStats{
		MemoryTotalBytes: s.opts.MemoryBytes, MemoryAvailableBytes: s.opts.MemoryBytes / 2, CPUTime: time.Second,
		ScratchTotalBytes: 16 << 30, ScratchUsedBytes: 1 << 20, ScratchInodesTotal: 1 << 20, ScratchInodesUsed: 1 << 10,
		MemoryWorkingSetBytes: s.opts.MemoryBytes / 4, Network: &agent.NetworkStats{Interface: "eth0", RxBytes: 1000, TxBytes: 2000},
	}, nil
}

// MountedImages is the number of image slots that are mounted.
func (a *Agent) MountedImages() int {
	a.system.mu.Lock()
	defer a.system.mu.Unlock()
	return len(a.system.mounted)
}

// StandStill lets the guest's clock fall behind, as a pause of the machine does.
func (a *Agent) StandStill(d time.Duration) {
	a.system.mu.Lock()
	defer a.system.mu.Unlock()
	a.system.ahead -= d
}

// Clock is how far the guest's clock is ahead, and how often it was set but by a refresh.
func (a *Agent) Clock() (ahead time.Duration, sets int) {
	a.system.mu.Lock()
	defer a.system.mu.Unlock()
	return a.system.ahead, a.system.sets
}

// Network is the network of the last refresh, or nil.
func (a *Agent) Network() *agent.Network {
	a.system.mu.Lock()
	defer a.system.mu.Unlock()
	return a.system.network
}

// ListenAddress implements agent.AddressListener, on the host's loopback.
func (s *system) ListenAddress(ctx context.Context, address netip.AddrPort) (net.Listener, error) {
	if s.opts.OwnAddressOnly {
		return nil, errors.ErrUnsupported
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[address] = l.Addr().String()
	return l, nil
}

// DialAddress connects to an address of others as a program of the machine would.
func (a *Agent) DialAddress(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
	a.system.mu.Lock()
	at, ok := a.system.answers[address]
	a.system.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("dial %s: the machine does not answer for it", address)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", at)
}
