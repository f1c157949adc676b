// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// survey is what a provider knows of requests.
func survey(requests ...Request) Survey {
	sv := Survey{Prefixes: []string{"pod-"}}
	for _, r := range requests {
		sv.Claims = append(sv.Claims, Claim{Request: r})
	}
	return sv
}

// look reconciles and returns the verdict on each machine.
func (p *pooled) look(sv Survey) map[string]Verdict {
	p.t.Helper()
	findings, err := p.supply.Reconcile(context.Background(), sv)
	if err != nil {
		p.t.Fatal(err)
	}
	verdicts := map[string]Verdict{}
	for _, f := range findings {
		if f.Reason == "" {
			p.t.Errorf("no reason for %+v", f)
		}
		verdicts[f.Machine] = f.Verdict
	}
	return verdicts
}

func (p *pooled) wantLook(sv Survey, want map[string]Verdict) {
	p.t.Helper()
	if diff := cmp.Diff(want, p.look(sv)); diff != "" {
		p.t.Errorf("verdicts (-want +got):\n%s", diff)
	}
	if err := p.consistent(false); err != nil {
		p.t.Error(err)
	}
}

// leave makes a machine that no supply knows.
func (p *pooled) leave(id string, s vm.State, proven bool) {
	p.t.Helper()
	if _, err := p.host.bring(context.Background(), "restore", id, vm.Config{Shape: smallShape}, MakeOptions{}); err != nil {
		p.t.Fatal(err)
	}
	m := p.host.machine(id)
	m.mu.Lock()
	m.state = s
	m.mu.Unlock()
	if s == vm.StateExited {
		close(m.exited)
	}
	p.host.mu.Lock()
	p.host.origins[id] = proven
	p.host.mu.Unlock()
}

// TestReconcileChargesBeforeAnybodyIsAdmitted: right after the start, before a pod is
// looked at, all that exists takes its room, whatever becomes of it.
func TestReconcileChargesBeforeAnybodyIsAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(time.Minute)
		base := request("pod-base")
		base.Budget = Budget{MilliCPU: 300, MemoryBytes: base.Shape.MemoryBytes + 5}
		warm := templateRequest("pod-warm", tmpl)
		for _, r := range []Request{base, warm} {
			if _, err := p.supply.Acquire(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Minute)
		before := p.supply.Ledger()
		p.stop()
		p.start()
		p.wantLook(survey(base, warm), map[string]Verdict{"pod-base": VerdictRecover, p.supply.aliases["pod-warm"]: VerdictRecover})
		after := p.supply.Ledger()
		if after.Active != before.Active || after.Warm != before.Warm || after.Available != before.Available {
			t.Errorf("after the restart %+v, before %+v", after, before)
		}
		// What does not fit beside them is refused already.
		big := request("pod-big")
		big.Budget = before.Available.plus(Budget{MemoryBytes: 1})
		big.Shape.MemoryBytes = big.Budget.MemoryBytes
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.supply.Acquire(ctx, big); err == nil {
			t.Error("a pod was admitted that does not fit beside what was not adopted yet")
		}
		for _, r := range []Request{base, warm} {
			if _, err := p.supply.Adopt(t.Context(), r); err != nil {
				t.Errorf("adopt %s: %v", r.MachineID, err)
			}
		}
		if a := p.supply.Ledger(); a.Active != before.Active {
			t.Errorf("adopted: %+v, before %+v", a.Active, before.Active)
		}
		p.stop()
	})
}

