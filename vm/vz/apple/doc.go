// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package apple is what lies below the seam of vm/vz/framework on a Mac: each call is
// handed to Apple's Virtualization.framework by github.com/Code-Hex/vz/v3.
//
// One file does it, for darwin/arm64 with cgo, and a test holds it to two things: it
// stays under 400 lines, and nothing in it decides (rules_test.go says what that
// means). It translates words: our configuration into the framework's objects, its
// states and errors into ours. Anywhere else New gives a framework that refuses every
// call, so that one source builds everywhere.
//
// Without a Mac the file is type-checked against the real module (make
// typecheck-darwin) and run against a stand-in for it (TestAgainstFake). What the
// framework makes of the calls, only a Mac shows.
//
// What the binding cannot mend, and who lives with it (vz v3.7.1):
//
//   - It holds file descriptors by number and releases a machine when its Go object is
//     collected (Code-Hex/vz #213), so machines and the files handed to them stay
//     referenced until the process ends. The framework has no call that frees a machine
//     either. One process for each machine, vm/vz/shim, bounds both.
//   - Each machine leaves goroutines and a dispatch queue behind. The same process
//     bounds them.
//   - VirtioSocketDevice.Connect takes no context. The layer above abandons a call that
//     takes too long and closes the connection that comes late.
//   - A new vsock connection's descriptor is closed by the binding and once more by the
//     framework when its connection object goes (Code-Hex/vz #63 tells of it). A file
//     that another thread opens between the two gets the number and loses it. The span
//     is the rest of one completion handler; nothing outside the binding can close it.
//   - Half-closing a vsock connection is not offered: it has Close alone.
package apple
