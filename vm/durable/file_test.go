// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

// TestReplaceAtEveryFault: after a fault at any operation a file has the old content or
// the new, the new one if Replace said so, and nothing else is left once it was swept.
func TestReplaceAtEveryFault(t *testing.T) {
	modes := slices.Concat(durabletest.Failures, durabletest.Crashes)
	durabletest.Every(t, modes, 5, func(t *testing.T, disk *durabletest.FS, dir string) {
		path := filepath.Join(dir, "f")
		must(t, durable.Replace(durable.Host, path, []byte("old"), durable.Unsynced))
		err := durable.Replace(disk, path, []byte("new content"), durable.Synced)
		disk.Restart(t)
		got := read(t, path)
		if got != "new content" && (got != "old" || err == nil) {
			t.Errorf("there is %q after %v", got, err)
		}
		must(t, durable.Sweep(durable.Host, dir))
		only(t, dir, "f")
	})
}

// TestUnsyncedReplace: without syncs the process may die at any operation; only a crash
// of the host may leave something that is neither.
func TestUnsyncedReplace(t *testing.T) {
	durabletest.Every(t, append(durabletest.Failures, durabletest.Crash), 3, func(t *testing.T, disk *durabletest.FS, dir string) {
		path := filepath.Join(dir, "f")
		must(t, durable.Replace(durable.Host, path, []byte("old"), durable.Unsynced))
		err := durable.Replace(disk, path, []byte("new content"), durable.Unsynced)
		if got := read(t, path); got != "new content" && (got != "old" || err == nil) {
			t.Errorf("there is %q after %v", got, err)
		}
		must(t, durable.Sweep(durable.Host, dir))
		only(t, dir, "f")
	})
}

func TestPublishAtEveryFault(t *testing.T) {
	modes := slices.Concat(durabletest.Failures, durabletest.Crashes)
	durabletest.Every(t, modes, 6, func(t *testing.T, disk *durabletest.FS, dir string) {
		path := filepath.Join(dir, "f")
		err := durable.Publish(disk, path, []byte("first"), durable.Synced)
		disk.Restart(t)
		must(t, durable.Sweep(durable.Host, dir))
		if _, serr := os.Lstat(path); serr == nil {
			if got := read(t, path); got != "first" {
				t.Errorf("there is %q", got)
			}
			only(t, dir, "f")
		} else if err == nil {
			t.Error("it was published and is not there")
		} else {
			only(t, dir)
		}
	})
}

// TestPublishOnce: of many one is published, whole.
func TestPublishOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	errs := make(chan error)
	for range 8 {
		go func() { errs <- durable.Publish(durable.Host, path, []byte("content"), durable.Unsynced) }()
	}
	published := 0
	for range 8 {
		if err := <-errs; err == nil {
			published++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
	}
	if published != 1 {
		t.Errorf("%d were published", published)
	}
	only(t, filepath.Dir(path), "f")
}

// TestMakeDirAtEveryFault: once it was made, it stays.
func TestMakeDirAtEveryFault(t *testing.T) {
	durabletest.Every(t, durabletest.Crashes, 6, func(t *testing.T, disk *durabletest.FS, dir string) {
		path := filepath.Join(dir, "a", "b", "c")
		err := durable.MakeDir(disk, path, durable.Synced)
		disk.Restart(t)
		if info, serr := os.Stat(path); err == nil && (serr != nil || !info.IsDir()) {
			t.Errorf("it was made and is not there: %v", serr)
		}
		must(t, durable.MakeDir(durable.Host, path, durable.Synced))
	})
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	is(t, durable.MakeDir(durable.Host, filepath.Join(dir, "f"), durable.Synced), syscall.ENOTDIR)
	is(t, durable.MakeDir(durable.Host, filepath.Join(dir, "f", "g"), durable.Synced), syscall.ENOTDIR)
}

