// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
)

func TestJudge(t *testing.T) {
	// A machine of ours that runs, that the store knows and nobody has.
	alive := evidence{ours: true, listed: true, asked: true, state: vm.StateRunning, origin: originProven}
	with := func(change ...func(*evidence)) evidence {
		e := alive
		for _, c := range change {
			c(&e)
		}
		return e
	}
	paperIs := func(p paper) func(*evidence) { return func(e *evidence) { e.paper, e.why = p, "version 9" } }
	claimIs := func(c claimed) func(*evidence) { return func(e *evidence) { e.claim, e.why = c, "version 9" } }
	originIs := func(o origin) func(*evidence) { return func(e *evidence) { e.origin = o } }
	exited := func(e *evidence) { e.state = vm.StateExited }
	paused := func(e *evidence) { e.state = vm.StatePaused }
	failed := func(e *evidence) { e.state, e.failed = "", vm.ErrUnavailable }
	unreadable := func(e *evidence) {
		e.state, e.failed, e.unreadable = "", fmt.Errorf("%w: version 9", vm.ErrUnreadable), true
	}
	unasked := func(e *evidence) { e.state, e.asked = "", false }
	missing := func(e *evidence) { e.listed = false; unasked(e) }
	charged := func(e *evidence) { e.charged = true }
	entry := func(e *evidence) { e.entry = true }
	foreign := func(e *evidence) { e.ours = false }
	unwanted := func(e *evidence) { e.unwanted = true }
	owned := func(e *evidence) { e.owned = true }
	for _, c := range []struct {
		name string
		e    evidence
		want Verdict
		why  string
	}{
		{"a lease", with(owned), VerdictKeep, "somebody has it"},
		{"a lease, its removal asked for", with(owned, unwanted), VerdictKeep, ""},
		{"a lease with a broken record", with(owned, paperIs(paperBroken)), VerdictKeep, ""},
		{"somebody else's", with(foreign), VerdictKeep, "none of ours"},
		{"somebody else's, its removal asked for", with(foreign, unwanted), VerdictKeep, ""},
		{"nothing", with(missing), VerdictKeep, "nothing"},

		{"a pod's", with(claimIs(claimKnown)), VerdictRecover, ""},
		{"a pod's by its record", with(claimIs(claimKnown), paperIs(paperRead)), VerdictRecover, ""},
		{"a pod's, ended", with(claimIs(claimKnown), exited), VerdictRecover, ""},
		{"a pod's, not asked", with(claimIs(claimKnown), unasked), VerdictRecover, ""},
		{"a pod's, cannot be asked", with(claimIs(claimKnown), failed), VerdictRecover, ""},
		{"a pod's, unproven", with(claimIs(claimKnown), originIs(originUnproven)), VerdictRecover, ""},
		{"a pod's, gone", with(claimIs(claimKnown), missing), VerdictRecover, "gone"},
		{"a pod's, its removal asked for", with(claimIs(claimKnown), unwanted), VerdictRecover, ""},

		{"given to a request that nobody knows", with(paperIs(paperRead)), VerdictCleanup, "no pod has a record"},
		{"given to a request that nobody knows, not asked", with(paperIs(paperRead), unasked), VerdictCleanup, ""},
		{"a record without a machine", with(paperIs(paperRead), missing), VerdictCleanup, "does not exist"},
		{"a broken record without a machine", with(paperIs(paperBroken), missing), VerdictCleanup, "does not exist"},
		{"charged, and gone since", with(charged, missing), VerdictCleanup, "any more"},
		{"a pod's, charged, and gone since", with(charged, missing, claimIs(claimKnown)), VerdictRecover, "gone"},
		{"an unfinished entry", with(entry, unasked), VerdictCleanup, "never finished"},
		{"ended", with(exited), VerdictCleanup, "ended"},
		{"unproven", with(originIs(originUnproven)), VerdictCleanup, "proved"},
		{"paused", with(paused), VerdictCleanup, "handed over"},
		{"a broken record, ended", with(paperIs(paperBroken), exited), VerdictCleanup, "ended"},
		{"a pod's with a broken record, ended", with(claimIs(claimUnclear), exited), VerdictCleanup, "ended"},
		{"its removal asked for", with(unwanted), VerdictCleanup, "asked for"},
		{"a broken record, its removal asked for", with(paperIs(paperBroken), unwanted), VerdictCleanup, "asked for"},

		{"runs and nobody knows it", alive, VerdictQuarantine, "no record speaks of it"},
		{"runs and the store does not know it either", with(originIs(originUnknown)), VerdictQuarantine, ""},
		{"a broken record", with(paperIs(paperBroken)), VerdictQuarantine, "version 9"},
		{"a broken record, paused", with(paperIs(paperBroken), entry, paused), VerdictQuarantine, "version 9"},
		{"a broken record, and a pod has it", with(paperIs(paperBroken), claimIs(claimKnown)), VerdictQuarantine, "version 9"},
		{"a broken record, unproven", with(paperIs(paperBroken), originIs(originUnproven)), VerdictQuarantine, "version 9"},
		{"a pod's with a broken record", with(claimIs(claimUnclear)), VerdictQuarantine, "version 9"},
		{"a pod's with a broken record, by its own", with(claimIs(claimUnclear), paperIs(paperRead)), VerdictQuarantine, "version 9"},
		{"a pod's with a broken record, paused", with(claimIs(claimUnclear), paused), VerdictQuarantine, "version 9"},
		{"another pod's", with(claimIs(claimOther), paperIs(paperRead)), VerdictQuarantine, "contradict"},

		{"cannot be asked", with(failed), VerdictRetry, "could not be asked"},
		{"cannot be asked, unproven", with(failed, originIs(originUnproven)), VerdictRetry, ""},
		{"a broken record, cannot be asked", with(paperIs(paperBroken), failed), VerdictRetry, ""},
		{"a broken record, cannot be asked, its removal asked for", with(paperIs(paperBroken), failed, unwanted), VerdictRetry, ""},
		{"a pod's with a broken record, cannot be asked", with(claimIs(claimUnclear), failed), VerdictRetry, ""},
		{"its own record cannot be read", with(unreadable), VerdictQuarantine, "version 9"},
		{"its own record cannot be read, a pod's", with(unreadable, claimIs(claimKnown)), VerdictQuarantine, "version 9"},
		{"its own record cannot be read, unproven", with(unreadable, originIs(originUnproven)), VerdictQuarantine, ""},
		{"its own record cannot be read, with a broken one", with(unreadable, paperIs(paperBroken)), VerdictQuarantine, ""},
		{"its own record cannot be read, its removal asked for", with(unreadable, claimIs(claimKnown), unwanted), VerdictCleanup, "asked for"},
		{"its own record cannot be read, and no pod has asked for it", with(unreadable, paperIs(paperRead)), VerdictCleanup, "no pod has a record"},
		{"its own record cannot be read, an unfinished entry", with(unreadable, entry), VerdictCleanup, "never finished"},
		{"its own record cannot be read, a lease", with(unreadable, owned), VerdictKeep, ""},
		{"its own record cannot be read, somebody else's", with(unreadable, foreign), VerdictKeep, ""},
		{"not asked", with(unasked), VerdictRetry, "not asked"},
	} {
		v, why := c.e.judge()
		if v != c.want || !strings.Contains(why, c.why) || why == "" {
			t.Errorf("%s: %s, %q, want %s, %q", c.name, v, why, c.want, c.why)
		}
		if c.e.undecided() != (c.e.listed && !c.e.asked && c.want == VerdictRetry) {
			t.Errorf("%s: undecided is %v", c.name, c.e.undecided())
		}
	}
}
