// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/test/images"
)

func TestDecide(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	i := Info{Digest: "d", LastUsed: now.Add(-time.Hour)}
	pinned := i
	pinned.Pinned = true
	future := i
	future.LastUsed = now.Add(time.Hour)
	for _, tt := range []struct {
		name   string
		info   Info
		opts   GCOptions
		remove bool
	}{
		{"nobody needs it", i, GCOptions{}, true},
		{"exactly as old as the grace period", i, GCOptions{Grace: time.Hour}, true},
		{"younger", i, GCOptions{Grace: time.Hour + 1}, false},
		{"pinned", pinned, GCOptions{}, false},
		{"pinned since it was chosen", pinned, GCOptions{Only: []string{"d"}}, false},
		{"kept for another", i, GCOptions{Keep: map[string]string{"d": "of a snapshot"}}, false},
		{"kept for another since it was chosen", i, GCOptions{Only: []string{"d"}, Keep: map[string]string{"d": "of a snapshot"}}, false},
		{"another is kept", i, GCOptions{Keep: map[string]string{"e": "of a snapshot"}}, true},
		{"chosen", i, GCOptions{Only: []string{"d"}}, true},
		{"not chosen", i, GCOptions{Only: []string{}}, false},
		{"the clock was set back", future, GCOptions{Grace: time.Minute}, false},
	} {
		if got := decide(tt.info, tt.opts, now); got.Remove != tt.remove || got.Reason == "" {
			t.Errorf("%s: %v, %q", tt.name, got.Remove, got.Reason)
		}
	}
}

// TestFaultAtEveryCallOfACollection fails each call of a collection, once or from then on.
// After a restart no image is half there, the one that is pinned is whole, and a second
// collection removes all that the first left.
func TestFaultAtEveryCallOfACollection(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	var refs []string
	for _, name := range []string{"kept", "a", "b"} {
		refs = append(refs, push(t, r, name, makeImage(t, layer(t, images.File(name, 0o644, name)))))
	}
	for _, sticky := range []bool{false, true} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			fsys := &faultyFS{filesystem: unsyncedFS{}, err: syscall.EIO, sticky: sticky}
			opts := testOptions(r)
			opts.fsys = fsys
			s := openStore(t, dir, opts)
			var kept *Image
			for _, ref := range refs {
				img, err := s.Pull(t.Context(), ref, PullOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if kept == nil {
					kept = img
				} else {
					img.Release()
				}
			}
			if err := os.Mkdir(filepath.Join(dir, trashPrefix+"left"), 0o700); err != nil {
				t.Fatal(err)
			}
			fsys.mu.Lock()
			before := fsys.count
			fsys.n = before + n
			fsys.mu.Unlock()
			_, gcErr := s.GC(t.Context(), GCOptions{})
			reached := fsys.count >= before+n
			if gcErr != nil && !errors.Is(gcErr, syscall.EIO) {
				t.Errorf("%s (%d, sticky %v): the cause is lost: %v", fsys.failed, n, sticky, gcErr)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			s = openStore(t, dir, testOptions(r))
			again, err := s.Pin(kept.Digest, "pod")
			if err != nil {
				t.Fatalf("%s (%d, sticky %v): the pinned image: %v", fsys.failed, n, sticky, err)
			}
			if st, err := os.Stat(again.DiskPath); err != nil || st.Size() != testSlot {
				t.Errorf("%s (%d, sticky %v): the pinned image's disk: %v, %v", fsys.failed, n, sticky, st, err)
			}
			if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
				t.Errorf("%s (%d, sticky %v): a second collection: %v", fsys.failed, n, sticky, err)
			}
			wantClean(t, dir, 1)
			if t.Failed() {
				return
			}
			if !reached {
				if n < 10 {
					t.Errorf("only %d calls were made to fail", n-1)
				}
				break
			}
		}
	}
}

// What a pull or removal that failed has left goes with a collection; a pull under way is
// none of it.
func TestCollectionOfLeftovers(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, testOptions(nil))
	for _, name := range []string{trashPrefix + "a", tmpPrefix + "dead", tmpPrefix + "alive"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "file"), make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	owner, err := lockFile(filepath.Join(dir, tmpPrefix+"alive", ownerName), true, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, dryRun := range []bool{true, false} {
		report, err := s.GC(t.Context(), GCOptions{DryRun: dryRun})
		if err != nil || len(report.Leftovers) != 2 || report.RemovedBytes < 128<<10 {
			t.Errorf("dry run %v: %+v, %v", dryRun, report, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 { // the lock, the references, the pull
		t.Errorf("left: %v, %v", left, err)
	}
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
}

// A store that is opened to collect takes images of every kind for what they are, and
// leaves alone what another process uses.
func TestOpenForCollection(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	dir := filepath.Join(t.TempDir(), "images")
	open := func() *Store {
		s, err := OpenForCollection(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	if report, err := open().GC(t.Context(), GCOptions{}); err != nil || len(report.Decisions) != 0 {
		t.Errorf("of nothing: %+v, %v", report, err)
	}
	node := openStore(t, dir, testOptions(r))
	used, err := node.Pull(t.Context(), push(t, r, "used", makeImage(t, layer(t, images.File("a", 0o644, "a")))), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	idle, err := node.Pull(t.Context(), push(t, r, "idle", makeImage(t, layer(t, images.File("b", 0o644, "b")))), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	idle.Release()
	s := open()
	if list, err := s.List(); err != nil || len(list) != 2 || len(list[0].Refs) != 1 {
		t.Errorf("listed %+v, %v", list, err)
	}
	if _, err := s.Pull(t.Context(), used.Ref, PullOptions{}); !errors.Is(err, ErrInvalidOptions) {
		t.Errorf("pulled: %v", err)
	}
	report, err := s.GC(t.Context(), GCOptions{})
	if err != nil || report.RemovedBytes != idle.SizeBytes {
		t.Errorf("collected %+v, %v", report, err)
	}
	if _, err := os.Stat(used.DiskPath); err != nil {
		t.Errorf("the image of a running node: %v", err)
	}
}
