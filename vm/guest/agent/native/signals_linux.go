// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// toSystem gives the signal that has a number on Linux, where all are their own.
func toSystem(number int) (syscall.Signal, error) {
	if number < 1 || number > 64 {
		return 0, fmt.Errorf("%w: signal %d", agent.ErrInvalid, number)
	}
	return syscall.Signal(number), nil
}

// fromSystem is its inverse.
func fromSystem(s syscall.Signal) int { return int(s) }