// TestReconcileJudgesOrphans: what is shown to be nobody's is to be cleaned up, what only
// looks so is kept.
func TestReconcileJudgesOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.leave("pod-unproven", vm.StateRunning, false)
		p.leave("pod-paused", vm.StatePaused, true)
		p.leave("pod-ended", vm.StateExited, true)
		p.leave("pod-alive", vm.StateRunning, true)
		p.leave("warm-unfinished", vm.StatePaused, true)
		p.leave("pod-mute", vm.StateRunning, true)
		p.host.setFault(func(op, id string) error {
			if op == "load" && id == "pod-mute" {
				return vm.ErrUnavailable
			}
			return nil
		})
		want := map[string]Verdict{
			"pod-unproven": VerdictCleanup, "pod-paused": VerdictCleanup, "pod-ended": VerdictCleanup, "warm-unfinished": VerdictCleanup,
			"pod-alive": VerdictQuarantine, "pod-mute": VerdictRetry,
		}
		findings, err := p.supply.Reconcile(t.Context(), survey())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if f.New != (f.Machine == "pod-alive") {
				t.Errorf("%+v", f)
			}
		}
		if got := len(p.supply.Ledger().Machines); got != len(want) {
			t.Errorf("%d machines are charged, want %d", got, len(want))
		}
		p.wantLook(survey(), want) // and again the same
		if _, err := p.supply.Acquire(t.Context(), request("pod-alive")); ReasonOf(err) != ReasonExists {
			t.Errorf("its id was given away: %v", err)
		}
		if _, err := p.supply.Adopt(t.Context(), request("pod-alive")); !errors.Is(err, ErrQuarantined) {
			t.Errorf("it was given away: %v", err)
		}
		for id, v := range want {
			if v == VerdictCleanup {
				if err := p.supply.Discard(t.Context(), id); err != nil {
					t.Errorf("discard %s: %v", id, err)
				}
			}
		}
		// What could not be asked answers again; what was kept ends by itself.
		p.host.setFault(nil)
		p.host.machine("pod-alive").exit()
		p.wantLook(survey(), map[string]Verdict{"pod-alive": VerdictCleanup, "pod-mute": VerdictQuarantine})
		for _, id := range []string{"pod-alive", "pod-mute"} {
			if err := p.supply.Discard(t.Context(), id); err != nil {
				t.Errorf("discard %s: %v", id, err)
			}
		}
		p.wantLook(survey(), map[string]Verdict{})
		if a := p.supply.Ledger(); len(a.Machines) != 0 || a.Available != a.Capacity {
			t.Errorf("left: %+v", a)
		}
		p.leave("somebody-else", vm.StateRunning, true)
		if got := p.look(survey()); len(got) != 0 || len(p.supply.Ledger().Machines) != 0 {
			t.Errorf("somebody else's machine: %v", got)
		}
		p.stop()
	})
}

// TestReconcileReleasesWhatVanished: what an earlier look charged and then went in another way than
// by this program, such as by hand, does not keep its room.
func TestReconcileReleasesWhatVanished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.leave("pod-kept", vm.StateRunning, true)
		p.leave("pod-ended", vm.StateExited, true)
		p.wantLook(survey(), map[string]Verdict{"pod-kept": VerdictQuarantine, "pod-ended": VerdictCleanup})
		for _, id := range []string{"pod-kept", "pod-ended"} {
			if err := p.host.machine(id).Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]Verdict{"pod-kept": VerdictCleanup, "pod-ended": VerdictCleanup}
		if got := p.look(survey()); !cmp.Equal(got, want) {
			t.Errorf("verdicts %v, want %v", got, want)
		}
		for id := range want {
			if err := p.supply.Discard(t.Context(), id); err != nil {
				t.Errorf("discard %s: %v", id, err)
			}
		}
		p.wantLook(survey(), map[string]Verdict{})
		if a := p.supply.Ledger(); len(a.Machines) != 0 || a.Available != a.Capacity || len(p.supply.Quarantined()) != 0 {
			t.Errorf("left: %+v, in quarantine %+v", a, p.supply.Quarantined())
		}
		p.stop()
	})
}

// TestReconcileMeetsWhatIsGoing: a machine of a pod that goes while all are looked at, as its pod gives it
// back, takes no room afterwards.
func TestReconcileMeetsWhatIsGoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		p.leave("pod-going", vm.StateRunning, true)
		p.host.setFault(func(op, id string) error {
			if op == "load" && id == "pod-going" { // listed a moment ago
				p.host.mu.Lock()
				delete(p.host.machines, id)
				p.host.mu.Unlock()
			}
			return nil
		})
		p.look(survey(request("pod-going")))
		p.host.setFault(nil)
		if a := p.supply.Ledger(); len(a.Machines) != 0 || a.Available != a.Capacity {
			t.Errorf("charged for what is gone: %+v", a)
		}
		p.stop()
	})
}

