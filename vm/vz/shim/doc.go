// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package shim is the process that a machine of the vz driver lives in: one per machine,
// started in a session of its own. It owns the framework's machine, its network and its
// streams, outlives the node that started it, and answers the next one (vm/vz/control).
// It ends with its machine, and the machine with it: the framework's machines belong to
// their process. So nothing that the framework's binding leaks outlives a machine.
//
// # Life
//
//	new --Start--> starting --> up --> ending --> exited
//	  \______________\__________________^
//
// Phases only go forward. A shim that nobody tells to start within StartDeadline ends,
// and so does one whose starter hangs up before the machine is up: whoever made it is
// dead, and the record of the machine says that it was never handed over.
//
// # How a machine ends
//
// The exit is written down before it is brought about (layout.ExitFile, once). The
// framework is asked to stop the machine; if it does not answer, the process ends
// without it, which is the end of the machine as well.
package shim
