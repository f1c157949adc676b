// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cluster

import "syscall"

// dieWithParent does nothing where the kernel has no such thing: the lifeline does it.
func dieWithParent(*syscall.SysProcAttr) {}
