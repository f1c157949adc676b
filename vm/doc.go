// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package vm is the contract between vk-firkin and the hypervisors it runs on.
//
// A [Driver] makes machines on one hypervisor: vm/qemu, vm/vz, vm/fake. A
// [Machine] is one virtual machine; it plays the part that a pod sandbox plays
// in CRI. Every driver passes the suite in vm/vmtest, and docs/driver-contract.md
// lists the rules by number.
//
// # Words
//
//   - id: the name of a machine, chosen by the caller, unique in one state
//     directory, and the name of the machine's directory. See [ValidateID].
//   - create: start a machine cold, from kernel and initramfs.
//   - restore: make a machine from the files that an earlier save wrote. The
//     result is paused: nothing in it has run yet.
//   - shape: vCPUs and memory. A restored machine has the shape it was saved with.
//   - image slot: a read-only disk of fixed size whose content is chosen when the
//     machine is created or restored, and read by the guest when it mounts it.
//   - scratch: the machine's one writable disk, private to it.
//
// # Life of a machine
//
//	Create ---> running <--Resume-- paused <--- Restore
//	               |  \--Pause----^   |
//	               v                   v
//	             exited <----- Stop, death, guest power-off
//	               |
//	             Delete ---> (gone: ErrNotFound)
//
// A machine outlives the process that made it. Dropping a Driver leaves machines
// running; opening a driver on the same directory finds them again by [Driver.Load].
//
// The package imports only the standard library, so that anything may import it.
package vm
