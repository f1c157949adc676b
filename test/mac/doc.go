// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package mac runs the drivers' conformance suite with the vz driver on a real Mac,
// over Apple's framework: the driver in the test's process, each machine in a shim of the
// signed vk-firkin. `make test-vz` sets it up; the build tag is machines.
//
//	FIRKIN_BIN_DIR   folder with the signed vk-firkin
//	FIRKIN_KIT_DIR   folder with the guest kits, one subfolder an architecture
//
// It was written without a Mac and has never been run.
package mac
