// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a handle of a process, a child or another. It is a pidfd: it never means
// another process that got the same number later.
type Process struct {
	identity Identity
	handle   *os.File
	close    sync.Once
}

// Open opens the child with this number, which must not have been reaped.
func Open(pid int) (*Process, error) {
	p, err := openPID(pid)
	if err != nil {
		return nil, err
	}
	p.identity, err = identify(pid)
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Self is this process.
func Self() (Identity, error) { return identify(os.Getpid()) }

// Find opens the process that was once identified as want. The error is
// ErrGone when it has ended.
func Find(want Identity) (*Process, error) {
	p, err := openPID(want.PID)
	if err != nil {
		return nil, err
	}
	// The handle is open: what /proc says from here on is about the process that
	// the handle means, or that one has ended.
	p.identity, err = identify(want.PID)
	if err == nil && !sameProcess(p.identity, want) {
		err = ErrGone
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// sameProcess compares identities. A program that was replaced by an upgrade while
// it ran is marked as deleted by the kernel.
func sameProcess(now, want Identity) bool {
	now.Executable = strings.TrimSuffix(now.Executable, " (deleted)")
	want.Executable = strings.TrimSuffix(want.Executable, " (deleted)")
	return now == want
}

func openPID(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Process{identity: Identity{PID: pid}, handle: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// identify reads what tells a process from its successors. The error is
// ErrGone for one that has ended, reaped or not.
func identify(pid int) (Identity, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	// "Gone" must be known: a host that is out of descriptors or memory says nothing
	// about the process, and a machine taken for ended would be one without an owner.
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Identity{}, ErrGone
	}
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	// pid (name) state ppid ...: the name may hold anything, so count from its end.
	i := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[i+1:]))
	if i < 0 || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return Identity{}, ErrGone
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	// Without permission it is another user's process, and so not a machine's.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return Identity{}, ErrGone
	}
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, StartTicks: start, Boot: boot, Executable: exe}, nil
}

// bootID is different each time that the host boots.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Identity is what tells the process from its successors.
func (p *Process) Identity() Identity { return p.identity }

// Wait blocks until the process has ended (true) or the handle is closed (false).
func (p *Process) Wait() bool {
	raw, err := p.handle.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, perr := unix.Poll(fds, 0)
		ended = perr == nil && n == 1
		return ended
	})
	return err == nil && ended
}

// Kill ends the process by force. A process that has ended is no error.
func (p *Process) Kill() error {
	raw, err := p.handle.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.identity.PID, serr)
	}
	return nil
}

// Reap collects the status of an ended child. ok is false for a process that is
// not our child.
func (p *Process) Reap() (status string, ok bool) {
	var ws unix.WaitStatus
	pid, err := unix.Wait4(p.identity.PID, &ws, unix.WNOHANG, nil)
	if err != nil || pid != p.identity.PID {
		return "", false
	}
	if ws.Signaled() {
		return fmt.Sprintf("it was ended by signal %s", ws.Signal()), true
	}
	return fmt.Sprintf("it ended with status %d", ws.ExitStatus()), true
}

// Close releases the handle and ends a Wait. The process goes on.
func (p *Process) Close() {
	p.close.Do(func() { _ = p.handle.Close() })
}

// In finds the processes of program, or of any when it is empty, whose working directory is
// dir: those of a machine whose maker died before it could write down their numbers.
func In(dir, program string) ([]*Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []*Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if !worksIn(pid, dir) {
			continue
		}
		p, err := Open(pid)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			for _, p := range found {
				p.Close()
			}
			return nil, err
		}
		// Once more, now that the handle is open: the number may have changed hands since.
		if program != "" && strings.TrimSuffix(p.identity.Executable, " (deleted)") != program || !worksIn(pid, dir) {
			p.Close()
			continue
		}
		found = append(found, p)
	}
	return found, nil
}

func worksIn(pid int, dir string) bool {
	cwd, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
	return err == nil && cwd == dir
}

// clockTick is the unit of times in /proc/<pid>/stat: USER_HZ, 100 on every
// architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// Measure reads what a process costs: anonymous memory (copies of the snapshot's
// pages included, the snapshot's own pages and the program's text not) and
// processor time.
func Measure(pid int) (anonymous int64, cpu time.Duration, err error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return 0, 0, fmt.Errorf("measure process %d: %w", pid, err)
	}
	anonymous, err = rollupBytes(rollup, "Anonymous:", "Swap:")
	if err != nil {
		return 0, 0, fmt.Errorf("measure process %d: %w", pid, err)
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, 0, fmt.Errorf("measure process %d: %w", pid, err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, 0, fmt.Errorf("measure process %d: stat has %d fields", pid, len(fields))
	}
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("measure process %d: %w", pid, err)
		}
		cpu += time.Duration(n) * clockTick
	}
	return anonymous, cpu, nil
}

// rollupBytes sums the named lines ("Anonymous:   24296 kB") of a smaps_rollup.
func rollupBytes(rollup []byte, names ...string) (int64, error) {
	var sum int64
	for line := range strings.Lines(string(rollup)) {
		f := strings.Fields(line)
		for _, name := range names {
			if len(f) == 3 && f[0] == name {
				kib, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					return 0, fmt.Errorf("read %s: %w", name, err)
				}
				sum += kib << 10
			}
		}
	}
	return sum, nil
}
