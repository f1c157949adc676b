// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

func TestEnsureBuildsOnceAndRestores(t *testing.T) {
	d := snapshottest.New()
	s := openTest(t, t.TempDir(), testOptions(d))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ref, built, err := s.Ensure(t.Context(), testSpec())
			if err != nil {
				t.Errorf("ensure: %v", err)
				return
			}
			if !built {
				t.Error("a call that waited for a build says it did not")
			}
			ref.Release()
		})
	}
	wg.Wait()
	if creates, _ := d.Count(); creates != 1 {
		t.Fatalf("%d machines were booted for one snapshot", creates)
	}
	ref, built := ensure(t, s)
	if built {
		t.Error("built again")
	}
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("the builder is left: %v", got)
	}
	a, b := restore(t, s, ref, "a"), restore(t, s, ref, "b")
	if a.Timings.Restore <= 0 || a.Timings.Agent <= 0 {
		t.Errorf("no timings: %+v", a.Timings)
	}
	ra, rb := a.Machine.(*snapshottest.Machine).Agent().Refreshes()[0], b.Machine.(*snapshottest.Machine).Agent().Refreshes()[0]
	if ra.MachineId == rb.MachineId || string(ra.Entropy) == string(rb.Entropy) || string(ra.Challenge) == string(rb.Challenge) {
		t.Error("two machines were given the same identity")
	}
	if len(ra.Entropy) != 64 || len(ra.MachineId) != 32 || ra.Hostname != "a" || ra.TimeUnixNano == 0 {
		t.Errorf("refresh %v", ra)
	}
	if r, ok := s.Reference("a"); !ok || !r.Proven || r.Key != ref.Key() {
		t.Errorf("reference %+v, %v", r, ok)
	}
	if _, err := s.Restore(t.Context(), ref, "a", testConfig(), RestoreOptions{}); !errors.Is(err, vm.ErrAlreadyExists) {
		t.Errorf("same id again: %v", err)
	}
	if m, err := d.Load(t.Context(), "a"); err != nil || m != a.Machine {
		t.Errorf("the refused restore touched the machine that has the id: %v", err)
	}
}

func TestReopenFindsSnapshotAndReferences(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	s := openTest(t, dir, testOptions(d))
	ref, _ := ensure(t, s)
	kept := restore(t, s, ref, "kept")
	gone := restore(t, s, ref, "gone")
	ref.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The node is away; a machine vanishes.
	if err := gone.Machine.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, testOptions(d))
	if _, ok := s.Reference("gone"); ok {
		t.Error("the reference of a machine that does not exist was kept")
	}
	ref, built := ensure(t, s)
	if built {
		t.Error("built again after reopen")
	}
	ref.Release()
	key := ref.Key()
	if _, err := s.Delete(t.Context(), key); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "kept") {
		t.Errorf("delete with a machine: %v", err)
	}
	if report, err := s.GC(t.Context(), GCOptions{}); err != nil || report.RemovedBytes != 0 {
		t.Errorf("collected what a machine needs: %+v, %v", report, err)
	}
	if err := kept.Machine.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget("kept"); err != nil {
		t.Fatal(err)
	}
	pin, _ := ensure(t, s)
	if report, err := s.GC(t.Context(), GCOptions{}); err != nil || report.RemovedBytes != 0 {
		t.Errorf("collected what is pinned: %+v, %v", report, err)
	}
	pin.Release()
	for _, c := range []struct {
		name   string
		opts   GCOptions
		remove bool
	}{
		{"grace", GCOptions{Grace: time.Hour}, false},
		{"wanted", wants(key), false},
		{"dry run", GCOptions{DryRun: true}, true},
		{"now", GCOptions{}, true},
	} {
		report, err := s.GC(t.Context(), c.opts)
		if err != nil || len(report.Decisions) != 1 || report.Decisions[0].Remove != c.remove {
			t.Errorf("%s: %+v, %v", c.name, report, err)
		}
	}
	if infos, err := s.List(t.Context()); err != nil || len(infos) != 0 {
		t.Errorf("left after collection: %v, %v", infos, err)
	}
	if _, built := ensure(t, s); !built {
		t.Error("what was collected is still used")
	}
}

