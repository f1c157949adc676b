// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// faultFS counts the calls that change the store and lets one of them fail.
type faultFS struct {
	fileSystem
	root string

	mu    sync.Mutex
	calls []string
	at    int  // 1-based; 0 is never
	crash bool // every call after it fails as well: the process is dead
	torn  bool // a write that fails has written half
}

var errInjected = errors.New("injected")

// next counts a call and tells whether it fails.
func (f *faultFS) next(op string, paths ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range paths {
		rel, err := filepath.Rel(f.root, p)
		if err != nil {
			return err
		}
		op += " " + anonymous(rel)
	}
	f.calls = append(f.calls, op)
	if n := len(f.calls); f.at != 0 && (n == f.at || n > f.at && f.crash) {
		return fmt.Errorf("call %d, %s: %w", n, op, errInjected)
	}
	return nil
}

// anonymous replaces what is random in a path.
func anonymous(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		switch {
		case strings.HasPrefix(p, buildingPrefix):
			parts[i] = buildingPrefix + "R"
		case strings.HasPrefix(p, removingPrefix):
			parts[i] = removingPrefix + "R"
		case len(p) >= keyLength:
			parts[i] = "KEY"
		}
	}
	return strings.Join(parts, "/")
}

func (f *faultFS) Mkdir(path string) error {
	if err := f.next("mkdir", path); err != nil {
		return err
	}
	return f.fileSystem.Mkdir(path)
}

func (f *faultFS) WriteFile(path string, data []byte) error {
	if err := f.next("write", path); err != nil {
		if f.torn {
			_ = os.WriteFile(path, data[:len(data)/2], 0o600)
		}
		return err
	}
	return f.fileSystem.WriteFile(path, data)
}

func (f *faultFS) Sync(path string) error {
	if err := f.next("sync", path); err != nil {
		return err
	}
	return f.fileSystem.Sync(path)
}

func (f *faultFS) Rename(from, to string) error {
	if err := f.next("rename", from, to); err != nil {
		return err
	}
	return f.fileSystem.Rename(from, to)
}

func (f *faultFS) RemoveAll(path string) error {
	if err := f.next("remove", path); err != nil {
		return err
	}
	return f.fileSystem.RemoveAll(path)
}

// TestPublishOrder: what is renamed into place was synced before, manifest last.
func TestPublishOrder(t *testing.T) {
	dir := t.TempDir()
	fs := &faultFS{fileSystem: hostFS{}, root: dir}
	opts := testOptions(snapshottest.New())
	opts.fs = fs
	s := openTest(t, dir, opts)
	ensure(t, s)
	want := []string{
		"mkdir .building-R",
		"mkdir .building-R/machine",
		"write .building-R/seal.key",
		"sync .building-R/machine/device",
		"sync .building-R/machine/memory",
		"sync .building-R/machine/scratch",
		"sync .building-R/seal.key",
		"sync .building-R/machine",
		"write .building-R/manifest.json",
		"sync .building-R",
		"rename .building-R KEY",
		"sync .",
	}
	if diff := cmp.Diff(want, fs.calls); diff != "" {
		t.Errorf("calls of a build (-want +got):\n%s", diff)
	}
}

// TestFaultAtEveryCall fails each call of a build, of a quarantine and of a removal,
// once (an error) or for good (the process dies there). Afterwards, and after the
// store was opened again, a key has a whole, verified snapshot or none, no machine
// is left, and a collection removes the rest.
func TestFaultAtEveryCall(t *testing.T) {
	scenarios := map[string]func(t *testing.T, s *Store) error{
		"build": func(t *testing.T, s *Store) error {
			_, _, err := s.Ensure(t.Context(), testSpec())
			return err
		},
		"rebuild": func(t *testing.T, s *Store) error {
			ref, _, err := s.Ensure(t.Context(), testSpec())
			if err != nil {
				return err
			}
			ref.Release()
			if err := s.Quarantine(t.Context(), ref.Key(), "test"); err != nil {
				return err
			}
			_, _, err = s.Ensure(t.Context(), testSpec())
			return err
		},
		"remove": func(t *testing.T, s *Store) error {
			ref, _, err := s.Ensure(t.Context(), testSpec())
			if err != nil {
				return err
			}
			ref.Release()
			_, err = s.Delete(t.Context(), ref.Key())
			return err
		},
	}
	for name, run := range scenarios {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/crash=%v", name, crash), func(t *testing.T) {
				for n := 1; ; n++ {
					fs := &faultFS{fileSystem: hostFS{}, at: n, crash: crash, torn: crash}
					if !faultOnce(t, n, fs, run) {
						if n < 10 {
							t.Errorf("only %d calls were made to fail", n-1)
						}
						return
					}
				}
			})
		}
	}
}

// faultOnce runs a scenario with one fault; false when there was no such call.
func faultOnce(t *testing.T, n int, fs *faultFS, run func(*testing.T, *Store) error) bool {
	t.Helper()
	d := snapshottest.New()
	dir := t.TempDir()
	fs.root = dir
	opts := testOptions(d)
	opts.fs = fs
	s := openTest(t, dir, opts)
	err := run(t, s)
	reached := len(fs.calls) >= n
	if !reached && err != nil {
		t.Fatalf("call %d: failed without a fault: %v", n, err)
	}
	if got := d.Machines(); len(got) != 0 {
		t.Errorf("call %d: machines are left: %v", n, got)
	}
	if !fs.crash && reached {
		// The process lives: it must know what it did.
		fs.at = 0
		checkStore(t, n, s)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, testOptions(d))
	for _, name := range visible(t, dir) {
		if !isHex(name, keyLength) {
			t.Errorf("call %d: %s is left after reopen", n, name)
		}
	}
	checkStore(t, n, s)
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Errorf("call %d: collect: %v", n, err)
	}
	left := visible(t, dir)
	quarantined, err := s.quarantined()
	if err != nil || len(left)+len(quarantined) != 0 {
		t.Errorf("call %d: left after collection: %v %v, %v", n, left, quarantined, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return reached
}

// checkStore verifies what is published, and that a machine can be had.
func checkStore(t *testing.T, n int, s *Store) {
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
			t.Errorf("call %d: published and damaged: %v", n, err)
		}
	}
	ref, _, err := s.Ensure(t.Context(), testSpec())
	if err != nil {
		t.Fatalf("call %d: ensure afterwards: %v", n, err)
	}
	defer ref.Release()
	r, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
	if err != nil {
		t.Fatalf("call %d: restore afterwards: %v", n, err)
	}
	_ = r.Guest.Close()
	if err := errors.Join(r.Machine.Delete(t.Context()), s.Forget("m")); err != nil {
		t.Fatal(err)
	}
}
