// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// lockName is the file in a directory that says who has it.
const lockName = ".lock"

// Lock is a directory that this process has to itself. The kernel gives it back when the
// process ends, however it ends: no lock is ever stale. Programs that this process starts
// do not inherit it: it is close-on-exec.
type Lock struct {
	mu sync.Mutex
	// fd and not an os.File, which closes itself when nobody refers to it any more: who
	// forgets a lock keeps it. -1: given back.
	fd int // guarded by mu
}

// LockedError names who has a directory.
type LockedError struct {
	Dir string
	// PID is the holder's process; 0 when it is not known.
	PID int
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is %v", e.Dir, ErrLocked)
	}
	return fmt.Sprintf("%s is %v (process %d)", e.Dir, ErrLocked, e.PID)
}

// Is makes it ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// LockDir takes a directory, which must be there, without waiting. Errors: ErrLocked, a
// *LockedError with the holder.
func LockDir(dir string) (*Lock, error) {
	fd, err := again(func() (int, error) {
		return syscall.Open(filepath.Join(dir, lockName), syscall.O_CREAT|syscall.O_RDWR|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if _, err := again(func() (int, error) { return 0, syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil {
		holder := holderOf(fd)
		_ = syscall.Close(fd)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Dir: dir, PID: holder}
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// For the message of the next one; correctness does not depend on it.
	if err := syscall.Ftruncate(fd, 0); err == nil {
		_, _ = syscall.Pwrite(fd, []byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &Lock{fd: fd}, nil
}

// again repeats a call that a signal interrupts.
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

func holderOf(fd int) int {
	data := make([]byte, 32)
	n, err := again(func() (int, error) { return syscall.Pread(fd, data, 0) })
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data[:n])))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}

// Close gives the directory back. Idempotent.
func (l *Lock) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return nil
	}
	fd := l.fd
	l.fd = -1
	if err := syscall.Close(fd); err != nil {
		return fmt.Errorf("give back a directory: %w", err)
	}
	return nil
}