func TestRestoreFailures(t *testing.T) {
	errBoom := errors.New("boom")
	cases := []struct {
		name    string
		fault   func(op, id string) error
		bend    func(*snapshottest.Agent)
		opts    func(*Options)
		want    error // of the first attempt
		quarant int   // attempt after which it is in quarantine, 0 for never
	}{
		{"driver says invalid", faultOn("restore", vm.ErrSnapshotInvalid), nil, nil, vm.ErrSnapshotInvalid, 1},
		{"driver fails", faultOn("restore", errBoom), nil, nil, errBoom, 2},
		{"no space", faultOn("restore", vm.ErrNoSpace), nil, nil, vm.ErrNoSpace, 0},
		{"host not ready", faultOn("restore", vm.ErrHostNotReady), nil, nil, vm.ErrHostNotReady, 0},
		{"resume fails", faultOn("resume", errBoom), nil, nil, errBoom, 2},
		{"refresh fails", nil, func(a *snapshottest.Agent) { a.Refused = true }, nil, nil, 2},
		{"forged proof", nil, func(a *snapshottest.Agent) { a.Forged = true }, nil, ErrProof, 1},
		{"cold boot instead", nil, func(a *snapshottest.Agent) { a.Unsealed = true }, nil, ErrProof, 1},
		{"silent guest", nil, func(a *snapshottest.Agent) { a.Silent = true }, func(o *Options) { o.Timeouts.Agent = 50 * time.Millisecond }, context.DeadlineExceeded, 2},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := snapshottest.New()
			opts := testOptions(d)
			var events []Event
			opts.OnEvent = func(e Event) { events = append(events, e) }
			if c.opts != nil {
				c.opts(&opts)
			}
			s := openTest(t, t.TempDir(), opts)
			ref, _ := ensure(t, s)
			d.SetFault(c.fault)
			d.SetBend(c.bend)
			for attempt := 1; attempt <= 2; attempt++ {
				_, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
				if err == nil {
					t.Fatal("restored")
				}
				if attempt == 1 && c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("error %v, want %v", err, c.want)
				}
				if got := d.Machines(); len(got) != 0 {
					t.Errorf("machines are left: %v", got)
				}
				if _, ok := s.Reference("m"); ok {
					t.Error("a reference is left")
				}
				in := c.quarant != 0 && attempt >= c.quarant
				if got := s.isGone(ref.set); got != in {
					t.Errorf("attempt %d: quarantined %v, want %v", attempt, got, in)
				}
				if in != errors.Is(err, vm.ErrSnapshotInvalid) {
					t.Errorf("attempt %d: quarantined %v with error %v", attempt, in, err)
				}
			}
			d.SetFault(nil)
			d.SetBend(nil)
			_, built := ensure(t, s)
			if built != (c.quarant != 0) {
				t.Errorf("built again: %v", built)
			}
			if c.quarant == 0 {
				return
			}
			infos, err := s.List(t.Context())
			if err != nil || len(infos) != 2 || infos[1].Status != StatusQuarantined || infos[1].Problem == "" {
				t.Errorf("list %+v, %v", infos, err)
			}
			if len(events) != 3 || events[1].Type != EventQuarantined || events[1].Shape != testSpec().Shape {
				t.Errorf("events %+v", events)
			}
		})
	}
}

func faultOn(op string, err error) func(string, string) error {
	return func(got, _ string) error {
		if got == op {
			return err
		}
		return nil
	}
}

func TestRestoreLeavesWhatCannotBeDeleted(t *testing.T) {
	d := snapshottest.New()
	s := openTest(t, t.TempDir(), testOptions(d))
	ref, _ := ensure(t, s)
	errBoom := errors.New("boom")
	d.SetFault(func(op, _ string) error {
		if op == "resume" || op == "delete" {
			return errBoom
		}
		return nil
	})
	_, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
	var left *LeftoverError
	if !errors.As(err, &left) || left.Machine.ID() != "m" {
		t.Fatalf("error %v, want a LeftoverError", err)
	}
	if r, ok := s.Reference("m"); !ok || r.Proven {
		t.Errorf("reference of the leftover: %+v, %v", r, ok)
	}
}

