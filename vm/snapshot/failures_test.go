// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// TestFailuresOutliveTheProcess: restores that failed in one process count in the next; one
// that went well is forgotten by both; and a set that has had its tries is not used by a
// process that comes before it could be put aside.
func TestFailuresOutliveTheProcess(t *testing.T) {
	boom := errors.New("boom")
	d := snapshottest.New()
	dir := t.TempDir()
	opts := testOptions(d)
	opts.RestoreFailures = 3
	disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{})
	opts.FS = disk
	s := openTest(t, dir, opts)
	reopen := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		disk.Restart(t)
		opts.FS = durable.Host
		s = openTest(t, dir, opts)
	}
	try := func(want error) *Ref {
		t.Helper()
		d.SetFault(nil)
		if want != nil {
			d.SetFault(faultOn("restore", want))
		}
		defer d.SetFault(nil)
		ref, _, err := s.Ensure(t.Context(), testSpec())
		if err != nil {
			t.Fatal(err)
		}
		ref.Release()
		r, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
		if !errors.Is(err, want) {
			t.Fatalf("restore: %v", err)
		}
		if err == nil {
			if err := errors.Join(r.Guest.Close(), r.Machine.Delete(t.Context()), s.Forget("m")); err != nil {
				t.Fatal(err)
			}
		}
		return ref
	}
	first := try(boom).Manifest().Instance
	reopen()
	if try(boom).Manifest().Instance != first || s.failuresOf(first) != 2 {
		t.Errorf("%d failures are known", s.failuresOf(first))
	}
	try(nil)
	reopen()
	if n := s.failuresOf(first); n != 0 {
		t.Errorf("%d failures are known after a restore that went well", n)
	}
	try(boom)
	reopen()
	try(boom)
	// The process dies when it has counted the third, before it can put the set aside.
	disk = durabletest.New(t, durable.Host, dir, durabletest.Fault{})
	s.opts.FS = dyingFS{disk}
	try(boom)
	if !disk.Dead() {
		t.Fatal("it was not to be put aside")
	}
	reopen()
	if again := try(nil).Manifest().Instance; again == first {
		t.Error("it is used again")
	}
	if infos, err := s.List(t.Context()); err != nil || len(infos) != 2 || infos[1].Status != StatusQuarantined || infos[1].Manifest.Instance != first {
		t.Errorf("listed %+v, %v", infos, err)
	}
	reopen() // what is gone is forgotten
	if n := s.failuresOf(first); n != 0 {
		t.Errorf("%d failures are known of what is gone", n)
	}

	// What cannot be read is no reason not to begin.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, failuresName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, opts)
	try(nil)
}

// dyingFS dies with its host when something is about to be put aside.
type dyingFS struct{ *durabletest.FS }

func (f dyingFS) Rename(from, to string) error {
	if strings.Contains(to, quarantineDir) {
		f.Crash(durabletest.CrashLosingAll)
	}
	return f.FS.Rename(from, to)
}
