// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package vz is the driver for Apple's Virtualization.framework: the product's own.
//
// A machine of the framework belongs to the process that made it, so every machine has
// one: a shim (vm/vz/shim), which this driver starts, talks to over a unix socket
// (vm/vz/control), and finds again after a restart. This package makes no machine and
// links no framework; it needs from the host only what vm/vz/framework.Host says.
//
// # Where things are
//
//	vz (here)    the driver: records, directories, processes, adoption
//	control      what driver and shim say to each other
//	layout       what both have on disk, and what must be equal at restore
//	shim         the machine: state, order of calls, disks, network, streams, errors
//	framework    the seam
//	apple        below it: Apple's framework, one to one, darwin/arm64 with cgo
//	simulator    below it, in tests: the framework's documented rules, over QEMU
//	mac          facts of a Mac
//
// # On disk
//
// A machine is a directory StateDir/machines/ID with its record, its disks, the end of
// its console, the shim's socket, and, once it has ended, how (see layout). Image slots
// are raw files of the host's, read-only. A snapshot is the framework's file, the disks
// as they were at that moment, and a record written last.
package vz
