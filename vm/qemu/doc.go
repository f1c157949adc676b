// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package qemu is the driver for QEMU: real machines with real snapshots on
// Linux, with KVM where the host has a working one and emulation elsewhere.
//
// # Restore by copy-on-write
//
// Guest memory is a file. A machine that may be saved maps it shared, so that a
// save is the device state (half a megabyte, written by QEMU's migration with
// x-ignore-shared) plus a sparse copy of the file. A restored machine maps the
// snapshot's memory file privately: clones share every page that they do not
// write, and nothing is read before it is touched. A snapshot's files must
// therefore never change once another machine was restored from them.
//
// The scratch disk is a qcow2 overlay of the machine's own, over the snapshot's
// scratch (if any), over the kit's. Image slots are read-only raw files.
//
// # Files of a machine
//
// StateDir/machines/<id>/ is the working directory of the machine's QEMU process,
// which is also how a process without a record is recognized:
//
//	machine.json   the record: configuration and identity of the process
//	exit.json      how it ended; written before the process is ended by force
//	console        the console's last output, once it has ended
//	qmp.sock       QEMU's control socket
//	agent.sock     the guest's agent port
//	scratch.qcow2  the scratch disk
//	memory         guest memory, where the machine does not share a snapshot's
//	saved-state    the device state of the last save
//
// None of them is synced: no machine survives the host, so they only have to
// survive the node's process.
//
// # Life of the process
//
// QEMU runs in a session of its own and outlives the process that started it. When
// a guest powers off or panics, QEMU keeps standing still until a driver has read
// the console and recorded the exit; only then is it ended. So an exit that nobody
// watched is not lost.
package qemu
