// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

var layouts = map[string]durable.Layout{"files": {Suffix: ".json"}, "directories": {File: "note.json"}}

func openStore(fsys durable.FS, dir string, layout durable.Layout, how durable.Durability) *durable.Store[note] {
	return durable.NewStore(durable.StoreOptions[note]{
		FS: fsys, Dir: filepath.Join(dir, "notes"), Layout: layout, Format: notes, How: how,
		ValidID: func(id string) bool { return id != "invalid" }, IDOf: func(n *note) string { return n.ID },
	})
}

// load is the texts of all records by their ids.
func load(t *testing.T, s *durable.Store[note]) (map[string]string, []*durable.Fault) {
	t.Helper()
	records, faults, err := s.Load()
	must(t, err)
	all := map[string]string{}
	for _, r := range records {
		all[r.ID] = r.Text
	}
	return all, faults
}

// TestStoreAtEveryFault: a store is written, replaced and removed from, with a fault at
// every operation. After a restart each id has the last record that was acknowledged or
// the one that was being written, whole, and nothing else is there.
func TestStoreAtEveryFault(t *testing.T) {
	for name, layout := range layouts {
		t.Run(name, func(t *testing.T) {
			modes := []durabletest.Mode{durabletest.EIO, durabletest.Full, durabletest.Crash, durabletest.CrashLosingAll}
			durabletest.Every(t, modes, 12, func(t *testing.T, disk *durabletest.FS, dir string) {
				s := openStore(disk, dir, layout, durable.Synced)
				wrote := s.Write("a", note{ID: "a", Text: "1"})
				_ = s.Write("b", note{ID: "b", Text: "1"})
				replaced := s.Write("a", note{ID: "a", Text: "2"})
				removed := s.Remove("b")
				disk.Restart(t)

				s = openStore(durable.Host, dir, layout, durable.Unsynced)
				all, faults := load(t, s)
				if len(faults) != 0 {
					t.Errorf("faults: %v", faults)
				}
				text, there := all["a"]
				switch {
				case replaced == nil && text != "2",
					wrote == nil && !there,
					there && text != "1" && text != "2":
					t.Errorf("a is %q, %v; after %v, %v", text, there, wrote, replaced)
				}
				if text, there := all["b"]; there && (removed == nil || text != "1") {
					t.Errorf("b is %q after %v", text, removed)
				}
				must(t, errors.Join(s.Remove("a"), s.Remove("b")))
				left, _ := filepath.Glob(filepath.Join(dir, "notes", "*"))
				hidden, _ := filepath.Glob(filepath.Join(dir, "notes", ".*"))
				if len(left)+len(hidden) != 0 {
					t.Errorf("left: %v %v", left, hidden)
				}
			})
		})
	}
}

// TestLoadAtEveryFault: a disk that does not answer hides no record and loses none.
func TestLoadAtEveryFault(t *testing.T) {
	for name, layout := range layouts {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				dir := t.TempDir()
				s := openStore(durable.Host, dir, layout, durable.Unsynced)
				must(t, errors.Join(s.Write("a", note{ID: "a"}), s.Write("b", note{ID: "b"})))
				disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{At: n, Mode: durabletest.EIO, Reads: true})
				s = openStore(disk, dir, layout, durable.Synced)
				records, faults, err := s.Load()
				if !disk.Reached() {
					if n < 8 {
						t.Errorf("only %d operations", n-1)
					}
					return
				}
				if err == nil && len(records)+len(faults) != 2 {
					t.Errorf("%s: %v and %v of 2", disk.At(), records, faults)
				}
				for _, f := range faults {
					if !errors.Is(f, syscall.EIO) || durable.Unusable(f) {
						t.Errorf("%s: %v", disk.At(), f)
					}
					// It is not known what it says, so it is not replaced.
					is(t, s.Write(f.ID, note{ID: f.ID}), syscall.EIO)
				}
				all, faults := load(t, s)
				if len(all) != 2 || len(faults) != 0 {
					t.Errorf("%s: then %v, %v", disk.At(), all, faults)
				}
				must(t, s.Write("a", note{ID: "a", Text: "again"}))
			}
		})
	}
}