// TestMakeDirOfADeadProcess: a directory that a process has made which died before it could
// make it stay, does when another one makes it.
func TestMakeDirOfADeadProcess(t *testing.T) {
	for name, make := range map[string]func(durable.FS, string) error{
		"MakeDir": func(fsys durable.FS, path string) error { return durable.MakeDir(fsys, path, durable.Synced) },
		"Dirs":    func(fsys durable.FS, path string) error { return (&durable.Dirs{}).Make(fsys, path, durable.Synced) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "a")
		disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{})
		must(t, disk.Mkdir(path))
		must(t, make(disk, path))
		disk.Crash(durabletest.CrashLosingNames)
		disk.Restart(t)
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDirs: what was made to stay costs no sync the next time, unless it was removed.
func TestDirs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{})
	var d durable.Dirs
	must(t, d.Make(disk, path, durable.Unsynced))
	must(t, d.Make(disk, path, durable.Synced))
	must(t, d.Make(disk, path, durable.Synced))
	must(t, os.Remove(path)) // by somebody who does not say so
	must(t, d.Make(disk, path, durable.Synced))
	must(t, os.Remove(path))
	d.Forget(path)
	must(t, d.Make(disk, path, durable.Synced))
	want := []string{"mkdir a", "syncdir .", "syncdir ..", "mkdir a", "syncdir .", "syncdir ..", "mkdir a", "syncdir ."}
	if got := disk.Ops(); !slices.Equal(got, want) {
		t.Errorf("operations %q, want %q", got, want)
	}
}

// TestRemoveAtEveryFault: what was removed stays so, and what was not is whole.
func TestRemoveAtEveryFault(t *testing.T) {
	durabletest.Every(t, slices.Concat(durabletest.Failures, durabletest.Crashes), 2, func(t *testing.T, disk *durabletest.FS, dir string) {
		path := filepath.Join(dir, "f")
		must(t, durable.Replace(durable.Host, path, []byte("old"), durable.Unsynced))
		err := durable.Remove(disk, path, durable.Synced)
		disk.Restart(t)
		if _, serr := os.Lstat(path); serr == nil {
			if got := read(t, path); err == nil || got != "old" {
				t.Errorf("there is %q after %v", got, err)
			}
		}
		must(t, durable.Remove(durable.Host, path, durable.Synced))
		must(t, durable.Remove(durable.Host, path, durable.Synced))
	})
}

// TestReadFileIsBounded: what is in a file's place is read when it is one, and not too
// long; nothing is waited for and nothing followed.
func TestReadFileIsBounded(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "fits"), []byte("12345678"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "long"), []byte("123456789"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "directory"), 0o700))
	must(t, os.Symlink("fits", filepath.Join(dir, "link")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	for name, want := range map[string]error{
		"fits": nil, "long": durable.ErrCorrupt, "directory": durable.ErrCorrupt, "link": durable.ErrCorrupt,
		"pipe": durable.ErrCorrupt, "nothing": fs.ErrNotExist,
	} {
		if data, err := durable.ReadFile(durable.Host, filepath.Join(dir, name), 8); !errors.Is(err, want) || err == nil && len(data) != 8 {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	// A disk that does not answer has not said that there is nothing.
	for n := 1; n <= 3; n++ {
		disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{At: n, Mode: durabletest.EIO, Reads: true})
		_, err := durable.ReadFile(disk, filepath.Join(dir, "fits"), 8)
		if !errors.Is(err, syscall.EIO) || errors.Is(err, durable.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", disk.At(), err)
		}
	}
}

func TestSweepLeavesTheRest(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"f.json", ".hidden", durable.TempPrefix + "f.json-X", durable.TempPrefix + "2"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	must(t, os.Mkdir(filepath.Join(dir, durable.TempPrefix+"dir"), 0o700))
	must(t, durable.Sweep(durable.Host, dir))
	only(t, dir, ".hidden", durable.TempPrefix+"dir", "f.json")
	must(t, durable.Sweep(durable.Host, filepath.Join(dir, "nothing")))
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

// only fails unless a directory has these names and no others.
func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("there are %q, want %q", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}
