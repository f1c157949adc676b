// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package fake is a driver whose machines exist in memory: for unit tests and
// simulation. It keeps the contract of package vm, passes vm/vmtest, and can be
// told to fail or stall at any call.
//
// Machines live in a [Host], not in the driver: dropping a driver and opening
// another on the same host is what a restart of the node looks like. Directories of
// snapshots are real, since callers treat their files as files.
//
// What runs in a machine is a [Guest] that the test supplies.
package fake
