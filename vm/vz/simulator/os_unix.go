// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// tryLock locks f. The error is errTaken when another open file has it.
func tryLock(f *os.File, shared bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	err := flock(f, how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errTaken
	}
	return err
}

func waitLock(f *os.File) error { return flock(f, unix.LOCK_EX) }

// unlock gives a lock back and closes f. Closing alone is not enough: a process that is
// being forked at this moment has f open, and with it the lock, until it runs its
// program.
func unlock(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Flock(int(fd), unix.LOCK_UN) })
	}
	f.Close()
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// fileKey names a file however it is called.
func fileKey(info os.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Name()
	}
	return fmt.Sprintf("%x-%x", st.Dev, st.Ino)
}

// datagramSocket is why f is no connected datagram socket, or nil. It leaves f's
// blocking mode alone.
func datagramSocket(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		kind, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		switch {
		case err != nil:
			serr = err
		case kind != unix.SOCK_DGRAM:
			serr = errors.New("not a datagram socket")
		default:
			if _, err := unix.Getpeername(int(fd)); err != nil {
				serr = fmt.Errorf("not connected: %w", err)
			}
		}
	})
	return errors.Join(err, serr)
}

// pair makes two connected streams with the kernel's buffers between them, as a vsock
// connection has.
func pair() (net.Conn, net.Conn, error) {
	// A process that is forked in between would keep the stream open.
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("make a stream: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "stream")
		conns[i], err = net.FileConn(f) // a copy
		f.Close()
		if err != nil {
			if i == 1 {
				conns[0].Close()
			} else {
				_ = unix.Close(fds[1])
			}
			return nil, nil, fmt.Errorf("make a stream: %w", err)
		}
	}
	return conns[0], conns[1], nil
}
