// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package agent is the guest's end of the protocol in vm/guest: the server that
// runs as PID 1 of a machine, or as a daemon of macOS.
//
// The server is portable and holds no decision about the operating system: what
// the machine is made of is behind [System], how containers run is behind Runtime.
// vm/guest/agent/linux implements System, vm/guest/agent/runc implements Runtime;
// vm/guest/agent/darwin and vm/guest/agent/native do in a macOS guest, and
// vm/guest/guesttest runs this same server over simulated ones. vm/guest/runtimetest is
// what a Runtime is held to.
package agent

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// System is what the server asks of the machine it runs in. All methods are safe
// for concurrent use.
type System interface {
	// Refresh puts time, entropy, identity and network in force, in this order, and
	// returns when they are. It may be called any number of times.
	Refresh(ctx context.Context, r Refresh) error
	// Now is the machine's wall clock, and SetClock steps it.
	Now() time.Time
	SetClock(t time.Time) error
	// Identity is what the machine has now.
	Identity() (Identity, error)
	// MountImage mounts the disk in an image slot read-only and returns the
	// directory. It stays mounted as long as the machine lives: what a slot holds does
	// not change, and unmounting would throw away what was read of it, which every
	// machine that is restored from this one would have to read again. Idempotent. An
	// empty slot, or a disk without a file system that the kernel knows, is an error.
	MountImage(ctx context.Context, slot int) (dir string, err error)
	// ScratchDir is a directory on the scratch disk, empty at first boot.
	ScratchDir() string
	// Quiesce prepares for a save: flush disks and, unless keepCaches, drop clean caches.
	Quiesce(ctx context.Context, keepCaches bool) error
	// PowerOff syncs and ends the machine. It returns only when it could not.
	PowerOff() error
	// Stats measures the machine; containers are not in it.
	Stats() (SystemStats, error)
}

// AddressListener is a System whose machine can answer for addresses of others.
type AddressListener interface {
	// ListenAddress listens at an address that the programs of the machine reach from then
	// on as any other, and whose ports are not theirs: one that listens on the same port of all its own
	// addresses does not notice.
	ListenAddress(ctx context.Context, address netip.AddrPort) (net.Listener, error)
}

// Refresh is what a restored machine must be told before anyone else uses it.
type Refresh struct {
	Time      time.Time
	Entropy   []byte
	MachineID string // 32 hex digits
	Hostname  string
	Network   *Network // nil: loopback only
}

// Network is the static configuration of the machine's one interface.
type Network struct {
	Address     string // with prefix length
	Gateway     string
	Nameservers []string
	MTU         int
}

// Identity is what tells one machine from another.
type Identity struct {
	MachineID     string
	Hostname      string
	KernelRelease string
}

// NetworkStats is the traffic since boot.
type NetworkStats struct {
	Interface                            string // the first
	RxBytes, RxErrors, TxBytes, TxErrors uint64
}

// SystemStats is the machine's own account.
type SystemStats struct {
	MemoryTotalBytes     int64
	MemoryAvailableBytes int64
	CPUTime              time.Duration
	ScratchTotalBytes    int64
	ScratchUsedBytes     int64
	// MemoryWorkingSetBytes is what is used, less cache that could be dropped at once.
	MemoryWorkingSetBytes int64
	// Network is the traffic of all interfaces but loopback; nil when it is not known.
	Network            *NetworkStats
	ScratchInodesTotal int64
	ScratchInodesUsed  int64
}
