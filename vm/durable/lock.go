// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm/process"
)

// lockName is the file in a directory that says who has it.
const lockName = ".lock"

// maxHolderBytes bounds what is read of it.
const maxHolderBytes = 8 << 10

// Lock is a file, or a directory, that this process has to itself, or shares with others
// that only look. The kernel gives it back when the process ends, however it ends: no lock
// is ever stale. Programs that this process starts do not inherit it: it is close-on-exec.
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
// *LockedError with the holder; ErrCannotLock; fs.ErrNotExist.
func LockDir(dir string) (*Lock, error) {
	path := filepath.Join(dir, lockName)
	lock, err := LockFile(path, LockOptions{Create: true})
	if errors.Is(err, ErrLocked) {
		return nil, &LockedError{Dir: dir, PID: Holder(dir)}
	}
	if err != nil {
		return nil, err
	}
	// For the message of the next one; correctness does not depend on it.
	if self, err := process.Self(); err == nil {
		if data, err := json.Marshal(self); err == nil && syscall.Ftruncate(lock.fd, 0) == nil {
			_, _ = syscall.Pwrite(lock.fd, append(data, '\n'), 0)
		}
	}
	return lock, nil
}

// Holder is the process that took a directory last by LockDir, 0 when that has ended: the holder
// may not have written itself down yet, and nobody is to be told to kill whoever has got
// the number of the one before. It takes no lock, so that it keeps nobody from one.
func Holder(dir string) int {
	data, err := ReadFile(Host, filepath.Join(dir, lockName), maxHolderBytes)
	if err != nil {
		return 0
	}
	var holder process.Identity
	if err := json.Unmarshal(data, &holder); err != nil || holder.PID < 1 {
		return 0
	}
	p, err := process.Find(holder)
	if err != nil {
		return 0
	}
	p.Close()
	return holder.PID
}

// LockOptions say how a file is locked. The zero value is for one that is there, to have it
// alone.
type LockOptions struct {
	// Shared: others may have it as well, if they share it.
	Shared bool
	// Create makes the file when it is not there.
	Create bool
}

// LockFile takes a file without waiting. It is the one that has this name when it returns.
// Errors: ErrLocked, ErrCannotLock, fs.ErrNotExist.
func LockFile(path string, opts LockOptions) (*Lock, error) {
	flags, how := syscall.O_RDONLY, syscall.LOCK_EX
	if opts.Create {
		flags = syscall.O_RDWR | syscall.O_CREAT
	}
	if opts.Shared {
		how = syscall.LOCK_SH
	}
	for {
		fd, err := again(func() (int, error) {
			return syscall.Open(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0o600)
		})
		if err != nil {
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
		_, err = again(func() (int, error) { return 0, syscall.Flock(fd, how|syscall.LOCK_NB) })
		named := false
		if err == nil {
			named, err = isNamed(fd, path)
		}
		if err == nil && named {
			return &Lock{fd: fd}, nil
		}
		_ = syscall.Close(fd)
		switch {
		case errors.Is(err, syscall.EWOULDBLOCK):
			return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
		case cannotLock(err):
			return nil, fmt.Errorf("lock %s: %w: %w", path, ErrCannotLock, err)
		case err != nil:
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
		// It was removed between opening and locking: who comes now makes another one, or
		// finds none.
	}
}

// cannotLock tells whether an error of flock(2) means that the file system has no locks:
// network file systems without a lock service, and some in user space.
func cannotLock(err error) bool {
	for _, kind := range []error{syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOLCK, syscall.ENOSYS, syscall.EINVAL} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// isNamed tells whether a path still leads to an open file.
func isNamed(fd int, path string) (bool, error) {
	var open, named syscall.Stat_t
	if _, err := again(func() (int, error) { return 0, syscall.Fstat(fd, &open) }); err != nil {
		return false, err
	}
	_, err := again(func() (int, error) { return 0, syscall.Lstat(path, &named) })
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && open.Dev == named.Dev && open.Ino == named.Ino, err
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

// Close gives it back. Idempotent.
func (l *Lock) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return nil
	}
	fd := l.fd
	l.fd = -1
	if err := syscall.Close(fd); err != nil {
		return fmt.Errorf("give back a lock: %w", err)
	}
	return nil
}
