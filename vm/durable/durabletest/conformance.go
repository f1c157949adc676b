// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durabletest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Conformance checks what every durable.FS does, in a directory of its own for each case.
func Conformance(t *testing.T, open func(t *testing.T) (durable.FS, string)) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, durable.FS, string){
		"a new file is the owner's alone":         newFile,
		"exclusive creation":                      exclusive,
		"what is not there":                       missing,
		"append and truncate":                     appendAndTruncate,
		"rename replaces a file":                  renameReplaces,
		"rename keeps a directory with content":   renameKeeps,
		"link takes no name":                      linkTakesNoName,
		"remove is idempotent and takes trees":    removes,
		"list is sorted and does not follow":      lists,
		"what is open goes on without its name":   unlinked,
		"a directory can be synced, and a file":   syncs,
		"a file read by a link is told by a stat": links,
	} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := open(t)
			test(t, fsys, dir)
		})
	}
}

func newFile(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "d")
	must(t, fsys.Mkdir(path))
	if info, err := fsys.Lstat(path); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("a new directory: %v, %v", info, err)
	}
	is(t, fsys.Mkdir(path), fs.ErrExist)
	path = filepath.Join(path, "f")
	write(t, fsys, path, os.O_CREATE|os.O_WRONLY, "abc")
	if info, err := fsys.Lstat(path); err != nil || info.Mode() != 0o600 || info.Size() != 3 {
		t.Errorf("a new file: %v, %v", info, err)
	}
	content(t, fsys, path, "abc")
}

func exclusive(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "f")
	write(t, fsys, path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, "abc")
	_, err := fsys.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY)
	is(t, err, fs.ErrExist)
	content(t, fsys, path, "abc")
}

func missing(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "f")
	_, err := fsys.OpenFile(path, os.O_RDONLY)
	is(t, err, fs.ErrNotExist)
	_, err = fsys.OpenFile(filepath.Join(path, "g"), os.O_CREATE|os.O_WRONLY)
	is(t, err, fs.ErrNotExist)
	_, err = fsys.Lstat(path)
	is(t, err, fs.ErrNotExist)
	_, err = fsys.ReadDir(path)
	is(t, err, fs.ErrNotExist)
	is(t, fsys.Mkdir(filepath.Join(path, "g")), fs.ErrNotExist)
	is(t, fsys.Rename(path, path+"2"), fs.ErrNotExist)
	is(t, fsys.Link(path, path+"2"), fs.ErrNotExist)
	is(t, fsys.SyncDir(path), fs.ErrNotExist)
}

func appendAndTruncate(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "f")
	write(t, fsys, path, os.O_CREATE|os.O_WRONLY, "abc")
	write(t, fsys, path, os.O_APPEND|os.O_WRONLY, "def")
	content(t, fsys, path, "abcdef")
	f, err := fsys.OpenFile(path, os.O_RDWR)
	must(t, err)
	must(t, f.Truncate(4))
	if n, err := f.Seek(0, io.SeekEnd); err != nil || n != 4 {
		t.Errorf("the end is at %d, %v", n, err)
	}
	must(t, errors.Join(f.Sync(), f.Close()))
	content(t, fsys, path, "abcd")
	write(t, fsys, path, os.O_TRUNC|os.O_WRONLY, "z")
	content(t, fsys, path, "z")
}

func renameReplaces(t *testing.T, fsys durable.FS, dir string) {
	from, to := filepath.Join(dir, "f"), filepath.Join(dir, "g")
	write(t, fsys, from, os.O_CREATE|os.O_WRONLY, "new")
	write(t, fsys, to, os.O_CREATE|os.O_WRONLY, "old")
	must(t, fsys.Rename(from, to))
	content(t, fsys, to, "new")
	_, err := fsys.Lstat(from)
	is(t, err, fs.ErrNotExist)
}

