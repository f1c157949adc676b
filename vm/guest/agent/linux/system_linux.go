// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// System is the machine. Make it by Boot; there is one in a process.
type System struct {
	version string
	disks   map[string]string // serial number to device

	refreshing sync.Mutex // one refresh at a time

	mu     sync.Mutex
	images map[int]string // guarded by mu; directories of mounted slots
}

var _ agent.System = (*System)(nil)

// Version is the version of the agent that the kit was built with.
func (s *System) Version() string { return s.version }

// Refresh implements agent.System.
func (s *System) Refresh(ctx context.Context, r agent.Refresh) error {
	// Refused before anything is changed.
	if err := checkMachineID(r.MachineID); err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	if err := checkHostname(r.Hostname); err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	var n *network
	if r.Network != nil {
		parsed, err := parseNetwork(*r.Network)
		if err != nil {
			return fmt.Errorf("refresh: %w", err)
		}
		n = &parsed
	}
	s.refreshing.Lock()
	defer s.refreshing.Unlock()
	for _, step := range []func() error{
		func() error { return setClock(r.Time) },
		func() error { return addEntropy(r.Entropy) },
		func() error { return setIdentity(r.MachineID, r.Hostname) },
		func() error { return setNetwork(n) },
	} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("refresh: %w", err)
		}
		if err := step(); err != nil {
			return fmt.Errorf("refresh: %w", err)
		}
	}
	return nil
}

// Now implements agent.System.
func (s *System) Now() time.Time { return time.Now() }

// SetClock implements agent.System.
func (s *System) SetClock(t time.Time) error { return setClock(t) }

func setClock(t time.Time) error {
	if t.Unix() <= 0 {
		return fmt.Errorf("set clock: %s is not a time of today", t)
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// entropyBytes bounds what a refresh brings; random(4) takes any amount.
const (
	minEntropy = 32
	maxEntropy = 256
)

// addEntropy mixes b into the kernel's pool, credits it, and makes the generator take a
// new key from the pool at once: without that, clones go on with the same one for up to
// a minute (random(4), RNDRESEEDCRNG).
func addEntropy(b []byte) error {
	if len(b) < minEntropy || len(b) > maxEntropy {
		return fmt.Errorf("add entropy: %d bytes, want %d to %d", len(b), minEntropy, maxEntropy)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info of linux/random.h.
	info := struct {
		bits, size int32
		buf        [maxEntropy]byte
	}{bits: int32(8 * len(b)), size: int32(len(b))}
	copy(info.buf[:], b)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed the random generator: %w", errno)
	}
	return nil
}

// rndReseedCRNG is RNDRESEEDCRNG, _IO('R', 0x07), of linux/random.h.
const rndReseedCRNG = 0x5207

const (
	machineIDFile = "/etc/machine-id"
	hostnameFile  = "/etc/hostname"
	resolvFile    = "/etc/resolv.conf"
)

func setIdentity(machineID, hostname string) error {
	if err := replaceFile(machineIDFile, machineID+"\n"); err != nil {
		return fmt.Errorf("set machine-id: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := replaceFile(hostnameFile, hostname+"\n"); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	return nil
}

// replaceFile writes a file so that a reader sees the old content or the new.
func replaceFile(path, content string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Identity implements agent.System. Before the first refresh there is no machine-id.
func (s *System) Identity() (agent.Identity, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return agent.Identity{}, fmt.Errorf("identity: %w", err)
	}
	id, err := os.ReadFile(machineIDFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return agent.Identity{}, fmt.Errorf("identity: %w", err)
	}
	return agent.Identity{
		MachineID:     strings.TrimSpace(string(id)),
		Hostname:      unix.ByteSliceToString(u.Nodename[:]),
		KernelRelease: unix.ByteSliceToString(u.Release[:]),
	}, nil
}

// Quiesce implements agent.System. The scratch disk is not trimmed: at this point hardly
// anything was ever freed on it, and discarding 16 GiB of free blocks makes an overlay
// on the host larger, not smaller.
func (s *System) Quiesce(_ context.Context, keepCaches bool) error {
	unix.Sync()
	debug.FreeOSMemory()
	if keepCaches {
		return nil
	}
	// Both page cache and the objects that hold on to it (proc(5)).
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("quiesce: %w", err)
	}
	return nil
}

// PowerOff implements agent.System.
func (s *System) PowerOff() error {
	// Whatever still runs would keep the scratch disk busy. -1 spares PID 1.
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("power off: %w", err)
	}
	unix.Sync()
	// Best effort: the disk of a machine that goes is read again only in tests.
	if unix.Unmount(scratchDir, unix.UMOUNT_NOFOLLOW) != nil {
		_ = unix.Mount("", scratchDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return nil
}

// Stats implements agent.System.
func (s *System) Stats() (agent.SystemStats, error) {
	var out agent.SystemStats
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	if out.MemoryTotalBytes, out.MemoryAvailableBytes, err = parseMeminfo(string(meminfo)); err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	if out.MemoryWorkingSetBytes, err = parseWorkingSet(string(meminfo)); err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	traffic, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	if out.Network, err = parseNetDev(string(traffic)); err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	if out.CPUTime, err = parseCPUTime(string(stat)); err != nil {
		return out, fmt.Errorf("stats: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(scratchDir, &st); err != nil {
		return out, fmt.Errorf("stats: scratch disk: %w", err)
	}
	out.ScratchTotalBytes = int64(st.Blocks) * st.Bsize
	out.ScratchUsedBytes = int64(st.Blocks-st.Bfree) * st.Bsize
	out.ScratchInodesTotal, out.ScratchInodesUsed = int64(st.Files), int64(st.Files-st.Ffree)
	return out, nil
}
