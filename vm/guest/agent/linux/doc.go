// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package linux is the machine under the agent when the agent is PID 1 of a Linux
// guest booted from a guest kit: it implements agent.System.
//
// # Boot
//
// [Boot] mounts the kernel's file systems, makes a root that containers can pivot away
// from, loads the modules of the devices that are there, and mounts the scratch disk.
// Disks are told apart by the serial number the driver gave them: "scratch", and
// "slot0", "slot1" and so on for the image slots.
//
// # Clones
//
// Machines restored from one snapshot share every byte of the agent's memory. So
// nothing that must differ between them may come from math/rand, from the order of a
// map, or from anything else that lives in user space: it comes from the host in a
// refresh, or from crypto/rand, which asks the kernel each time, after a refresh.
//
// # Idleness
//
// A page that an idle clone writes is a page its host pays for. There are no periodic
// timers here: everything waits in the kernel.
//
// # Children
//
// Whoever starts a process waits for it from the moment it exists; [Reaper] collects
// only what nobody has waited for. See there.
package linux
