// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import "syscall"

// dieWithParent has the kernel kill the child when the thread that starts it ends. The lifeline alone
// would not do: a child that hangs does not follow it.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
