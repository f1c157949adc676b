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
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
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
		keep   map[string]string
		remove bool
	}{
		{"nobody needs it", i, GCOptions{}, nil, true},
		{"exactly as old as the grace period", i, GCOptions{Grace: time.Hour}, nil, true},
		{"younger", i, GCOptions{Grace: time.Hour + 1}, nil, false},
		{"pinned", pinned, GCOptions{}, nil, false},
		{"pinned since it was chosen", pinned, GCOptions{Only: []string{"d"}}, nil, false},
		{"kept for another", i, GCOptions{}, map[string]string{"d": "of a snapshot"}, false},
		{"kept for another since it was chosen", i, GCOptions{Only: []string{"d"}}, map[string]string{"d": "of a snapshot"}, false},
		{"another is kept", i, GCOptions{}, map[string]string{"e": "of a snapshot"}, true},
		{"chosen", i, GCOptions{Only: []string{"d"}}, nil, true},
		{"not chosen", i, GCOptions{Only: []string{}}, nil, false},
		{"the clock was set back", future, GCOptions{Grace: time.Minute}, nil, false},
	} {
		if got := decide(tt.info, tt.opts, tt.keep, now); got.Remove != tt.remove || got.Reason == "" {
			t.Errorf("%s: %v, %q", tt.name, got.Remove, got.Reason)
		}
	}
}

// TestFaultAtEveryCallOfACollection fails each call of a collection, once, or with the process
// or the host. After a restart no image is half there, the one that is pinned is whole, and
// a second collection removes all that the first left.
func TestFaultAtEveryCallOfACollection(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	var refs []string
	for _, name := range []string{"kept", "a", "b"} {
		refs = append(refs, push(t, r, name, makeImage(t, layer(t, images.File(name, 0o644, name)))))
	}
	options := testOptions(r)
	options.SlotBytes = minSlotBytes
	modes := append([]durabletest.Mode{durabletest.EIO, durabletest.EIORead}, durabletest.Crashes...)
	durabletest.Every(t, modes, 8, func(t *testing.T, disk *durabletest.FS, dir string) {
		s, err := Open(dir, options)
		if err != nil {
			t.Fatal(err)
		}
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
		s.fsys = disk
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, durabletest.ErrCrashed) {
			t.Errorf("the cause is lost: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		disk.Restart(t)

		s, err = Open(dir, options)
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		wantClean(t, dir, len(all))
		again, err := s.Pin(kept.Digest, "pod")
		if err != nil {
			t.Fatalf("the pinned image: %v", err)
		}
		if st, err := os.Stat(again.DiskPath); err != nil || st.Size() != minSlotBytes {
			t.Errorf("the pinned image's disk: %v, %v", st, err)
		}
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
			t.Errorf("a second collection: %v", err)
		}
		wantClean(t, dir, 1)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Between being listed and being removed an image may be used, or come to be needed: then
// it stays.
func TestCollectionLooksAgain(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	now := time.Now()
	opts := testOptions(r)
	opts.Now = func() time.Time { return now }
	s := openStore(t, t.TempDir(), opts)
	ref := push(t, r, "a", makeImage(t, layer(t, images.File("a", 0o644, "a"))))
	use := func() *Image {
		img, err := s.Pull(t.Context(), ref, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		img.Release()
		return img
	}
	img := use()
	boom := errors.New("boom")
	for _, tt := range []struct {
		name      string
		meanwhile func() (map[string]string, error)
		gone      bool
		err       error
	}{
		{"used", func() (map[string]string, error) { use(); return nil, nil }, false, nil},
		{"needed", func() (map[string]string, error) { return map[string]string{img.Digest: "a pod came"}, nil }, false, nil},
		{"not known", func() (map[string]string, error) { return nil, boom }, false, boom},
		{"nothing", func() (map[string]string, error) { return nil, nil }, true, nil},
	} {
		now = now.Add(time.Hour)
		asked := 0
		report, err := s.GC(t.Context(), GCOptions{Grace: time.Minute, Keep: func() (map[string]string, error) {
			if asked++; asked == 1 {
				return nil, nil
			}
			return tt.meanwhile()
		}})
		if !errors.Is(err, tt.err) || asked != 2 || len(report.Decisions) != 1 || report.Decisions[0].Remove != tt.gone || report.Decisions[0].Reason == "" {
			t.Errorf("%s: %+v, %v, asked %d times", tt.name, report, err, asked)
		}
		if _, err := os.Stat(img.DiskPath); (err != nil) != tt.gone {
			t.Errorf("%s: gone %v", tt.name, err != nil)
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
	owner, err := durable.LockFile(filepath.Join(dir, tmpPrefix+"alive", ownerName), durable.LockOptions{Create: true})
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
