// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// errInjected is what a driver fails with.
var errInjected = errors.New("injected")

// anonymous replaces what is random in an operation.
func anonymous(op string) string {
	parts := strings.FieldsFunc(op, func(r rune) bool { return r == ' ' || r == '/' })
	for _, p := range parts {
		switch {
		case strings.HasPrefix(p, buildingPrefix):
			op = strings.ReplaceAll(op, p, buildingPrefix+"R")
		case strings.HasPrefix(p, removingPrefix):
			op = strings.ReplaceAll(op, p, removingPrefix+"R")
		case len(p) >= keyLength:
			op = strings.ReplaceAll(op, p, "KEY")
		}
	}
	return op
}

// TestPublishOrder: what is renamed into place was synced before, manifest last.
func TestPublishOrder(t *testing.T) {
	dir := t.TempDir()
	disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{})
	opts := testOptions(snapshottest.New())
	opts.fs = disk
	s := openTest(t, dir, opts)
	ensure(t, s)
	want := []string{
		"mkdir .building-R",
		"mkdir .building-R/machine",
		"create .building-R/seal.key",
		"write .building-R/seal.key",
		"sync .building-R/seal.key",
		"sync .building-R/machine/device",
		"sync .building-R/machine/memory",
		"sync .building-R/machine/scratch",
		"sync .building-R/seal.key",
		"syncdir .building-R/machine",
		"create .building-R/manifest.json",
		"write .building-R/manifest.json",
		"sync .building-R/manifest.json",
		"syncdir .building-R",
		"rename .building-R KEY",
		"syncdir .",
	}
	var got []string
	for _, op := range disk.Ops() {
		got = append(got, anonymous(op))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operations of a build (-want +got):\n%s", diff)
	}
}

// TestFaultAtEveryCall fails each operation of a build, of a quarantine, of a removal and
// of a restore, once (an error) or for good (the process dies there, or the host with it).
// Afterwards, and after the store was opened again, a key has a whole, verified snapshot
// or none, no machine is left, and a collection removes the rest.
func TestFaultAtEveryCall(t *testing.T) {
	scenarios := map[string]struct {
		least   int
		prepare func(t *testing.T, s *Store)
		run     func(t *testing.T, s *Store) error
	}{
		"build": {16, nil, func(t *testing.T, s *Store) error {
			_, _, err := s.Ensure(t.Context(), testSpec())
			return err
		}},
		"rebuild": {20, prepareSet, func(t *testing.T, s *Store) error {
			if err := s.Quarantine(t.Context(), testKey(t, s), "test"); err != nil {
				return err
			}
			_, _, err := s.Ensure(t.Context(), testSpec())
			return err
		}},
		"remove": {2, prepareSet, func(t *testing.T, s *Store) error {
			_, err := s.Delete(t.Context(), testKey(t, s))
			return err
		}},
		"restore": {12, prepareSet, func(t *testing.T, s *Store) error {
			ref, _, err := s.Ensure(t.Context(), testSpec())
			if err != nil {
				return err
			}
			defer ref.Release()
			r, err := s.Restore(t.Context(), ref, "restored", testConfig(), RestoreOptions{})
			if err != nil {
				return err
			}
			_ = r.Guest.Close()
			if err := r.Machine.Delete(t.Context()); err != nil {
				return err
			}
			return s.Forget("restored")
		}},
	}
	modes := []durabletest.Mode{durabletest.EIO, durabletest.Full, durabletest.Crash, durabletest.CrashLosingAll}
	for name, scenario := range scenarios {
		t.Run(name, func(t *testing.T) {
			durabletest.Every(t, modes, scenario.least, func(t *testing.T, disk *durabletest.FS, dir string) {
				faultOnce(t, disk, dir, scenario.prepare, scenario.run)
			})
		})
	}
}

// prepareSet builds what a scenario begins with.
func prepareSet(t *testing.T, s *Store) {
	t.Helper()
	ref, _ := ensure(t, s)
	ref.Release()
}

func testKey(t *testing.T, s *Store) string {
	t.Helper()
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != 1 {
		t.Fatalf("%v, %v", infos, err)
	}
	return infos[0].Key
}

// faultOnce runs a scenario on a disk that breaks.
func faultOnce(t *testing.T, disk *durabletest.FS, dir string, prepare func(*testing.T, *Store), run func(*testing.T, *Store) error) {
	t.Helper()
	d := snapshottest.New()
	opts := testOptions(d)
	opts.fs = durabletest.New(t, durable.Host, dir, durabletest.Fault{}) // which does not wait for the disk
	s := openTest(t, dir, opts)
	if prepare != nil {
		prepare(t, s)
	}
	s.opts.fs = disk
	err := run(t, s)
	if !disk.Reached() && err != nil {
		t.Fatalf("failed without a fault: %v", err)
	}
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("machines are left: %v", got)
	}
	if disk.Reached() && !disk.Dead() {
		// The process lives: it must know what it did.
		disk.Heal()
		checkStore(t, s)
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
	checkStore(t, s)
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Errorf("collect: %v", err)
	}
	left := visible(t, dir)
	quarantined, err := s.quarantined()
	refs, faults, rerr := readReferences(durable.Host, filepath.Join(dir, refsDir))
	if err != nil || rerr != nil || len(left)+len(quarantined)+len(refs)+len(faults) != 0 {
		t.Errorf("left after collection: %v %v %v %v, %v, %v", left, quarantined, refs, faults, err, rerr)
	}
	temps, err := filepath.Glob(filepath.Join(dir, refsDir, "*", durable.TempPrefix+"*"))
	if err != nil || len(temps) != 0 {
		t.Errorf("half written: %v, %v", temps, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkStore verifies what is published, and that a machine can be had.
func checkStore(t *testing.T, s *Store) {
	t.Helper()
	infos, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if i.Status == StatusQuarantined {
			continue
		}
		if _, err := s.Verify(t.Context(), i.Name); err != nil {
			t.Errorf("published and damaged: %v", err)
		}
	}
	ref, _, err := s.Ensure(t.Context(), testSpec())
	if err != nil {
		t.Fatalf("ensure afterwards: %v", err)
	}
	defer ref.Release()
	r, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
	if err != nil {
		t.Fatalf("restore afterwards: %v", err)
	}
	_ = r.Guest.Close()
	if err := errors.Join(r.Machine.Delete(t.Context()), s.Forget("m")); err != nil {
		t.Fatal(err)
	}
}