func TestCancelledRestoreIsNotTheSnapshotsFault(t *testing.T) {
	d := snapshottest.New()
	s := openTest(t, t.TempDir(), testOptions(d))
	ref, _ := ensure(t, s)
	d.SetBend(func(a *snapshottest.Agent) { a.Silent = true })
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, err := s.Restore(ctx, ref, "m", testConfig(), RestoreOptions{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
	}
	if s.isGone(ref.set) || len(d.Machines()) != 0 {
		t.Error("a caller who gave up cost the snapshot, or left a machine")
	}
}

func TestBuildFailureLeavesNothing(t *testing.T) {
	errBoom := errors.New("boom")
	for _, op := range []string{"create", "dial", "seal", "pause", "save"} {
		t.Run(op, func(t *testing.T) {
			d := snapshottest.New()
			opts := testOptions(d)
			opts.Timeouts.Boot = 100 * time.Millisecond
			s := openTest(t, t.TempDir(), opts)
			d.SetFault(faultOn(op, errBoom))
			_, _, err := s.Ensure(t.Context(), testSpec())
			var build *BuildError
			if !errors.As(err, &build) || !strings.Contains(err.Error(), "boom") {
				t.Fatalf("error %v", err)
			}
			if op == "dial" && !strings.Contains(err.Error(), "panic: .no init") {
				t.Errorf("the console is not in %q", err)
			}
			if got := d.Machines(); len(got) != 0 {
				t.Errorf("machines are left: %v", got)
			}
			if got := visible(t, s.dir); len(got) != 0 {
				t.Errorf("directories are left: %v", got)
			}
			d.SetFault(nil)
			ensure(t, s)
		})
	}
}

// visible lists what is in a store beside its own directories.
func visible(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); n != ".lock" && n != failuresName && n != refsDir && n != quarantineDir {
			names = append(names, n)
		}
	}
	return names
}

func TestOpenDeletesLeftoversOfACrashedBuilder(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	random := randomHex(16)
	leftover := filepath.Join(dir, buildingPrefix+random)
	for _, p := range []string{leftover, filepath.Join(dir, removingPrefix+"x")} {
		if err := os.MkdirAll(filepath.Join(p, machineDir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Create(t.Context(), builderIDPrefix+random, testConfig()); err != nil {
		t.Fatal(err)
	}
	d.SetFault(faultOn("load", vm.ErrUnavailable))
	s := openTest(t, dir, testOptions(d))
	if diff := cmp.Diff([]string{buildingPrefix + random}, visible(t, dir)); diff != "" {
		t.Errorf("could not ask is not gone: %s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d.SetFault(nil)
	openTest(t, dir, testOptions(d))
	if got := append(visible(t, dir), d.Machines()...); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestDamagedSnapshotIsRebuilt(t *testing.T) {
	damage := map[string]func(t *testing.T, dir string){
		"bit flip": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, machineDir, "scratch"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		},
		"truncated": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, machineDir, "memory"), func(b []byte) []byte { return b[:len(b)-1] })
		},
		"missing":     func(t *testing.T, dir string) { remove(t, filepath.Join(dir, machineDir, "device")) },
		"no manifest": func(t *testing.T, dir string) { remove(t, filepath.Join(dir, manifestName)) },
		"garbage manifest": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, manifestName), func(b []byte) []byte { return b[10:] })
		},
		"another host": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, manifestName), func(b []byte) []byte { return []byte(strings.Replace(string(b), "test-1", "test-2", 1)) })
		},
		"seal key": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, sealKeyName), func(b []byte) []byte { b[0]++; return b })
		},
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			d := snapshottest.New()
			dir := t.TempDir()
			s := openTest(t, dir, testOptions(d))
			ref, _ := ensure(t, s)
			ref.Release()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			f(t, filepath.Join(dir, ref.Key()))
			ro, err := OpenReadOnly(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ro.Verify(t.Context(), ref.Key()); !errors.Is(err, vm.ErrSnapshotInvalid) && name != "another host" {
				t.Errorf("verify: %v", err)
			}
			s = openTest(t, dir, testOptions(d))
			again, built := ensure(t, s)
			if !built {
				t.Error("a damaged snapshot was used")
			}
			if _, err := s.Verify(t.Context(), ref.Key()); err != nil {
				t.Errorf("the new one: %v", err)
			}
			restore(t, s, again, "m")
			infos, err := s.List(t.Context())
			if err != nil || len(infos) != 2 || infos[1].Status != StatusQuarantined {
				t.Errorf("list %+v, %v", infos, err)
			}
		})
	}
	t.Run("truncated while in use", func(t *testing.T) {
		d := snapshottest.New()
		s := openTest(t, t.TempDir(), testOptions(d))
		ref, _ := ensure(t, s)
		damage["truncated"](t, filepath.Join(s.dir, ref.Key()))
		if _, built := ensure(t, s); !built {
			t.Error("a truncated snapshot was used")
		}
	})
}

