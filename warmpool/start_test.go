// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
)

// TestRestartKeepsWarmEntries: the next process takes over what answers, deletes the
// rest, finds what pods have by the ids of their requests, and reaps none of it.
func TestRestartKeepsWarmEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		tgt := target("a", tmpl, 4, 0)
		p.run(tgt)
		pass(time.Minute)
		kept, err := p.supply.Acquire(t.Context(), templateRequest("kept", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		gone, err := p.supply.Acquire(t.Context(), templateRequest("gone", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		lost, err := p.supply.Acquire(t.Context(), templateRequest("lost", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		restored := templateRequest("restored", tmpl)
		restored.Path = PathRestore
		if _, err := p.supply.Acquire(t.Context(), restored); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		ready := slices.Clone(p.supply.ledger.shelves.pools["ns/a"].ready)
		account := p.supply.Ledger()
		p.stop()
		p.host.machine(ready[0].id()).exit()
		p.host.machine(ready[1].id()).hang()
		p.host.moved = "-moved"
		if _, err := p.host.bring(context.Background(), "restore", "warm-unfinished", vm.Config{}, MakeOptions{}); err != nil {
			t.Fatal(err)
		}

		p.start()
		if a := p.supply.Ledger(); a.Active != account.Active || a.Warm != account.Warm {
			t.Errorf("before anything is adopted: %+v, before the restart %+v", a, account)
		}
		known := []Request{templateRequest("kept", tmpl), templateRequest("lost", tmpl), restored}
		p.wantLook(survey(known...), map[string]Verdict{
			kept.MachineID(): VerdictRecover, lost.MachineID(): VerdictRecover, "restored": VerdictRecover,
			gone.MachineID(): VerdictCleanup, "warm-unfinished": VerdictCleanup,
		})
		if _, err := p.supply.Acquire(t.Context(), templateRequest("kept", tmpl)); ReasonOf(err) != ReasonExists {
			t.Errorf("acquired what is to be adopted: %v", err)
		}
		p.supply.SetTargets([]Target{tgt})
		if err := p.supply.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		adopted, err := p.supply.Adopt(t.Context(), templateRequest("kept", tmpl))
		if err != nil || adopted.MachineID() != kept.MachineID() || adopted.RequestID() != "kept" || adopted.Path() != PathAdopt {
			t.Fatalf("adopt: %v", err)
		}
		if diff := cmp.Diff(kept.Images(), adopted.Images()); diff != "" {
			t.Errorf("images (-before +after):\n%s", diff)
		}
		if again, err := p.supply.Adopt(t.Context(), restored); err != nil || len(again.Images()) != 1 {
			t.Errorf("adopt what was restored: %v", err)
		}
		if _, err := p.supply.Adopt(t.Context(), templateRequest("kept", tmpl)); ReasonOf(err) != ReasonExists {
			t.Errorf("adopt again: %v", err)
		}
		reaped, err := p.reap(t.Context(), known...)
		if err != nil || len(reaped) != 2 || !slices.Contains(reaped, gone.MachineID()) || !slices.Contains(reaped, "warm-unfinished") {
			t.Errorf("reaped %v, %v", reaped, err)
		}
		pass(time.Minute)
		if s := p.pool("a"); s.Ready != 4 || s.Outdated != 0 {
			t.Errorf("%+v", s)
		}
		for i, e := range ready {
			if there := p.host.machine(e.id()) != nil; there != (i > 1) {
				t.Errorf("entry %d of 4 is there: %v", i, there)
			}
		}
		if l, err := p.supply.Adopt(t.Context(), templateRequest("lost", tmpl)); err != nil || l.MachineID() != lost.MachineID() {
			t.Errorf("adopt late: %v", err)
		}
		if err := p.consistent(true); err != nil {
			t.Error(err)
		}
		if err := adopted.Release(t.Context(), time.Minute); err != nil {
			t.Error(err)
		}
		if s := p.pool("a"); s.Active != 1 {
			t.Errorf("%+v", s) // lost
		}
		if l, err := p.supply.Acquire(t.Context(), templateRequest("kept", tmpl)); err != nil || l.Path() != PathWarm {
			t.Errorf("its id is free again: %v", err)
		}
		p.stop()
	})
}

// TestCheckoutThatWasCutOffIsNotAdopted: the process died between record and hand-over.
func TestCheckoutThatWasCutOffIsNotAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(time.Minute)
		e := p.supply.ledger.shelves.pools["ns/a"].ready[0]
		p.stop()
		req := templateRequest("pod", tmpl)
		if err := p.records.write(recordOfEntry(e, &req)); err != nil {
			t.Fatal(err)
		}
		p.start()
		if _, err := p.supply.Adopt(t.Context(), req); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("adopt: %v", err)
		}
		if err := p.consistent(true); err != nil {
			t.Error(err)
		}
		if _, err := p.supply.Acquire(t.Context(), req); err != nil {
			t.Errorf("its id is free: %v", err)
		}
		p.stop()
	})
}

func TestAdoptionThatCannotAskKeepsTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(time.Minute)
		l, err := p.supply.Acquire(t.Context(), templateRequest("pod", tmpl))
		if err != nil {
			t.Fatal(err)
		}
		p.stop()
		p.start()
		p.host.setFault(func(op, _ string) error {
			if op == "load" {
				return vm.ErrUnavailable
			}
			return nil
		})
		for range 2 {
			if _, err := p.supply.Adopt(t.Context(), templateRequest("pod", tmpl)); !errors.Is(err, vm.ErrUnavailable) {
				t.Errorf("adopt: %v", err)
			}
		}
		if err := p.supply.Discard(t.Context(), "pod"); !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("discard: %v", err)
		}
		p.host.setFault(nil)
		p.wantLook(survey(templateRequest("pod", tmpl)), map[string]Verdict{l.MachineID(): VerdictRecover})
		if err := p.supply.Discard(t.Context(), "pod"); err != nil {
			t.Errorf("discard: %v", err)
		}
		if p.host.machine(l.MachineID()) != nil {
			t.Error("it is still there")
		}
		if err := p.consistent(false); err != nil {
			t.Error(err)
		}
		p.stop()
	})
}

// TestTwoMachinesOfOneRequest: the first did not answer, and the process died before it
// was deleted. The request has the last one, the other is an orphan.
func TestTwoMachinesOfOneRequest(t *testing.T) {
	at := func(machine string, seconds int64) record {
		return record{Machine: machine, Request: "pod", Bound: time.Unix(seconds, 0)}
	}
	for _, c := range []struct {
		records []record
		want    string
	}{
		{[]record{at("warm-a", 1), at("warm-b", 2)}, "warm-b"},
		{[]record{at("warm-b", 2), at("warm-a", 1)}, "warm-b"},
		{[]record{at("warm-b", 2), at("pod", 1)}, "pod"},
		{[]record{at("pod", 1), at("warm-b", 2)}, "pod"},
	} {
		if got := c.records[latestOf(c.records)["pod"]].Machine; got != c.want {
			t.Errorf("%+v: %s", c.records, got)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.Restores = 1 })
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(time.Minute)
		e := p.supply.ledger.shelves.pools["ns/a"].ready[0]
		p.host.machine(e.id()).hang()
		p.host.setFault(func(op, id string) error {
			if op == "restore" && isWarmID(id) || (op == "unrecord" || op == "delete") && id == e.id() {
				return errBoom
			}
			return nil
		})
		req := templateRequest("pod", tmpl)
		if l, err := p.supply.Acquire(t.Context(), req); err != nil || l.Path() != PathRestore {
			t.Fatal(err)
		}
		p.stop()
		p.host.setFault(nil)
		p.start()
		if l, err := p.supply.Adopt(t.Context(), req); err != nil || l.MachineID() != "pod" {
			t.Errorf("adopted: %v", err)
		}
		if reaped, err := p.reap(t.Context(), req); err != nil || !slices.Contains(reaped, e.id()) {
			t.Errorf("reaped %v, %v", reaped, err)
		}
		p.stop()
	})
}
