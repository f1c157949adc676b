// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// fileSystem is every change that this package makes to the disk, so that a test
// can end the process at each of them.
type fileSystem interface {
	MkdirAll(dir string) error
	// OpenAppend opens for appending and makes the file if needed.
	OpenAppend(path string) (appendFile, error)
	Rename(from, to string) error
	// Remove removes a file; one that is not there is fine.
	Remove(path string) error
	SyncDir(dir string) error
}

type appendFile interface {
	io.WriteCloser
	Truncate(size int64) error
	Sync() error
}

// hostFS is the real thing.
type hostFS struct{}

func (hostFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (hostFS) OpenAppend(path string) (appendFile, error) {
	return os.OpenFile(filepath.Clean(path), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

func (hostFS) Rename(from, to string) error { return os.Rename(from, to) }

func (hostFS) Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (hostFS) SyncDir(dir string) error {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
