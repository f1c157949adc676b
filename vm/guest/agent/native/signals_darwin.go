// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// signals are those of Linux (signal(7)) by their number there, which is the protocol's:
// only some have the same on macOS. SIGSTKFLT, SIGPWR and the real-time signals do not exist.
var signals = map[int]syscall.Signal{
	1: unix.SIGHUP, 2: unix.SIGINT, 3: unix.SIGQUIT, 4: unix.SIGILL, 5: unix.SIGTRAP, 6: unix.SIGABRT, 7: unix.SIGBUS,
	8: unix.SIGFPE, 9: unix.SIGKILL, 10: unix.SIGUSR1, 11: unix.SIGSEGV, 12: unix.SIGUSR2, 13: unix.SIGPIPE, 14: unix.SIGALRM,
	15: unix.SIGTERM, 17: unix.SIGCHLD, 18: unix.SIGCONT, 19: unix.SIGSTOP, 20: unix.SIGTSTP, 21: unix.SIGTTIN, 22: unix.SIGTTOU,
	23: unix.SIGURG, 24: unix.SIGXCPU, 25: unix.SIGXFSZ, 26: unix.SIGVTALRM, 27: unix.SIGPROF, 28: unix.SIGWINCH, 29: unix.SIGIO,
	31: unix.SIGSYS,
}

// toSystem gives the signal that has a number on Linux.
func toSystem(number int) (syscall.Signal, error) {
	s, ok := signals[number]
	if !ok {
		return 0, fmt.Errorf("%w: signal %d of Linux does not exist on macOS", agent.ErrInvalid, number)
	}
	return s, nil
}

// fromSystem is its inverse. SIGEMT and SIGINFO have none, and keep their number.
func fromSystem(s syscall.Signal) int {
	for number, known := range signals {
		if known == s {
			return number
		}
	}
	return int(s)
}
