// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package garbage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// TestCrashAtEveryCallOfACollection: the collector dies at any call to the disk, or the host
// does, or one call fails. What is needed is there afterwards, in whole sets, whatever the
// disk lost; and the next collection leaves nothing else.
func TestCrashAtEveryCallOfACollection(t *testing.T) {
	// A node's files: of each kind something that is needed, and something that is not.
	w := newWorld(t, 1)
	pull := func(n int) *image.Image {
		img, err := w.images.Pull(t.Context(), w.refs[n], image.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		img.Release()
		return img
	}
	hex := func(i *image.Image) string { return strings.TrimPrefix(i.Digest, "sha256:") }
	named, template, needed := pull(0), pull(1), pull(2)
	var keys []string
	for n, img := range []*image.Image{template, needed} {
		ref, _, err := w.snapshots.Ensure(t.Context(), w.spec(n, img))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, ref.Key())
		if n == 1 {
			cfg := vm.Config{Shape: ref.Manifest().Shape, Kit: w.spec(0, nil).Kit, Images: []string{needed.DiskPath}}
			r, err := w.snapshots.Restore(t.Context(), ref, "m-1", cfg, snapshot.RestoreOptions{})
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Guest.Close()
		}
		ref.Release()
	}
	w.write(filepath.Join(podsDir, "uid", podRecord), fmt.Sprintf(`{"machine":"m-1","digest":%q}`, named.Digest))
	w.write(filepath.Join(podsDir, "rest", "logs", "0.log"), "x")
	w.write(filepath.Join(machinesDir, "m-1", "console"), "x")
	w.write(filepath.Join(machinesDir, "m-2", "console"), "x")
	w.write(filepath.Join(machinesDir, "m-2", "scratch"), "x")
	w.write(filepath.Join(warmDir, "m-1.json"), `{}`)
	w.write(filepath.Join(warmDir, "gone.json"), `{}`)
	w.write(filepath.Join(warmDir, durable.TempPrefix+"x"), `{`)
	w.write(filepath.Join("snapshots", ".removing-x", "file"), "x")
	w.write(filepath.Join("images", ".trash-x", "file"), "x")
	if err := errors.Join(w.snapshots.Close(), w.images.Close()); err != nil {
		t.Fatal(err)
	}
	whole := map[string]int64{} // what has to be there, in full
	for _, root := range []string{"pods/uid", "machines/m-1", "warm/m-1.json", "snapshots/" + keys[1], "images/" + hex(named), "images/" + hex(needed)} {
		for path, size := range files(t, w.state) {
			if path == root || strings.HasPrefix(path, root+"/") {
				whole[path] = size
			}
		}
	}
	if len(whole) < 12 {
		t.Fatalf("only %v is needed", whole)
	}
	later := time.Now().Add(48 * time.Hour)

	collect := func(dir string, fsys durable.FS) (report Report, err error) {
		clock := func() time.Time { return later }
		c := Config{StateDir: dir, Now: clock, FS: fsys}
		if c.Snapshots, err = snapshot.Open(t.Context(), filepath.Join(dir, "snapshots"), snapshot.Options{
			Now: clock, FS: fsys, Machines: func(context.Context) ([]string, error) { return []string{"m-1"}, nil },
		}); err != nil {
			return report, err
		}
		defer func() { err = errors.Join(err, c.Snapshots.Close()) }()
		if c.Images, err = image.OpenForCollection(filepath.Join(dir, "images"), image.Options{Now: clock, FS: fsys}); err != nil {
			return report, err
		}
		defer func() { err = errors.Join(err, c.Images.Close()) }()
		return New(c).Collect(t.Context(), Options{})
	}
	// A collection writes nothing, so that there is no content to be lost.
	modes := []durabletest.Mode{durabletest.EIORead, durabletest.Crash, durabletest.CrashLosingNames}
	durabletest.Every(t, modes, 15, func(t *testing.T, disk *durabletest.FS, dir string) {
		link(t, w.state, dir)
		report, err := collect(dir, disk)
		if err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, durabletest.ErrCrashed) {
			t.Errorf("the cause is lost: %v", err)
		}
		disk.Restart(t)
		check := func(when string) map[string]int64 {
			t.Helper()
			got := files(t, dir)
			for path, size := range whole {
				if n, there := got[path]; !there || n != size {
					t.Errorf("%s: %s is there %v with %d bytes, want %d; the report was %+v, %v", when, path, there, n, size, report, err)
				}
			}
			return got
		}
		check("after the fault")
		if _, err := collect(dir, unsynced{durable.Host}); err != nil {
			t.Errorf("the next collection: %v", err)
		}
		var left []string
		for path := range check("after the next collection") {
			if _, needed := whole[path]; !needed && filepath.Base(path) != ".lock" && !strings.HasPrefix(path, "snapshots/.refs/"+keys[1]) && !strings.HasPrefix(path, "images/refs/") {
				left = append(left, path)
			}
		}
		slices.Sort(left)
		if diff := cmp.Diff([]string(nil), left); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
	})
}

// link makes a copy of a tree whose files do not change, but for locks.
func link(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		there := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(there, 0o700)
		case d.Name() == ".lock":
			return nil
		}
		return os.Link(path, there)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// files are all files below a directory, and their sizes.
func files(t *testing.T, root string) map[string]int64 {
	t.Helper()
	found := map[string]int64{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			found[strings.TrimPrefix(path, root+"/")] = info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// unsynced does not wait for the disk.
type unsynced struct{ durable.FS }

func (unsynced) SyncDir(string) error { return nil }
