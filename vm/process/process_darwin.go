// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm"
)

// zombie is SZOMB of sys/proc.h: a process that has ended and was not reaped.
const zombie = 5

// Process is a handle of a process, a child or another. macOS has no pidfds: its end
// is watched with kqueue, and before a signal is sent the identity is compared once
// more, which leaves a window of microseconds. Type-checked, never run on a Mac.
type Process struct {
	identity Identity
	queue    int
	close    sync.Once
	waiters  sync.WaitGroup
}

// wake is the identifier of the event that ends a Wait.
const wake = 1

// Open opens the child with this number, which must not have been reaped.
func Open(pid int) (*Process, error) {
	p, err := watch(pid)
	if err != nil {
		return nil, err
	}
	if p.identity, err = identify(pid); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Self is this process.
func Self() (Identity, error) { return identify(os.Getpid()) }

// Find opens the process that was once identified as want. The error is ErrGone when
// it has ended.
func Find(want Identity) (*Process, error) {
	p, err := Open(want.PID)
	if err != nil {
		return nil, err
	}
	if p.identity != want {
		p.Close()
		return nil, ErrGone
	}
	return p, nil
}

// watch makes a queue that tells of the end of a process.
func watch(pid int) (*Process, error) {
	queue, err := unix.Kqueue()
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	unix.CloseOnExec(queue)
	var events [2]unix.Kevent_t
	unix.SetKevent(&events[0], pid, unix.EVFILT_PROC, unix.EV_ADD)
	events[0].Fflags = unix.NOTE_EXIT
	unix.SetKevent(&events[1], wake, unix.EVFILT_USER, unix.EV_ADD)
	if _, err := unix.Kevent(queue, events[:], nil, nil); err != nil {
		_ = unix.Close(queue)
		if errors.Is(err, unix.ESRCH) {
			return nil, ErrGone
		}
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Process{identity: Identity{PID: pid}, queue: queue}, nil
}

// identify reads what tells a process from its successors. The error is ErrGone for
// one that has ended, reaped or not.
func identify(pid int) (Identity, error) {
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	// Of a number without a process sysctl(3) returns nothing, which x/sys calls EIO.
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EIO) {
		return Identity{}, ErrGone
	}
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	if info.Proc.P_stat == zombie {
		return Identity{}, ErrGone
	}
	executable, _, err := arguments(pid)
	// EINVAL: of another user, or ending.
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return Identity{}, ErrGone
	}
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	boot, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return Identity{}, fmt.Errorf("read the host's boot id: %w", err)
	}
	start := info.Proc.P_starttime
	return Identity{PID: pid, StartTicks: uint64(start.Sec)*1e6 + uint64(start.Usec), Boot: boot, Executable: executable}, nil
}

// arguments reads a process's program and arguments.
func arguments(pid int) (executable string, args []string, err error) {
	raw, err := unix.SysctlRaw("kern.procargs2", pid)
	if err != nil {
		return "", nil, err
	}
	return parseArguments(raw)
}

// Wait blocks until the process has ended (true) or the handle is closed (false).
func (p *Process) Wait() bool {
	p.waiters.Add(1)
	defer p.waiters.Done()
	var events [1]unix.Kevent_t
	for {
		n, err := unix.Kevent(p.queue, nil, events[:], nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n == 1 && events[0].Filter == unix.EVFILT_PROC
	}
}

// Kill ends the process by force. A process that has ended is no error.
func (p *Process) Kill() error {
	now, err := identify(p.identity.PID)
	if errors.Is(err, ErrGone) || err == nil && now != p.identity {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Kill(p.identity.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.identity.PID, err)
	}
	return nil
}

// Reap collects the status of an ended child. ok is false for a process that is not
// our child.
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

// Identity is what tells the process from its successors.
func (p *Process) Identity() Identity { return p.identity }

// Close releases the handle and ends a Wait. The process goes on.
func (p *Process) Close() {
	p.close.Do(func() {
		var event [1]unix.Kevent_t
		unix.SetKevent(&event[0], wake, unix.EVFILT_USER, 0)
		event[0].Fflags = unix.NOTE_TRIGGER
		_, _ = unix.Kevent(p.queue, event[:], nil, nil)
		p.waiters.Wait()
		_ = unix.Close(p.queue)
	})
}

// In finds the processes of program, or of any when it is empty, that work in dir. macOS
// tells nobody another process's working directory without cgo, so they are known by dir
// among their arguments, as it is given or with its links followed.
func In(dir, program string) ([]*Process, error) {
	dirs := []string{dir}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dirs = append(dirs, real)
	}
	all, err := unix.SysctlKinfoProcSlice("kern.proc.uid", os.Getuid())
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []*Process
	for _, info := range all {
		pid := int(info.Proc.P_pid)
		if !worksIn(pid, dirs, program) {
			continue // ended meanwhile, or another one
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
		// Once more, now that it is identified: the number may have changed hands since.
		if !worksIn(pid, dirs, program) {
			p.Close()
			continue
		}
		found = append(found, p)
	}
	return found, nil
}

func worksIn(pid int, dirs []string, program string) bool {
	executable, args, err := arguments(pid)
	return err == nil && speaksOf(executable, args, dirs, program)
}

// Measure is not known on macOS: the memory of a machine belongs to a process of the
// framework's whose number nobody is told.
func Measure(pid int) (anonymous int64, cpu time.Duration, err error) {
	return 0, 0, fmt.Errorf("measure process %d: %w", pid, vm.ErrNotSupported)
}
