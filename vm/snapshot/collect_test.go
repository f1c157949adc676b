// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// TestFaultAtEveryCallOfACollection fails each call of a collection, once or for good.
// After a restart no set is half there, what a machine needs can be restored from, with
// all its files, and a second collection removes all that the first left.
func TestFaultAtEveryCallOfACollection(t *testing.T) {
	for _, crash := range []bool{false, true} {
		for n := 1; ; n++ {
			reached := faultyCollection(t, n, crash)
			if t.Failed() {
				return
			}
			if !reached {
				if n < 5 {
					t.Errorf("only %d calls were made to fail", n-1)
				}
				break
			}
		}
	}
}

// faultyCollection is false when the collection has no such call.
func faultyCollection(t *testing.T, n int, crash bool) bool {
	t.Helper()
	d := snapshottest.New()
	dir := t.TempDir()
	fs := &faultFS{fileSystem: unsyncedFS{}, root: dir, crash: crash}
	opts := testOptions(d)
	opts.fs = fs
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
	before := len(fs.calls)
	fs.at = before + n
	_, err := s.GC(t.Context(), GCOptions{})
	reached := len(fs.calls) >= before+n
	if reached != errors.Is(err, errInjected) {
		t.Errorf("call %d: reached %v with error %v", n, reached, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	opts.fs = unsyncedFS{}
	s = openTest(t, dir, opts)
	about := fmt.Sprintf("call %d, crash %v", n, crash)
	for _, name := range visible(t, dir) {
		if !isHex(name, keyLength) {
			t.Errorf("%s: %s is left after reopen", about, name)
		}
	}
	infos, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if _, err := s.Verify(t.Context(), i.Name); err != nil {
			t.Errorf("%s: half a set: %v", about, err)
		}
	}
	again, built := ensure(t, s)
	if built || again.Key() != kept.Key() {
		t.Errorf("%s: the set of a machine was built anew", about)
	}
	restore(t, s, again, "another")
	again.Release()
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Errorf("%s: %v", about, err)
	}
	if left, err := s.List(t.Context()); err != nil || len(left) != 1 || left[0].Key != kept.Key() || len(left[0].Machines) != 2 {
		t.Errorf("%s: after a second collection: %+v, %v", about, left, err)
	}
	return reached
}

// unsyncedFS is the host's without waiting for the disk.
type unsyncedFS struct{ hostFS }

func (unsyncedFS) Sync(string) error { return nil }

func (unsyncedFS) WriteFile(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }

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
