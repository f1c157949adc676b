// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cluster

import "syscall"

// childAttributes is empty: only Linux can tie a child's life to its parent's.
func childAttributes() *syscall.SysProcAttr { return nil }
