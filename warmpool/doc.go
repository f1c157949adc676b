// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package warmpool is the node's supply of machines: who gets one, from where, and
// at what cost. It knows no Kubernetes.
//
// A caller asks [Supply.Acquire] for a machine and gets a [Lease]. The room is
// reserved in the [Ledger] first; then the machine is restored; what fails after
// that deletes the machine and gives the room back exactly once. The ledger is
// what exists: a machine that could not be deleted keeps its room.
//
// # States of a machine in the ledger
//
//	reserved -> restoring -> probing -> active -> stopping -> (gone)
//
// They only move forward; any state may go to stopping, and only a machine that is
// known not to exist is gone.
package warmpool