// TestBrokenRecordsQuarantine: a record that cannot be read is no reason to delete the
// machine of a pod, nor to start the pod a second time beside it.
func TestBrokenRecordsQuarantine(t *testing.T) {
	for _, known := range []bool{true, false} { // whether the record still says whose it is
		t.Run(fmt.Sprintf("request known %v", known), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPooled(t, func(o *Options) { o.QuarantineDir = QuarantineDir(t.TempDir()) })
				tmpl := template("a", "r1")
				p.run(target("a", tmpl, 1, 0))
				pass(time.Minute)
				req := templateRequest("pod-1", tmpl)
				l, err := p.supply.Acquire(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				pass(time.Minute)
				machine := l.MachineID()
				p.stop()
				guess := record{}
				if known {
					guess = record{Request: "pod-1", Active: req.budget()}
				}
				p.records.spoil(machine, guess)
				p.start()
				p.wantLook(survey(req), map[string]Verdict{machine: VerdictQuarantine})
				if err := p.supply.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				pass(time.Hour)
				p.wantLook(survey(req), map[string]Verdict{machine: VerdictQuarantine})
				if p.host.machine(machine) == nil {
					t.Fatal("the machine is gone")
				}
				if _, err := p.supply.Adopt(t.Context(), req); !errors.Is(err, ErrQuarantined) {
					t.Errorf("adopt: %v", err)
				}
				q := p.supply.Quarantined()
				if len(q) != 1 || q[0].Machine != machine || known && q[0].Request != "pod-1" || q[0].Budget.MemoryBytes != smallShape.MemoryBytes {
					t.Errorf("in quarantine: %+v", q)
				}
				if list, err := p.opts.QuarantineDir.List(); err != nil || !cmp.Equal(list, q) {
					t.Errorf("people are told %+v, %v", list, err)
				}
				if a := p.supply.Ledger(); a.Active.MemoryBytes != smallShape.MemoryBytes {
					t.Errorf("it is not charged: %+v", a)
				}
				if st := p.supply.Status(); len(st.Quarantined) != 1 {
					t.Errorf("status: %+v", st.Quarantined)
				}
				p.host.setFault(func(op, id string) error {
					if op == "load" && id == machine {
						return vm.ErrUnavailable
					}
					return nil
				})
				p.wantLook(survey(req), map[string]Verdict{machine: VerdictRetry})
				if _, err := p.supply.Adopt(t.Context(), req); !errors.Is(err, ErrQuarantined) {
					t.Errorf("adopt while it cannot be asked: %v", err)
				}
				p.host.setFault(nil)
				if listed, err := p.opts.QuarantineDir.Listed(machine); !listed || err != nil {
					t.Errorf("that it could not be asked once took it out of quarantine: %v", err)
				}
				// Another start comes to the same, and nobody has it when it cannot be asked at first.
				p.stop()
				p.start()
				p.host.setFault(func(op, id string) error {
					if op == "load" && id == machine {
						return vm.ErrUnavailable
					}
					return nil
				})
				p.wantLook(survey(req), map[string]Verdict{machine: VerdictRetry})
				p.host.setFault(nil) // it answers before it is looked at again
				if _, err := p.supply.Adopt(t.Context(), req); !errors.Is(err, ErrQuarantined) {
					t.Errorf("adopt before it was asked: %v", err)
				}
				p.wantLook(survey(req), map[string]Verdict{machine: VerdictQuarantine})
				// Until somebody says that it may go.
				if err := p.opts.QuarantineDir.Remove(machine); err != nil {
					t.Fatal(err)
				}
				for range 2 { // until it is gone
					p.wantLook(survey(req), map[string]Verdict{machine: VerdictCleanup})
					if listed, err := p.opts.QuarantineDir.Listed(machine); !listed || err != nil || !p.opts.QuarantineDir.AskedFor(machine) {
						t.Errorf("whoever asked thinks that it is gone: %v", err)
					}
				}
				if err := p.supply.Discard(t.Context(), machine); err != nil {
					t.Fatal(err)
				}
				p.wantLook(survey(req), map[string]Verdict{})
				if _, err := p.supply.Adopt(t.Context(), req); !errors.Is(err, vm.ErrNotFound) {
					t.Errorf("adopt what was removed: %v", err)
				}
				if list, err := p.opts.QuarantineDir.List(); err != nil || len(list) != 0 || p.opts.QuarantineDir.Asked() {
					t.Errorf("people are told %+v, %v", list, err)
				}
				if p.host.machine(machine) != nil || len(p.records.bad) != 0 || p.supply.Ledger().Active != (Budget{}) {
					t.Errorf("left: %v, records %v, account %+v", p.host.ids(), p.records.bad, p.supply.Ledger())
				}
				if again, err := p.supply.Acquire(t.Context(), req); err != nil {
					t.Errorf("its id is free: %v", err)
				} else if again.MachineID() == machine {
					t.Error("it came back")
				}
				p.stop()
			})
		})
	}
}

