// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openTerminal opens a pair: the agent's end, which the poller waits for, and the
// process's.
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open", err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("ioctl", err), master.Close())
	}
	if slave, err = openSlave(fmt.Sprintf("/dev/pts/%d", n)); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}
