// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PortName is the name of the virtio-serial port that the host talks through where
// there is no vsock.
const PortName = "firkin.agent"

// addr is where a listener or a connection is, for people.
type addr string

func (addr) Network() string  { return "guest" }
func (a addr) String() string { return string(a) }

// conn is a stream on a file that the Go poller can wait for: reads and writes block a
// goroutine, not a thread, and have deadlines.
type conn struct {
	*os.File
	addr addr
}

func (c *conn) LocalAddr() net.Addr  { return c.addr }
func (c *conn) RemoteAddr() net.Addr { return addr("host") }

// FindPort waits until the virtio-serial port called PortName exists and returns its
// device; the kernel learns of ports and of their names some time after it finds the
// device that has them. It returns false when there is none after the timeout.
func FindPort(timeout time.Duration) (string, bool) {
	for deadline := time.Now().Add(timeout); ; {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", false
		}
		for _, path := range names {
			name, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(name)) == PortName {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(path))), true
			}
		}
		if time.Now().After(deadline) {
			return "", false
		}
		time.Sleep(2 * time.Millisecond) //nolint:forbidigo // a name in sysfs makes no event, and this runs only at boot
	}
}

// PortListener accepts the host's conversations on a virtio-serial port, one after the
// other. A port is one stream that is always there: Accept returns when the host has
// written something, reads end with io.EOF when the host hangs up, unless another connects
// at once, and bytes of an earlier conversation may come first. The next Accept is to come after the close of the
// connection before; until then it waits.
//
// Waiting costs nothing: virtio_console wakes pollers when data comes and when the host
// connects or hangs up, so this needs neither SIGIO nor a timer. A port whose host is
// not connected answers reads with 0 bytes at once, which is why Accept looks before it
// reads.
type PortListener struct {
	device string
	done   chan struct{}
	turn   chan struct{} // holds a token while no connection is open

	mu     sync.Mutex
	file   *os.File // guarded by mu; the port while Accept waits
	closed bool     // guarded by mu
}

// ListenPort makes a listener for the port at the device. The device is opened by
// Accept.
func ListenPort(device string) *PortListener {
	l := &PortListener{device: device, done: make(chan struct{}), turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// Addr implements net.Listener.
func (l *PortListener) Addr() net.Addr { return addr(l.device) }

// Close ends a waiting Accept. The connections that were accepted stay.
func (l *PortListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.done)
	if l.file != nil {
		return l.file.Close()
	}
	return nil
}

// Accept implements net.Listener.
func (l *PortListener) Accept() (net.Conn, error) {
	select {
	case <-l.turn:
	case <-l.done:
		return nil, fmt.Errorf("accept on %s: %w", l.device, net.ErrClosed)
	}
	c, err := l.accept()
	if err != nil {
		l.turn <- struct{}{}
		return nil, fmt.Errorf("accept on %s: %w", l.device, err)
	}
	return c, nil
}

func (l *PortListener) accept() (net.Conn, error) {
	f, err := os.OpenFile(l.device, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, errors.Join(net.ErrClosed, f.Close())
	}
	l.file = f
	l.mu.Unlock()
	err = awaitInput(f)
	l.mu.Lock()
	l.file = nil
	closed := l.closed
	l.mu.Unlock()
	if closed {
		err = net.ErrClosed
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &portConn{conn: conn{File: f, addr: addr(l.device)}, release: sync.OnceFunc(func() { l.turn <- struct{}{} })}, nil
}

// awaitInput blocks until there is something to read of a host that is connected. While none is,
// virtio_console calls the port readable and hung up at once: to a reader there is the end of
// the stream. Taken for input, that made an accept, an end, and the next accept, without end.
func awaitInput(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			_, pollErr = unix.Poll(fds, 0)
			if !errors.Is(pollErr, unix.EINTR) {
				break
			}
		}
		return pollErr != nil || inputOf(fds[0].Revents)
	})
	return errors.Join(err, pollErr)
}

// inputOf reads what poll tells of a port. Pure.
func inputOf(revents int16) bool {
	return revents&unix.POLLNVAL != 0 || revents&(unix.POLLIN|unix.POLLHUP) == unix.POLLIN
}

// portConn gives the port back to its listener when it is closed.
type portConn struct {
	conn
	release func()
}

func (c *portConn) Close() error {
	err := c.conn.Close()
	c.release()
	return err
}

// vsockListener listens on AF_VSOCK, which the net package does not know.
type vsockListener struct {
	file *os.File
	addr addr
}

// ListenVsock listens on a vsock port for connections of the host. Where the machine
// has no vsock device the error is ErrNoVsock.
func ListenVsock(port uint32) (net.Listener, error) {
	if devices, err := filepath.Glob("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*"); err != nil || len(devices) == 0 {
		return nil, ErrNoVsock
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
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

// ErrNoVsock means that the machine has no vsock device.
var ErrNoVsock = errors.New("no vsock device")

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
			fd, from, acceptErr = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return !errors.Is(acceptErr, unix.EAGAIN)
		})
		if err != nil {
			return nil, fmt.Errorf("accept on %s: %w", l.addr, err)
		}
		if errors.Is(acceptErr, unix.EINTR) || errors.Is(acceptErr, syscall.ECONNABORTED) {
			continue
		}
		if acceptErr != nil {
			return nil, fmt.Errorf("accept on %s: %w", l.addr, acceptErr)
		}
		// Only the host: a process in a container may reach this port by the loopback
		// transport, or by the machine's own number.
		if vm, ok := from.(*unix.SockaddrVM); !ok || vm.CID != unix.VMADDR_CID_HOST {
			_ = unix.Close(fd)
			continue
		}
		return &conn{File: os.NewFile(uintptr(fd), string(l.addr)), addr: l.addr}, nil
	}
}
