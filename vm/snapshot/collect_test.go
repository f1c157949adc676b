// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

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
	opts.fs = durabletest.New(t, durable.Host, dir, durabletest.Fault{})
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
	s.opts.fs = disk
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