// TestUnclearClaimsQuarantine: the record of a pod cannot be read, its machine lives. It is
// not given away by another id either.
func TestUnclearClaimsQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(time.Minute)
		warm, base, other := templateRequest("pod-warm", tmpl), request("pod-base"), templateRequest("pod-other", tmpl)
		other.Path = PathRestore
		var ids []string
		for _, r := range []Request{warm, base, other} {
			l, err := p.supply.Acquire(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, l.MachineID())
		}
		p.stop()
		p.start()
		sv := Survey{Prefixes: []string{"pod-"}}
		for _, id := range []string{"pod-warm", "pod-base", "pod-never"} {
			sv.Claims = append(sv.Claims, Claim{Request: Request{MachineID: id, PodUID: "uid-" + id}, Unclear: "written by version 9"})
		}
		contradicts := other
		contradicts.PodUID = "uid-of-another"
		sv.Claims = append(sv.Claims, Claim{Request: contradicts})
		want := map[string]Verdict{ids[0]: VerdictQuarantine, ids[1]: VerdictQuarantine, ids[2]: VerdictQuarantine}
		p.wantLook(sv, want)
		for _, r := range []Request{warm, base, other} {
			if _, err := p.supply.Adopt(t.Context(), r); !errors.Is(err, ErrQuarantined) {
				t.Errorf("adopt %s: %v", r.MachineID, err)
			}
		}
		// When their pods are gone, nobody can come back for them. Of the one without a record
		// of its own that is not known.
		p.wantLook(survey(), map[string]Verdict{ids[0]: VerdictCleanup, ids[1]: VerdictQuarantine, ids[2]: VerdictCleanup})
		for _, id := range ids {
			if err := p.supply.Discard(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		if a := p.supply.Ledger(); a.Active != (Budget{}) {
			t.Errorf("left: %+v", a)
		}
		p.stop()
	})
}

