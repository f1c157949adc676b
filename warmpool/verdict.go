// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"fmt"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Verdict is what becomes of a machine, or of what was written down about one.
type Verdict string

// The verdicts.
const (
	// VerdictKeep: somebody of this process has it, or it is none of ours.
	VerdictKeep Verdict = "Keep"
	// VerdictRecover: an earlier process gave it to a pod that this one knows, which is to
	// adopt it.
	VerdictRecover Verdict = "Recover"
	// VerdictCleanup: it is dead, or can be shown to be nobody's. It is to be deleted.
	VerdictCleanup Verdict = "Cleanup"
	// VerdictQuarantine: it lives, and what is known of it does not say whose it is. It is kept
	// and charged, and given to nobody, until somebody says that it may go.
	VerdictQuarantine Verdict = "Quarantine"
	// VerdictRetry: it could not be asked, which is not to be gone. It is kept and charged, and
	// asked again.
	VerdictRetry Verdict = "Retry"
)

// paper is what the record of a machine is like.
type paper int

const (
	paperNone paper = iota
	paperRead
	// paperBroken: there is one, and it cannot be read: it is damaged, or another version of this
	// program wrote it.
	paperBroken
)

// claimed is what the pods' records say about a machine.
type claimed int

const (
	claimNone claimed = iota
	// claimKnown: a pod has asked for it.
	claimKnown
	// claimUnclear: it is a pod's whose record cannot be read.
	claimUnclear
	// claimOther: its own record says that another pod has it.
	claimOther
)

// origin is what the store says about the making of a machine.
type origin int

const (
	originUnknown origin = iota
	// originUnproven: its maker had not got as far as to let it prove itself.
	originUnproven
	originProven
)

// evidence is all that is known about one machine.
type evidence struct {
	// owned: the ledger has it for a lease, an entry, a burial or a call under way, or it builds a
	// snapshot.
	owned bool
	// ours: this program gave it its id.
	ours bool
	// listed: the driver has it. It was asked, and has answered.
	listed bool
	// charged: an earlier pass has put it into the ledger, for nobody.
	charged bool
	paper   paper
	// why the paper is broken or the claim is unclear, for people.
	why string
	// entry: it has the id of a pool's entry.
	entry bool
	claim claimed
	// asked: its state was asked for; failed is why that gave none.
	asked  bool
	failed error
	// unreadable: it cannot be asked, since its own record cannot be read; failed says why.
	unreadable bool
	state      vm.State
	origin     origin
	// unwanted: somebody has said that it may go.
	unwanted bool
}

// judge decides about one machine, and says why. Pure. When the state matters and was
// not asked for yet, the verdict is VerdictRetry: see undecided.
//
// What counts as evidence that nobody can come back for a machine:
//
//   - It has exited: nothing of it is left but files.
//   - It has a record of a request, and no pod has a record of having made that request. A pod's
//     record is on disk before its machine is asked for and goes after the machine has gone. So
//     either the request was given up, or it has got another machine.
//   - It has the id of a pool's entry, and no record. A record is written before the entry can be
//     given to anybody, so its maker died before that.
//   - The store knows it and it has not proved itself, or it is paused and no entry of a pool: its
//     maker died before it handed it over.
//
// That a record cannot be read is no such evidence, nor that there is none: files get lost in other
// ways than by a crash of this program, and a machine that runs may be worth more than its room.
func (e evidence) judge() (v Verdict, why string) {
	switch {
	case e.owned:
		return VerdictKeep, "somebody has it"
	case !e.listed:
		return e.judgePaper()
	case e.paper == paperRead && e.claim == claimNone:
		return VerdictCleanup, "no pod has a record of the request that it was given to"
	case e.paper == paperNone && e.claim == claimNone && !e.ours:
		return VerdictKeep, "it is none of ours"
	case e.paper == paperNone && e.claim == claimNone && e.entry:
		return VerdictCleanup, "it is an entry of a pool that was never finished"
	case e.unreadable && e.unwanted:
		return VerdictCleanup, "its removal was asked for"
	case e.unreadable:
		return VerdictQuarantine, e.failed.Error()
	case e.claim == claimKnown && e.paper != paperBroken:
		return VerdictRecover, "a pod has it"
	case !e.asked:
		return VerdictRetry, "it was not asked yet"
	case e.failed != nil:
		return VerdictRetry, fmt.Sprintf("it could not be asked: %v", e.failed)
	case e.state == vm.StateExited:
		return VerdictCleanup, "it has ended"
	case e.paper == paperNone && e.claim == claimNone && e.origin == originUnproven:
		return VerdictCleanup, "whoever made it ended before it had proved itself"
	case e.paper == paperNone && e.claim == claimNone && e.state == vm.StatePaused:
		return VerdictCleanup, "whoever made it ended before it was handed over"
	case e.unwanted:
		return VerdictCleanup, "its removal was asked for"
	case e.paper == paperBroken:
		return VerdictQuarantine, "its record cannot be used: " + e.why
	case e.claim == claimUnclear:
		return VerdictQuarantine, "the record of its pod cannot be read: " + e.why
	case e.claim == claimOther:
		return VerdictQuarantine, "its record and its pod's contradict each other: " + e.why
	}
	return VerdictQuarantine, "it runs, and no record speaks of it"
}

// judgePaper decides about what was written down about a machine that does not exist.
func (e evidence) judgePaper() (v Verdict, why string) {
	switch {
	case e.claim == claimKnown:
		return VerdictRecover, "the pod that had it is to hear that it is gone"
	case e.paper != paperNone:
		return VerdictCleanup, "its machine does not exist"
	case e.charged:
		return VerdictCleanup, "it does not exist any more"
	}
	return VerdictKeep, "there is nothing"
}

// undecided tells whether the state of the machine matters. Pure.
func (e evidence) undecided() bool {
	v, _ := e.judge()
	return v == VerdictRetry && !e.asked
}