func renameKeeps(t *testing.T, fsys durable.FS, dir string) {
	from, to := filepath.Join(dir, "f"), filepath.Join(dir, "g")
	must(t, errors.Join(fsys.Mkdir(from), fsys.Mkdir(to)))
	write(t, fsys, filepath.Join(to, "x"), os.O_CREATE|os.O_WRONLY, "old")
	if err := fsys.Rename(from, to); err == nil {
		t.Error("a directory with content was replaced")
	}
	content(t, fsys, filepath.Join(to, "x"), "old")
}

func linkTakesNoName(t *testing.T, fsys durable.FS, dir string) {
	from, to := filepath.Join(dir, "f"), filepath.Join(dir, "g")
	write(t, fsys, from, os.O_CREATE|os.O_WRONLY, "one")
	must(t, fsys.Link(from, to))
	must(t, fsys.RemoveAll(from))
	content(t, fsys, to, "one")
	write(t, fsys, from, os.O_CREATE|os.O_WRONLY, "two")
	is(t, fsys.Link(from, to), fs.ErrExist)
	content(t, fsys, to, "one")
}

func removes(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "d")
	must(t, fsys.RemoveAll(path))
	must(t, errors.Join(fsys.Mkdir(path), fsys.Mkdir(filepath.Join(path, "e"))))
	write(t, fsys, filepath.Join(path, "e", "f"), os.O_CREATE|os.O_WRONLY, "x")
	must(t, fsys.RemoveAll(path))
	_, err := fsys.Lstat(path)
	is(t, err, fs.ErrNotExist)
	write(t, fsys, path, os.O_CREATE|os.O_WRONLY, "x")
	must(t, fsys.RemoveAll(path))
	must(t, fsys.RemoveAll(path))
}

func lists(t *testing.T, fsys durable.FS, dir string) {
	for _, name := range []string{"c", "a", "b"} {
		write(t, fsys, filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY, name)
	}
	must(t, os.Symlink(dir, filepath.Join(dir, "d")))
	entries, err := fsys.ReadDir(dir)
	must(t, err)
	names := ""
	for _, e := range entries {
		names += e.Name()
		if e.Type().IsRegular() != (e.Name() != "d") || e.IsDir() {
			t.Errorf("%s is %v", e.Name(), e.Type())
		}
	}
	if names != "abcd" {
		t.Errorf("names are %q", names)
	}
}

func unlinked(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "f")
	f, err := fsys.OpenFile(path, os.O_CREATE|os.O_RDWR)
	must(t, err)
	must(t, fsys.RemoveAll(path))
	_, err = f.Write([]byte("abc"))
	must(t, errors.Join(err, f.Sync(), f.Close()))
	_, err = fsys.Lstat(path)
	is(t, err, fs.ErrNotExist)
}

func syncs(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "f")
	write(t, fsys, path, os.O_CREATE|os.O_WRONLY, "abc")
	must(t, durable.Sync(fsys, path))
	must(t, fsys.SyncDir(dir))
	content(t, fsys, path, "abc")
}

func links(t *testing.T, fsys durable.FS, dir string) {
	path := filepath.Join(dir, "f")
	write(t, fsys, path, os.O_CREATE|os.O_WRONLY, "abc")
	must(t, os.Symlink(path, filepath.Join(dir, "l")))
	info, err := fsys.Lstat(filepath.Join(dir, "l"))
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("a link is %v, %v", info, err)
	}
}

func write(t *testing.T, fsys durable.FS, path string, flag int, data string) {
	t.Helper()
	f, err := fsys.OpenFile(path, flag)
	must(t, err)
	_, err = f.Write([]byte(data))
	must(t, errors.Join(err, f.Close()))
}

func content(t *testing.T, fsys durable.FS, path, want string) {
	t.Helper()
	got, err := durable.ReadFile(fsys, path, 1<<20)
	if err != nil || string(got) != want {
		t.Errorf("%s has %q, want %q: %v", path, got, want, err)
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
