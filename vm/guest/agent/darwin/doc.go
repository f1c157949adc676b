// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package darwin is the machine under the agent in a macOS guest: it implements
// agent.System, and what vm/guest/agent/native leaves to the operating system.
//
// # How far it is proven
//
// No Mac was at hand. What is decided here (which commands run, in which order, with which
// arguments and input, and what is read out of their output) is portable and tested on
// Linux with a recorded [Runner]. The files named _darwin.go are type-checked against
// macOS and have never run: all of it is unproven on hardware.
//
// # Commands
//
// The interfaces behind a Mac's network configuration, memory file systems and power are
// not public, or need Apple's SDK, which the agent is built without. So they are used by
// the commands of macOS that have the right to them, by absolute path.
//
// # Identity
//
// A Mac's own identifiers, serial number, ECID and hardware UUID, are the machine
// identifier of Virtualization.framework. They are saved with a snapshot, all machines
// restored from it share them, and nothing in the guest can change them. What a refresh
// changes is the hostname, and the file machine-id in the scratch directory, which is for
// whoever wants to tell two machines apart.
package darwin
