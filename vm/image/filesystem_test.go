// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// faultyFS fails its nth operation, and with sticky all that follow, as a full
// or dying disk does.
type faultyFS struct {
	filesystem
	mu     sync.Mutex
	n      int // 1 is the first
	err    error
	sticky bool
	count  int
	failed string // what was failed first
}

func (f *faultyFS) op(name, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if f.n > 0 && (f.count == f.n || f.sticky && f.count > f.n) {
		if f.failed == "" {
			f.failed = name + " " + filepath.Base(path)
		}
		return &fs.PathError{Op: name, Path: path, Err: f.err}
	}
	return nil
}

func (f *faultyFS) MkdirAll(p string) error {
	if err := f.op("mkdirall", p); err != nil {
		return err
	}
	return f.filesystem.MkdirAll(p)
}

func (f *faultyFS) Mkdir(p string) error {
	if err := f.op("mkdir", p); err != nil {
		return err
	}
	return f.filesystem.Mkdir(p)
}

func (f *faultyFS) Create(p string) (file, error) {
	if err := f.op("create", p); err != nil {
		return nil, err
	}
	in, err := f.filesystem.Create(p)
	if err != nil {
		return nil, err
	}
	return &faultyFile{in, f, p}, nil
}

func (f *faultyFS) Open(p string) (io.ReadCloser, error) {
	if err := f.op("open", p); err != nil {
		return nil, err
	}
	in, err := f.filesystem.Open(p)
	if err != nil {
		return nil, err
	}
	return &faultyReader{in, f, p}, nil
}

func (f *faultyFS) ReadFile(p string, limit int64) ([]byte, error) {
	if err := f.op("readfile", p); err != nil {
		return nil, err
	}
	return f.filesystem.ReadFile(p, limit)
}

func (f *faultyFS) ReadDir(p string) ([]fs.DirEntry, error) {
	if err := f.op("readdir", p); err != nil {
		return nil, err
	}
	return f.filesystem.ReadDir(p)
}

func (f *faultyFS) Stat(p string) (fs.FileInfo, error) {
	if err := f.op("stat", p); err != nil {
		return nil, err
	}
	return f.filesystem.Stat(p)
}

func (f *faultyFS) Rename(from, to string) error {
	if err := f.op("rename", from); err != nil {
		return err
	}
	return f.filesystem.Rename(from, to)
}

// RemoveAll removes half before it fails.
func (f *faultyFS) RemoveAll(p string) error {
	if err := f.op("removeall", p); err != nil {
		if in, rerr := os.ReadDir(p); rerr == nil && len(in) > 0 {
			_ = os.RemoveAll(filepath.Join(p, in[0].Name()))
		}
		return err
	}
	return f.filesystem.RemoveAll(p)
}

func (f *faultyFS) SyncDir(p string) error {
	if err := f.op("syncdir", p); err != nil {
		return err
	}
	return f.filesystem.SyncDir(p)
}

type faultyFile struct {
	file
	fs   *faultyFS
	path string
}

// Write writes half before it fails.
func (f *faultyFile) Write(p []byte) (int, error) {
	if err := f.fs.op("write", f.path); err != nil {
		n, _ := f.file.Write(p[:len(p)/2])
		return n, err
	}
	return f.file.Write(p)
}

func (f *faultyFile) Sync() error {
	if err := f.fs.op("sync", f.path); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *faultyFile) Truncate(n int64) error {
	if err := f.fs.op("truncate", f.path); err != nil {
		return err
	}
	return f.file.Truncate(n)
}

func (f *faultyFile) Close() error {
	err := f.fs.op("close", f.path)
	return errors.Join(err, f.file.Close())
}

type faultyReader struct {
	io.ReadCloser
	fs   *faultyFS
	path string
}

func (f *faultyReader) Read(p []byte) (int, error) {
	if err := f.fs.op("read", f.path); err != nil {
		return 0, err
	}
	return f.ReadCloser.Read(p)
}
