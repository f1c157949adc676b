// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command init is PID 1 of the machines in driver tests: it serves
// vm/vmtest/testguest on the agent's port. It is put over a guest kit's initramfs
// and loads every module in it. Linux only.
package main
