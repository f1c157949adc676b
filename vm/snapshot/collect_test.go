// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// wants are options that keep these keys.
func wants(keys ...string) GCOptions {
	return GCOptions{Wanted: func() Wanted { return Wanted{Keys: keys} }}
}

// TestFaultAtEveryCallOfACollection fails each call of a collection, once or for good.
// After a restart no set is half there, what a machine needs can be restored from, with
// all its files, and a second collection removes all that the first left.
func TestFaultAtEveryCallOfACollection(t *testing.T) {
	modes := []durabletest.Mode{durabletest.EIO, durabletest.Crash, durabletest.CrashLosingAll}
	durabletest.Every(t, modes, 4, faultyCollection)
}

func faultyCollection(t *testing.T, disk *durabletest.FS, dir string) {
	t.Helper()
	d := snapshottest.New()
	opts := testOptions(d)
	opts.FS = durabletest.New(t, durable.Host, dir, durabletest.Fault{})
	s := openTest(t, dir, opts)
	kept, _ := ensure(t, s)
	restore(t, s, kept, "m")
	for _, memory := range []int64{512 << 20, 1 << 30} {
		other := testSpec()
		other.Shape.MemoryBytes = memory
		for range 2 {
			ref, _, err := s.Ensure(t.Context(), other)
			if err != nil {
				t.Fatal(err)
			}
			ref.Release()
			if memory == 1<<30 {
				if err := s.Quarantine(t.Context(), ref.Key(), "test"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	kept.Release()
	if err := os.Mkdir(filepath.Join(dir, buildingPrefix+"0123"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.opts.FS = disk
	_, err := s.GC(t.Context(), GCOptions{})
	if disk.Reached() != (err != nil) {
		t.Errorf("%q and error %v", disk.At(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Restart(t)

	s = openTest(t, dir, opts)
	for _, name := range visible(t, dir) {
		if !isHex(name, keyLength) {
			t.Errorf("%s is left after reopen", name)
		}
	}
	infos, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if _, err := s.Verify(t.Context(), i.Name); err != nil {
			t.Errorf("half a set: %v", err)
		}
	}
	again, built := ensure(t, s)
	if built || again.Key() != kept.Key() {
		t.Error("the set of a machine was built anew")
	}
	restore(t, s, again, "another")
	again.Release()
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Error(err)
	}
	if left, err := s.List(t.Context()); err != nil || len(left) != 1 || left[0].Key != kept.Key() || len(left[0].Machines) != 2 {
		t.Errorf("after a second collection: %+v, %v", left, err)
	}
}

// Between being listed and being removed a snapshot may be used, or come to be wanted: then
// it stays.
func TestCollectionLooksAgain(t *testing.T) {
	s := openTest(t, t.TempDir(), testOptions(snapshottest.New()))
	ref, _ := ensure(t, s)
	key := ref.Key()
	ref.Release()
	long := time.Now().Add(-time.Hour)
	age := func() {
		for _, path := range []string{filepath.Join(s.dir, key), filepath.Join(s.dir, refsDir, key)} {
			if err := os.Chtimes(path, long, long); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
	created := s.opts.Now
	s.opts.Now = func() time.Time { return created().Add(time.Hour) } // its making is an hour ago
	defer func() { s.opts.Now = created }()
	for _, c := range []struct {
		name string
		// asked is called each time that the collection asks what is wanted.
		asked func(n int) Wanted
		gone  bool
	}{
		{"used", func(n int) Wanted {
			if n == 1 {
				now := s.opts.Now()
				if err := os.Chtimes(filepath.Join(s.dir, key), now, now); err != nil {
					t.Fatal(err)
				}
			}
			return Wanted{}
		}, false},
		{"wanted", func(n int) Wanted {
			if n == 1 {
				return Wanted{}
			}
			return Wanted{Keys: []string{key}}
		}, false},
		{"nothing", func(int) Wanted { return Wanted{} }, true},
	} {
		age()
		asked := 0
		report, err := s.GC(t.Context(), GCOptions{Grace: time.Minute, Wanted: func() Wanted { asked++; return c.asked(asked) }})
		if err != nil || asked != 2 || len(report.Decisions) != 1 || report.Decisions[0].Remove != c.gone || report.Decisions[0].Reason == "" {
			t.Errorf("%s: %+v, %v, asked %d times", c.name, report, err, asked)
		}
		if got := len(visible(t, s.dir)) == 0; got != c.gone {
			t.Errorf("%s: gone %v", c.name, got)
		}
	}
}

// What was listed and has been built anew since is not what was to go.
func TestRemovalOfASuccessor(t *testing.T) {
	s := openTest(t, t.TempDir(), testOptions(snapshottest.New()))
	ref, _ := ensure(t, s)
	ref.Release()
	listed, err := s.Inspect(t.Context(), ref.Key())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Quarantine(t.Context(), ref.Key(), "test"); err != nil {
		t.Fatal(err)
	}
	again, _ := ensure(t, s)
	again.Release()
	if err := s.remove(t.Context(), listed, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("removed: %v", err)
	}
	if _, err := s.Verify(t.Context(), ref.Key()); err != nil {
		t.Error(err)
	}
}

// A set that this process uses is not collected from under it, whatever becomes of its name:
// when its quarantine fails in the middle, and when it does not.
func TestPinsOutliveTheName(t *testing.T) {
	for _, fails := range []bool{true, false} {
		dir := t.TempDir()
		opts := testOptions(snapshottest.New())
		disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{})
		opts.FS = disk
		s := openTest(t, dir, opts)
		ref, _ := ensure(t, s)
		restored := restore(t, s, ref, "before")
		if err := errors.Join(restored.Machine.Delete(t.Context()), s.Forget("before")); err != nil {
			t.Fatal(err)
		}
		if fails {
			disk.Arm(durabletest.Fault{At: 1, Mode: durabletest.EIO}) // the rename
		}
		if err := s.Quarantine(t.Context(), ref.Key(), "test"); (err != nil) != fails {
			t.Fatalf("quarantine: %v", err)
		}
		disk.Heal()
		if report, err := s.GC(t.Context(), GCOptions{}); err != nil || report.RemovedBytes != 0 {
			t.Errorf("fails %v: collected under a pin: %+v, %v", fails, report, err)
		}
		infos, err := s.List(t.Context())
		if err != nil || len(infos) != 1 || infos[0].Pins != 1 {
			t.Errorf("fails %v: listed %+v, %v", fails, infos, err)
		}
		if _, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{}); !errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("fails %v: restored from what was to be put aside: %v", fails, err)
		}
		again, built := ensure(t, s)
		if !built || again.Manifest().Instance == ref.Manifest().Instance {
			t.Errorf("fails %v: built anew %v", fails, built)
		}
		again.Release()
		if report, err := s.GC(t.Context(), GCOptions{Wanted: wants(ref.Key()).Wanted}); err != nil || report.RemovedBytes != 0 {
			t.Errorf("fails %v: collected under a pin: %+v, %v", fails, report, err)
		}
		ref.Release()
		if report, err := s.GC(t.Context(), GCOptions{Wanted: wants(ref.Key()).Wanted}); err != nil || report.RemovedBytes == 0 {
			t.Errorf("fails %v: kept without a pin: %+v, %v", fails, report, err)
		}
	}
}

// What a failed build or removal has left goes with a collection, not only when the store
// is opened; a build under way is none of it.
func TestCollectionOfLeftovers(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	s := openTest(t, dir, testOptions(d))
	for _, name := range []string{removingPrefix + "a", buildingPrefix + "b", buildingPrefix + "c"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "file"), make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.setBuilder(builderIDPrefix+"c", true)
	// The machine that filled the directory goes with it.
	if _, err := d.Create(t.Context(), builderIDPrefix+"b", testConfig()); err != nil {
		t.Fatal(err)
	}
	names := func(opts GCOptions) (names []string) {
		report, err := s.GC(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range report.Leftovers {
			if l.Bytes < 64<<10 {
				t.Errorf("%s has %d bytes", l.Name, l.Bytes)
			}
			names = append(names, l.Name)
		}
		return names
	}
	if got := names(GCOptions{Grace: time.Hour, DryRun: true}); len(got) != 1 || got[0] != removingPrefix+"a" {
		t.Errorf("with a grace period: %v", got)
	}
	if got := names(GCOptions{}); len(got) != 2 {
		t.Errorf("without: %v", got)
	}
	if left := visible(t, dir); len(left) != 1 || left[0] != buildingPrefix+"c" || len(d.Machines()) != 0 {
		t.Errorf("left: %v, machines %v", left, d.Machines())
	}
	s.setBuilder(builderIDPrefix+"c", false)
}

// Who collects without a driver leaves the directory of a build whose machine may exist to the
// node, which can delete that, and calls it no fault.
func TestCollectionWithoutADriver(t *testing.T) {
	dir := t.TempDir()
	machines := []string{builderIDPrefix + "a", builderIDPrefix + "b"}
	opts := Options{Machines: func(context.Context) ([]string, error) { return machines, nil }}
	for _, name := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, buildingPrefix+name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := openTest(t, dir, opts)
	collect := func(dryRun bool, want ...string) {
		t.Helper()
		report, err := s.GC(t.Context(), GCOptions{DryRun: dryRun})
		if err != nil || len(report.Leftovers) != len(want) {
			t.Errorf("dry run %v: %+v, %v, want %v", dryRun, report.Leftovers, err, want)
		}
	}
	collect(true)
	collect(false)
	machines = machines[1:]
	collect(true, "a")
	collect(false, "a")
	if left := visible(t, dir); !slices.Equal(left, []string{buildingPrefix + "b"}) {
		t.Errorf("left: %v", left)
	}
}
