// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package simulator is framework.Framework on any host: it enforces the rules of
// Apple's Virtualization.framework that are documented, or that others have measured on
// Macs, over QEMU (real guests) or over nothing (no guest, for unit tests).
//
// A directory, Options.HostDir, is the simulated Mac. All processes that open it share
// it: its OS version, its locked screen, its two slots for macOS guests, the disks and
// machine identifiers in use, and the faults that a test has put into it. What a process
// holds there ends with the process, as the framework's machines do.
//
// # Sources
//
// Rules name where they come from:
//
//   - "header": a comment of VZVirtualMachine.h, VZError.h or the header of the class
//     concerned.
//   - a project and a number: an issue or pull request there.
//   - "wraithbox X02" and "wraithbox X18": measurements of warm start and of vsock across
//     save and restore, macOS guests on macOS 27.0.1 (wraithbox/wraithbox, spikes).
//   - "kernova 2026-09-30", "kernova 2026-09-23": measurements of what a restore compares,
//     macOS and Linux guests on macOS 27.0 (Kernova's research notes).
//   - "unproven on hardware": sources are silent or disagree. The simulator then does the
//     stricter of the possible things, and Host often has a field that relaxes it.
//
// # Rules, and the tests that break them
//
//   - configurations: configurationRules and openDisk in configuration.go;
//     TestConfigurationRules (fails when a rule has no case), TestFilesAreTheMachinesOwn,
//     TestAttachmentsStay, TestFreshIdentifier
//   - states, and which call is legal in which: machine.go; TestTransitions, TestChanges,
//     TestGuestEndsDuringCall, TestPowerButton
//   - what a save needs: save.go; TestSaveRules, TestEntropySupport, TestUnsupportedOS
//   - what a restore needs, of host, file, configuration and of other machines: save.go,
//     shape.go; TestRestoreRules, TestShapeFields, TestTwoRestoresAtOnce,
//     TestRestoredMemory
//   - streams to the guest: save.go; TestNoListener, TestConnectStates,
//     TestConnectWhilePaused, TestConnectionsEnd, TestRestoreEndsConnections
//   - slots of macOS guests, over processes: claim.go; TestTwoMacOSGuests, TestLeakedSlots,
//     TestNobodyLoggedIn
//   - the end of a process is the end of its machines: TestProcessDeath and, of QEMU,
//     TestDiesWithItsProcess
//   - faults at every call: fault.go; TestFaultsOfEveryCall, TestCrashOfEveryCall,
//     TestFaultBeforeAndAfter, TestFaultCounts, TestStall
//
// # What the framework does not check
//
// Neither does the simulator: that the content of the disks and of the auxiliary storage
// is the content they had when the machine was saved. A restore onto other content
// succeeds, and the guest's memory does not fit its disks (wraithbox X02, VirtualBuddy
// #481).
//
// What it cannot show at all: the framework's own leaks (handles, threads, descriptors
// of Code-Hex/vz), its speed, and that saving and restoring several machines with shared
// directories at once has damaged them (capsem).
package simulator
