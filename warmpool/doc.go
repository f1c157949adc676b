// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package warmpool is the node's supply of machines: who gets one, from where, and
// at what cost. It knows no Kubernetes.
//
// A caller asks [Supply.Acquire] for a machine and gets a [Lease]. Its room is reserved
// in the [Ledger] first; then a warm entry is woken, or a machine is restored; what fails
// after that deletes the machine and gives the room back exactly once. The ledger is
// what exists: a machine that could not be deleted keeps its room.
//
// # States of a machine in the ledger
//
//	reserved -> restoring -> probing -> warm -> active -> [quarantined ->] stopping -> (gone)
//
// They only move forward; any state may go to stopping, a machine that is made for a
// request goes from probing to active, and only a machine that is known not to exist is
// gone.
//
// # Pools
//
// [Supply.SetTargets] says how many warm entries of which template a pool keeps. After
// each change a pure plan (makePlan) says what is restored and what goes, and bounded
// parallel refills do it. A pool has one queue, in which entry and machine are together;
// checkouts take the oldest entry, of the least important pool that has one, and never
// wait for a refill.
//
// Pods come before pools: a request that does not fit evicts the cheapest entries that
// make it fit (cheapest), or none, and waits in order for their machines to be deleted:
// what the ledger grants is never more than what is free. While requests wait, nothing is
// refilled.
//
// # macOS guests
//
// A host runs a few of them at once. They are slots in the budget: a machine of a macOS
// template takes one, active or warm, and so does the build of its snapshot. What the host
// refuses although a slot is free is withheld for a while (slotLimit).
//
// # Over a restart
//
// A warm entry is paused and costs no processor time, and making it again would: so
// Shutdown leaves the entries, a record on disk says what they are, and the next process
// takes over those that answer ([Supply.Start]). [Supply.Drain] ends all of them, for a
// node that leaves. A machine that was checked out keeps its own id; its record says
// which request has it, so that [Supply.Adopt] finds it.
//
// What an earlier process left is decided about by one pure function (judge), at the start
// and every few minutes after it ([Supply.Reconcile]): a pod's is recovered, what is dead or
// shown to be nobody's is cleaned up, what cannot be asked is asked again, and what is not
// clear is quarantined. All of it is charged until it is known not to exist.
package warmpool
