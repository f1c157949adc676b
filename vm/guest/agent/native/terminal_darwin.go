// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nameBytes is the size that TIOCPTYGNAME of sys/ttycom.h has in its number.
const nameBytes = 128

// openTerminal opens a pair: the agent's end, which the poller waits for, and the
// process's. It is what posix_openpt, grantpt, unlockpt and ptsname do. Unproven on
// hardware.
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open", err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	var name [nameBytes]byte
	err = unix.IoctlSetInt(fd, unix.TIOCPTYGRANT, 0)
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TIOCPTYUNLK, 0)
	}
	if err == nil {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), unix.TIOCPTYGNAME, uintptr(unsafe.Pointer(&name))); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("ioctl", err), master.Close())
	}
	path, _, _ := bytes.Cut(name[:], []byte{0})
	if slave, err = openSlave(string(path)); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}