func TestQuarantineDir(t *testing.T) {
	d := QuarantineDir(filepath.Join(t.TempDir(), "quarantine"))
	if list, err := d.List(); err != nil || len(list) != 0 || d.Asked() {
		t.Errorf("%v, %v", list, err)
	}
	if err := d.Remove("pod-a"); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("remove of nothing: %v", err)
	}
	if err := d.Remove("../pod-a"); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("remove of a path: %v", err)
	}
	a := Quarantined{Machine: "pod-a", Since: time.Unix(1, 0).UTC(), Reason: "it runs", PodUID: "uid", Request: "pod-r", Budget: Budget{MilliCPU: 1, MemoryBytes: 2}}
	b := Quarantined{Machine: "warm-b", Since: time.Unix(2, 0).UTC(), Reason: "it runs too"}
	if err := d.publish([]Quarantined{b, a}); err != nil {
		t.Fatal(err)
	}
	list, err := d.List()
	if diff := cmp.Diff([]Quarantined{a, b}, list); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for range 2 {
		if err := d.Remove("pod-a"); err != nil {
			t.Error(err)
		}
	}
	if got := d.requests(); !slices.Equal(got, []string{"pod-a"}) || !d.Asked() {
		t.Errorf("requests %v", got)
	}
	if err := d.publish([]Quarantined{a, b}); err != nil || !d.Asked() {
		t.Errorf("the request is gone: %v", err)
	}
	if err := d.publish([]Quarantined{b}); err != nil || d.Asked() {
		t.Errorf("the request has outlived its machine: %v", err)
	}
	if is, err := d.Listed("pod-a"); is || err != nil {
		t.Errorf("listed: %v, %v", is, err)
	}
	if is, err := d.Listed("warm-b"); !is || err != nil {
		t.Errorf("listed: %v, %v", is, err)
	}
	if err := os.WriteFile(filepath.Join(string(d), "warm-b.json"), make([]byte, maxQuarantinedBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.List(); err == nil {
		t.Error("an absurd file was read")
	}
	if err := d.forget("warm-b"); err != nil {
		t.Error(err)
	}
	if list, err := d.List(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestUnreadableMachineQuarantine: a machine whose own record cannot be read is not asked
// again for ever, nor taken for a stuck one: it is put in quarantine, whoever has it, and
// ended only when somebody says so, or when it is nobody's.
func TestUnreadableMachineQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, func(o *Options) { o.QuarantineDir = QuarantineDir(t.TempDir()) })
		tmpl := template("a", "r1")
		p.run(target("a", tmpl, 1, 0))
		pass(time.Minute)
		base, warm, gone := request("pod-base"), templateRequest("pod-warm", tmpl), request("pod-gone")
		machines := map[string]string{} // by request
		for _, r := range []Request{base, warm, gone} {
			l, err := p.supply.Acquire(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			machines[r.MachineID] = l.MachineID()
		}
		p.leave("pod-nobody", vm.StateRunning, true)
		p.run() // no more entries
		pass(time.Minute)
		p.stop()
		why := fmt.Errorf("%w: version 9", vm.ErrUnreadable)
		for _, id := range append([]string{"pod-nobody"}, slices.Collect(maps.Values(machines))...) {
			p.host.setUnreadable(id, why)
		}
		p.start()
		known := survey(base, warm) // the pod of the third is gone
		want := map[string]Verdict{
			machines["pod-base"]: VerdictQuarantine, machines["pod-warm"]: VerdictQuarantine, "pod-nobody": VerdictQuarantine, "pod-gone": VerdictQuarantine,
		}
		p.wantLook(known, want)
		if a := p.supply.Ledger(); len(a.Machines) != len(want) || a.Active.MemoryBytes != 4*smallShape.MemoryBytes {
			t.Errorf("charged: %+v", a)
		}
		for _, r := range []Request{base, warm} {
			if _, err := p.supply.Adopt(t.Context(), r); !errors.Is(err, ErrQuarantined) {
				t.Errorf("adopt %s: %v", r.MachineID, err)
			}
		}
		list, err := p.opts.QuarantineDir.List()
		if err != nil || len(list) != len(want) {
			t.Errorf("people are told %+v, %v", list, err)
		}
		for _, q := range list {
			if !strings.Contains(q.Reason, "version 9") {
				t.Errorf("%s is kept since %s", q.Machine, q.Reason)
			}
		}
		// Somebody starts the version that can read one, and says that another may go.
		p.host.setUnreadable(machines["pod-warm"], nil)
		if err := p.opts.QuarantineDir.Remove(machines["pod-base"]); err != nil {
			t.Fatal(err)
		}
		if _, err := p.supply.Adopt(t.Context(), warm); err != nil {
			t.Errorf("adopt what can be read again: %v", err)
		}
		want[machines["pod-base"]] = VerdictCleanup
		delete(want, machines["pod-warm"])
		p.wantLook(known, want)
		if list, err := p.opts.QuarantineDir.List(); err != nil || len(list) != 3 {
			t.Errorf("people are told %+v, %v", list, err)
		}
		if err := p.supply.Discard(t.Context(), machines["pod-base"]); err != nil {
			t.Errorf("discard what was to go: %v", err)
		}
		if _, err := p.supply.Adopt(t.Context(), base); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("adopt what was removed: %v", err)
		}
		for _, id := range []string{"pod-nobody", "pod-gone"} {
			if err := p.opts.QuarantineDir.Remove(id); err != nil {
				t.Fatal(err)
			}
			if err := p.supply.Discard(t.Context(), id); err != nil {
				t.Errorf("discard %s: %v", id, err)
			}
		}
		if got := p.host.ids(); !slices.Equal(got, []string{machines["pod-warm"]}) {
			t.Errorf("left: %v", got)
		}
		p.stop()
	})
}

// TestAdoptOfAnUnreadableMachine: a machine that turns out so when it is adopted is not taken
// for a stuck one either; the next look says it.
func TestAdoptOfAnUnreadableMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooled(t, nil)
		req := request("pod-1")
		if _, err := p.supply.Acquire(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		p.stop()
		p.start()
		p.wantLook(survey(req), map[string]Verdict{"pod-1": VerdictRecover})
		p.host.setUnreadable("pod-1", vm.ErrUnreadable)
		for range 2 {
			if _, err := p.supply.Adopt(t.Context(), req); !errors.Is(err, ErrQuarantined) {
				t.Errorf("adopt: %v", err)
			}
		}
		p.wantLook(survey(req), map[string]Verdict{"pod-1": VerdictQuarantine})
		p.host.setUnreadable("pod-1", nil)
		p.wantLook(survey(req), map[string]Verdict{"pod-1": VerdictRecover})
		if _, err := p.supply.Adopt(t.Context(), req); err != nil {
			t.Errorf("adopt: %v", err)
		}
		p.stop()
	})
}
