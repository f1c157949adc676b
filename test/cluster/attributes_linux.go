// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import "syscall"

// childAttributes make a child end with the process that started it, so that a test
// that is killed leaves nothing running.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
