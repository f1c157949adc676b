// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// lockName is the file in a directory that says who has it.
const lockName = ".lock"

// Lock is a directory that this process has to itself. The kernel gives it back when the
// process ends, however it ends: no lock is ever stale. Programs that this process starts
// do not inherit it, because Go opens files close-on-exec.
type Lock struct{ f *os.File }

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
func (e *LockedError) Is(target error) bool { return target == ErrLocked } //nolint:errorlint // this is how errors.Is asks

// LockDir takes a directory, which must be there, without waiting. Errors: ErrLocked, a
// *LockedError with the holder.
func LockDir(dir string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := flock(f); err != nil {
		holder := holderOf(f)
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Dir: dir, PID: holder}
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// For the message of the next one; correctness does not depend on it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &Lock{f}, nil
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func holderOf(f *os.File) int {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}

// Close gives the directory back. Idempotent.
func (l *Lock) Close() error {
	if err := l.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}
