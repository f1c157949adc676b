// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// addr is where a listener or a connection is, for people.
type addr string

func (addr) Network() string  { return "guest" }
func (a addr) String() string { return string(a) }

// conn is a stream on a file that the Go poller can wait for.
type conn struct {
	*os.File
	addr addr
}

func (c *conn) LocalAddr() net.Addr  { return c.addr }
func (c *conn) RemoteAddr() net.Addr { return addr("host") }

// vsockListener listens on AF_VSOCK, which the net package does not know.
type vsockListener struct {
	file *os.File
	addr addr
}

// ListenVsock listens on a vsock port for connections of the host.
//
// Unproven on hardware: that a macOS guest may bind to VMADDR_CID_ANY and listen is what
// sys/vsock.h and vsock(4) promise; what is known to work is to connect to the host
// (Tailscale's cmd/tta/ipassign_darwin.go).
func ListenVsock(port uint32) (net.Listener, error) {
	fd, err := ownSocket(func() (int, error) { return unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) })
	if err != nil {
		return nil, fmt.Errorf("listen on vsock: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	name := fmt.Sprintf("vsock:%d", port)
	return &vsockListener{file: os.NewFile(uintptr(fd), name), addr: addr(name)}, nil
}

// ownSocket makes a socket that no child inherits and the poller can wait for: macOS has
// no flags for that, so no child may be made in between.
func ownSocket(open func() (int, error)) (int, error) {
	syscall.ForkLock.RLock()
	fd, err := open()
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (l *vsockListener) Addr() net.Addr { return l.addr }
func (l *vsockListener) Close() error   { return l.file.Close() }

func (l *vsockListener) Accept() (net.Conn, error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("accept on %s: %w", l.addr, err)
	}
	for {
		var fd int
		var from unix.Sockaddr
		var acceptErr error
		err = raw.Read(func(s uintptr) bool {
			fd, acceptErr = ownSocket(func() (n int, err error) {
				n, from, err = unix.Accept(int(s))
				return n, err
			})
			return !errors.Is(acceptErr, unix.EAGAIN)
		})
		if err != nil {
			return nil, fmt.Errorf("accept on %s: %w", l.addr, err)
		}
		if errors.Is(acceptErr, unix.EINTR) || errors.Is(acceptErr, unix.ECONNABORTED) {
			continue
		}
		if acceptErr != nil {
			return nil, fmt.Errorf("accept on %s: %w", l.addr, acceptErr)
		}
		// Only the host: a process of the machine may reach this port too.
		if vm, ok := from.(*unix.SockaddrVM); !ok || vm.CID != unix.VMADDR_CID_HOST {
			_ = unix.Close(fd)
			continue
		}
		return &conn{File: os.NewFile(uintptr(fd), string(l.addr)), addr: l.addr}, nil
	}
}