func edit(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFloor(t *testing.T) {
	for _, c := range []struct {
		free int64
		ok   bool
	}{{10 << 30, true}, {10<<30 - 1, false}} {
		d := snapshottest.New()
		opts := testOptions(d)
		opts.MinFreeBytes = 0 // the default
		free := int64(11 << 30)
		opts.FreeBytes = func(string) (int64, error) { return free, nil }
		s := openTest(t, t.TempDir(), opts)
		ref, _ := ensure(t, s)
		free = c.free
		_, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
		var pressure *DiskPressureError
		if (err == nil) != c.ok || !c.ok && (!errors.As(err, &pressure) || !errors.Is(err, vm.ErrNoSpace)) {
			t.Errorf("restore with %d free: %v", c.free, err)
		}
		other := testSpec()
		other.Shape.VCPUs = 2
		if _, _, err := s.Ensure(t.Context(), other); (err == nil) != c.ok || !c.ok && !errors.As(err, &pressure) {
			t.Errorf("build with %d free: %v", c.free, err)
		}
	}
}

func TestOneWriter(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	s := openTest(t, dir, testOptions(d))
	ref, _ := ensure(t, s)
	restore(t, s, ref, "m")
	if _, err := Open(t.Context(), dir, testOptions(d)); !errors.Is(err, ErrLocked) {
		t.Fatalf("second writer: %v", err)
	}
	ro, err := OpenReadOnly(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := ro.List(t.Context())
	if err != nil || len(infos) != 1 || infos[0].Status != StatusReady {
		t.Fatalf("list beside the node: %+v, %v", infos, err)
	}
	if diff := cmp.Diff([]string{"m"}, infos[0].Machines); diff != "" {
		t.Errorf("machines: %s", diff)
	}
	if _, err := ro.Inspect(t.Context(), ref.Key()[:6]); err != nil {
		t.Errorf("inspect by prefix: %v", err)
	}
	if _, err := ro.GC(t.Context(), GCOptions{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("collect read-only: %v", err)
	}
	if _, err := ro.GC(t.Context(), GCOptions{DryRun: true}); err != nil {
		t.Errorf("dry run read-only: %v", err)
	}
	if _, err := ro.Delete(t.Context(), ref.Key()); !errors.Is(err, ErrReadOnly) {
		t.Errorf("delete read-only: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Without a driver all references are believed.
	openTest(t, dir, Options{})
	if infos, err := ro.List(t.Context()); err != nil || len(infos[0].Machines) != 1 {
		t.Errorf("references without a driver: %+v, %v", infos, err)
	}
}

func TestClose(t *testing.T) {
	d := snapshottest.New()
	opts := testOptions(d)
	opts.Timeouts.Boot = time.Hour
	s := openTest(t, t.TempDir(), opts)
	d.SetBend(func(a *snapshottest.Agent) { a.Silent = true })
	done := make(chan error)
	go func() {
		_, _, err := s.Ensure(context.WithoutCancel(t.Context()), testSpec())
		done <- err
	}()
	for creates := 0; creates == 0; creates, _ = d.Count() {
		time.Sleep(time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("ensure ended with %v", err)
	}
	if got := append(visible(t, s.dir), d.Machines()...); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if _, _, err := s.Ensure(t.Context(), testSpec()); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrReadOnly) {
		t.Errorf("ensure after close: %v", err)
	}
}
