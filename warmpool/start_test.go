// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
		if _, err := p.supply.Acquire(t.Context(), templateRequest("gone", tmpl)); err != nil {
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
		orphans, err := p.supply.Orphans(t.Context(), []string{"kept", "lost", "restored"})
		gone := orphans
		if err != nil || len(orphans) != 2 || !slices.Contains(orphans, "warm-unfinished") {
			t.Errorf("orphans %v, %v", orphans, err)
		}
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
		reaped, err := p.supply.Reap(t.Context(), []string{"kept", "lost", "restored"})
		if err != nil || len(reaped) != 1 || !slices.Contains(gone, reaped[0]) {
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
		if orphans, err := p.supply.Orphans(t.Context(), nil); err != nil || slices.Contains(orphans, l.MachineID()) {
			t.Errorf("orphans %v, %v", orphans, err)
		}
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
		if reaped, err := p.supply.Reap(t.Context(), []string{"pod"}); err != nil || !slices.Contains(reaped, e.id()) {
			t.Errorf("reaped %v, %v", reaped, err)
		}
		p.stop()
	})
}

func TestRecords(t *testing.T) {
	dir := directory(filepath.Join(t.TempDir(), "warm"))
	if records, bad, err := dir.load(); err != nil || len(records)+len(bad) != 0 {
		t.Fatalf("%v, %v, %v", records, bad, err)
	}
	r := record{
		Version: recordVersion, Machine: "warm-1", Request: "pod", PodUID: "uid", Pool: "ns/a", Namespace: "ns", Name: "a", Revision: "r1", Shape: smallShape,
		Images: []SlotImage{{Ref: "a:1", Digest: "sha256:1", DiskPath: "/images/1"}}, Created: time.Unix(1, 2).UTC(),
		Warm: Budget{MemoryBytes: 1}, Active: Budget{MilliCPU: 2, MemoryBytes: 3, DiskBytes: 4, Slots: 5},
	}
	golden := `{"version":1,"machine":"warm-1","request":"pod","podUID":"uid","pool":"ns/a","namespace":"ns","name":"a","revision":"r1","shape":{"vcpus":1,"memoryBytes":268435456},` +
		`"images":[{"ref":"a:1","digest":"sha256:1","diskPath":"/images/1"}],"created":"1970-01-01T00:00:01.000000002Z","warm":{"milliCPU":0,"memoryBytes":1,"diskBytes":0},"active":{"milliCPU":2,"memoryBytes":3,"diskBytes":4,"slots":5}}`
	if err := dir.write(r); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(string(dir), "warm-1.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(golden, string(data)); diff != "" {
		t.Errorf("on disk (-want +got):\n%s", diff)
	}
	for name, content := range map[string]string{
		"warm-2.json": golden, "warm-3.json": "{", "warm-4.json": `{"version":2,"request":"pod-4","active":{"memoryBytes":7},"warm":{"memoryBytes":-7}}`, ".tmp-warm-5": "half", "note.txt": "of a user",
		"warm-6.json": `{"version":1,"machine":"warm-6","namespace":"","name":"","revision":"","shape":{"vcpus":1,"memoryBytes":268435456},"created":"1970-01-01T00:00:01Z","warm":{"milliCPU":-1,"memoryBytes":1,"diskBytes":0},"active":{"milliCPU":0,"memoryBytes":0,"diskBytes":0}}`,
	} {
		if err := os.WriteFile(filepath.Join(string(dir), name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	records, bad, err := dir.load()
	if err != nil {
		t.Error(err)
	}
	unreadable := map[string]string{}
	for _, b := range bad {
		unreadable[b.machine] = b.err.Error()
		guess := record{}
		if b.machine == "warm-4" {
			guess = record{Request: "pod-4", Active: Budget{MemoryBytes: 7}}
		}
		if b.machine == "warm-2" {
			guess = record{Request: r.Request, Warm: r.Warm, Active: r.Active}
		}
		if diff := cmp.Diff(guess, b.guess, cmp.AllowUnexported(record{})); diff != "" && b.machine != "warm-6" {
			t.Errorf("guessed of %s (-want +got):\n%s", b.machine, diff)
		}
	}
	for machine, why := range map[string]string{"warm-2": "it is of machine", "warm-3": "unexpected", "warm-4": "version 2, want 1", "warm-6": "absurd"} {
		if !strings.Contains(unreadable[machine], why) {
			t.Errorf("%s: %q, want %q", machine, unreadable[machine], why)
		}
	}
	if len(bad) != 4 {
		t.Errorf("unreadable: %v", unreadable)
	}
	if diff := cmp.Diff([]record{r}, records, cmp.AllowUnexported(record{})); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	left, err := os.ReadDir(string(dir))
	if err != nil || len(left) != 6 { // what cannot be read stays
		t.Errorf("left %v, %v", left, err)
	}
	for range 2 {
		if err := dir.remove("warm-1"); err != nil {
			t.Error(err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"machine":"warm-1","pool":"ns/a","namespace":"ns","name":"a","revision":"r1","shape":{"vcpus":1,"memoryBytes":268435456},"created":"1970-01-01T00:00:01Z","warm":{"milliCPU":0,"memoryBytes":1,"diskBytes":0},"active":{"milliCPU":0,"memoryBytes":0,"diskBytes":0}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data)
		if err != nil {
			return
		}
		if vm.ValidateID(r.Machine) != nil || r.Warm.validate() != nil || r.Active.validate() != nil || r.Request == "" && r.Pool == "" {
			t.Errorf("accepted %+v", r)
		}
	})
}
