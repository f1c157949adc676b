// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package network is a machine's user-mode network: a gateway in a process of the host's
// that a guest's frames end in, and that opens ordinary sockets for what they ask for.
// It needs no privilege. Every machine has one of its own, so that every clone carries
// the same MAC and address, and none sees another.
//
// The addresses are those of QEMU's user network, which the QEMU driver uses: a guest
// finds the same network on every driver.
//
// Frames come from the guest and are hostile: what is not a whole frame of this
// machine's own, or is addressed to the host's loopback, does not get as far as the
// stack.
package network
