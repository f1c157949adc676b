// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

func TestBoot(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	s := openTest(t, dir, testOptions(d))
	spec := templateSpec(t, t.TempDir())
	prepared := 0
	spec.Template.Prepare = func(context.Context, *guest.Client) error { prepared++; return nil }
	var phases []Phase
	r, err := s.Boot(t.Context(), "cold", spec, spec.config(), RestoreOptions{Hostname: "h", Phase: func(p Phase) { phases = append(phases, p) }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Guest.Close() }()
	if diff := cmp.Diff([]Phase{PhaseBoot, PhaseAgent, PhasePrepare}, phases); diff != "" || prepared != 1 {
		t.Errorf("phases %s, prepared %d times", diff, prepared)
	}
	refreshes := d.Machine("cold").Agent().Refreshes()
	if len(refreshes) != 1 || refreshes[0].GetHostname() != "h" {
		t.Errorf("refreshes %v", refreshes)
	}
	ref, ok := s.Reference("cold")
	if !ok || !ref.Proven || !ref.Cold() {
		t.Errorf("reference %+v %v", ref, ok)
	}
	if _, restores := d.Count(); restores != 0 || len(visible(t, dir)) != 0 {
		t.Errorf("%d restores, snapshots %v", restores, visible(t, dir))
	}
	if _, err := s.Boot(t.Context(), "cold", spec, spec.config(), RestoreOptions{}); !errors.Is(err, vm.ErrAlreadyExists) {
		t.Errorf("the same id again: %v", err)
	}
	// A cold machine can be paused and woken as well.
	if client, err := s.Wake(t.Context(), r.Machine, r.Guest, "again"); err != nil || client != r.Guest {
		t.Errorf("wake: %v", err)
	}

	for name, change := range map[string]func(*Spec){
		"prepare": func(s *Spec) {
			s.Template.Prepare = func(context.Context, *guest.Client) error { return errInjected }
		},
		"agent": func(*Spec) { d.SetBend(func(a *snapshottest.Agent) { a.Refused = true }) },
		"create": func(*Spec) {
			d.SetFault(func(op, _ string) error { return map[string]error{"create": errInjected}[op] })
		},
	} {
		bad := templateSpec(t, t.TempDir())
		change(&bad)
		if _, err := s.Boot(t.Context(), "bad", bad, bad.config(), RestoreOptions{}); err == nil {
			t.Errorf("%s: no error", name)
		}
		d.SetBend(nil)
		d.SetFault(nil)
		if got := d.Machines(); !slices.Equal(got, []string{"cold"}) {
			t.Errorf("%s: machines %v", name, got)
		}
		if _, ok := s.Reference("bad"); ok {
			t.Errorf("%s: a reference is left", name)
		}
	}
}

func TestWake(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	opts := testOptions(d)
	opts.Network = &agentv1.Network{Address: "10.0.2.15/24"}
	opts.Timeouts.Wake = 2 * time.Second
	s := openTest(t, dir, opts)
	ref, _ := ensure(t, s)
	r, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pause := func() {
		t.Helper()
		if err := r.Machine.(vm.Pauser).Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wake := func(s *Store, c *guest.Client) *guest.Client {
		t.Helper()
		got, err := s.Wake(t.Context(), r.Machine, c, "pod")
		if err != nil {
			t.Fatal(err)
		}
		if err := got.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		return got
	}
	pause()
	client := wake(s, r.Guest)
	if client != r.Guest {
		t.Error("a connection that is alive was not used")
	}
	refreshes := d.Machine("m").Agent().Refreshes()
	last := refreshes[len(refreshes)-1]
	if len(refreshes) != 2 || last.GetHostname() != "pod" || last.GetNetwork() == nil || last.GetMachineId() == refreshes[0].GetMachineId() {
		t.Errorf("refreshes %v", refreshes)
	}
	if err := s.Refresh(t.Context(), r.Machine, client, "later"); err != nil {
		t.Error(err)
	}
	pause()
	d.Machine("m").Agent().HangUp()
	if again := wake(s, client); again == client {
		t.Error("a connection that was lost was used")
	} else {
		_ = again.Close()
	}

	// After a restart, and with the snapshot in quarantine, damaged even.
	if err := s.Quarantine(t.Context(), ref.Key(), "test"); err != nil {
		t.Fatal(err)
	}
	names, err := s.quarantined()
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []bool{false, true} {
		if damage {
			if err := os.WriteFile(filepath.Join(dir, quarantineDir, names[0], manifestName), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s = openTest(t, dir, opts)
		_ = wake(s, nil).Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}

	s = openTest(t, dir, opts)
	agent := d.Machine("m").Agent()
	agent.SetKey(bytes.Repeat([]byte{1}, 32))
	if c, err := s.Wake(t.Context(), r.Machine, nil, ""); !errors.Is(err, ErrProof) || c != nil {
		t.Errorf("another machine: %v", err)
	}
	d.Machine("m").Exit()
	if _, err := s.Wake(t.Context(), r.Machine, nil, ""); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("a machine that has ended: %v", err)
	}
	if err := s.Forget("m"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wake(t.Context(), r.Machine, nil, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown machine: %v", err)
	}
	if len(s.sealKeys) != 0 {
		t.Errorf("%d seal keys are left", len(s.sealKeys))
	}
}

// TestWakeSilent: a machine that does not answer takes no longer than it may.
func TestWakeSilent(t *testing.T) {
	d := snapshottest.New()
	opts := testOptions(d)
	opts.Timeouts.Wake = 100 * time.Millisecond
	s := openTest(t, t.TempDir(), opts)
	ref, _ := ensure(t, s)
	r := restore(t, s, ref, "m")
	_ = r.Guest.Close()
	d.Machine("m").Agent().Silent = true
	if _, err := s.Wake(t.Context(), r.Machine, nil, ""); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