// TestUnreadableIsKept: what cannot be read is reported by name, neither replaced nor
// removed, until that is what is meant; then its id is free again.
func TestUnreadableIsKept(t *testing.T) {
	contents := map[string]struct {
		data string
		want error
	}{
		"corrupt":   {`{"kind":"note","ver`, durable.ErrCorrupt},
		"empty":     {``, durable.ErrCorrupt},
		"foreign":   {`{"kind":"note","version":3,"id":"other"}`, durable.ErrCorrupt},
		"of-others": {`#!/bin/sh`, durable.ErrCorrupt},
		"newer":     {`{"kind":"note","version":4}`, durable.ErrNewer},
		"older":     {`{"kind":"note","version":1}`, durable.ErrOlder},
	}
	for name, layout := range layouts {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(durable.Host, dir, layout, durable.Unsynced)
			must(t, s.Write("good", note{ID: "good"}))
			for id, c := range contents {
				must(t, os.MkdirAll(filepath.Dir(s.Path(id)), 0o700))
				must(t, os.WriteFile(s.Path(id), []byte(c.data), 0o600))
			}
			all, faults := load(t, s)
			if len(all) != 1 || len(faults) != len(contents) {
				t.Fatalf("read %v, %v", all, faults)
			}
			for _, f := range faults {
				want := contents[f.ID]
				if !errors.Is(f, want.want) || f.Path != s.Path(f.ID) || !strings.Contains(f.Error(), f.Path) {
					t.Errorf("%v is not %v", f, want.want)
				}
				is(t, s.Write(f.ID, note{ID: f.ID}), want.want)
				is(t, s.Remove(f.ID), want.want)
				if got := read(t, f.Path); got != want.data {
					t.Errorf("%s has become %q", f.Path, got)
				}
			}
			for id := range contents {
				must(t, s.Discard(id))
				must(t, s.Write(id, note{ID: id}))
				must(t, s.Remove(id))
			}
			if all, faults := load(t, s); len(all) != 1 || len(faults) != 0 {
				t.Errorf("then there are %v, %v", all, faults)
			}
			// It goes when that is what is meant, and its id is free then.
			must(t, s.Write("corrupt", note{ID: "corrupt"}))
			must(t, os.WriteFile(s.Path("corrupt"), []byte("x"), 0o600))
			if _, faults := load(t, s); len(faults) != 1 {
				t.Errorf("faults: %v", faults)
			}
			is(t, s.Remove("corrupt"), durable.ErrCorrupt)
			must(t, errors.Join(s.Forget("corrupt"), s.Forget("corrupt")))
			must(t, s.Write("corrupt", note{ID: "corrupt"}))
			must(t, os.WriteFile(s.Path("corrupt"), []byte("x"), 0o600))
			if _, faults := load(t, s); len(faults) != 1 {
				t.Errorf("faults: %v", faults)
			}
			must(t, errors.Join(s.Discard("corrupt"), s.Discard("corrupt")))
			must(t, s.Write("corrupt", note{ID: "corrupt"}))
		})
	}
}

// TestStoreLeavesTheRest: what is none of the store's is neither read nor removed.
func TestStoreLeavesTheRest(t *testing.T) {
	for name, layout := range layouts {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(durable.Host, dir, layout, durable.Unsynced)
			if all, faults := load(t, s); len(all)+len(faults) != 0 {
				t.Errorf("nothing is there, and %v, %v", all, faults)
			}
			must(t, s.Write("a", note{ID: "a"}))
			root := filepath.Join(dir, "notes")
			others := []string{".hidden.json", "README", "invalid.json", "x.json.bak"}
			for _, name := range others {
				must(t, os.WriteFile(filepath.Join(root, name), nil, 0o600))
			}
			must(t, os.Mkdir(filepath.Join(root, ".quarantine"), 0o700))
			must(t, os.Mkdir(filepath.Join(root, "invalid"), 0o700))
			if all, faults := load(t, s); len(all) != 1 || len(faults) != 0 {
				t.Errorf("read %v, %v", all, faults)
			}
			for _, name := range append(others, ".quarantine", "invalid") {
				if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
					t.Error(err)
				}
			}
			for _, id := range []string{"", ".", "..", "a/b", ".hidden", "invalid", "nul\x00"} {
				if s.Write(id, note{ID: id}) == nil || s.Remove(id) == nil {
					t.Errorf("%q was taken for an id", id)
				}
			}
			// A directory that its process did not come to write into, or to remove.
			if layout.File != "" {
				must(t, os.Mkdir(filepath.Join(root, "unborn"), 0o700))
				if all, faults := load(t, s); len(all) != 1 || len(faults) != 0 {
					t.Errorf("read %v, %v", all, faults)
				}
				_, err := os.Lstat(filepath.Join(root, "unborn"))
				is(t, err, fs.ErrNotExist)
			}
		})
	}
}
