// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durabletest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// history knows how to take back what was not synced. It keeps what was removed and
// replaced, and a second name of each file that was written, in a stash on the same disk.
type history struct {
	inner  durable.FS
	stash  string
	n      int
	names  []change // in the order in which they were made
	inodes []*inode
}

// change is one of the names in a directory, and how it is taken back.
type change struct {
	dir  string
	undo func() error
}

// inode is the content of a file under whatever names it has.
type inode struct {
	inner  durable.FS
	path   string // in the stash
	info   fs.FileInfo
	stable []byte // as it was synced
}

func (h *history) spare() string {
	h.n++
	return filepath.Join(h.stash, fmt.Sprint(h.n))
}

func (h *history) note(path string, undo func() error) {
	h.names = append(h.names, change{dir: filepath.Dir(path), undo: undo})
}

// created notes a name that was not there before.
func (h *history) created(path string) error {
	h.note(path, func() error { return h.inner.RemoveAll(path) })
	return nil
}

// hide moves what is at path out of sight and returns where it is; empty when nothing
// was there.
func (h *history) hide(path string) (string, error) {
	spare := h.spare()
	if err := h.inner.Rename(path, spare); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return "", err
	}
	return spare, nil
}

func (h *history) remove(path string) error {
	spare, err := h.hide(path)
	if err != nil || spare == "" {
		return err
	}
	h.note(path, func() error { return h.inner.Rename(spare, path) })
	return nil
}

func (h *history) rename(from, to string) error {
	replaced := ""
	if info, err := h.inner.Lstat(to); err == nil && info.Mode().IsRegular() {
		replaced = h.spare()
		if err := h.inner.Link(to, replaced); err != nil {
			return err
		}
	}
	if err := h.inner.Rename(from, to); err != nil {
		return err
	}
	h.note(to, func() error {
		if err := h.inner.Rename(to, from); err != nil || replaced == "" {
			return err
		}
		return h.inner.Rename(replaced, to)
	})
	return nil
}

// syncDir makes the names in a directory stay.
func (h *history) syncDir(dir string) {
	h.names = slices.DeleteFunc(h.names, func(c change) bool { return c.dir == filepath.Clean(dir) })
}

// content begins to watch the content of a file that is there.
func (h *history) content(path string) error {
	_, err := h.inode(path)
	return err
}

// inode is what is known of the file at path. A file that was not written before is
// stable as it is.
func (h *history) inode(path string) (*inode, error) {
	info, err := h.inner.Lstat(path)
	if err != nil {
		return nil, err
	}
	for _, i := range h.inodes {
		if os.SameFile(i.info, info) {
			return i, nil
		}
	}
	i := &inode{inner: h.inner, path: h.spare(), info: info}
	if err := h.inner.Link(path, i.path); err != nil {
		return nil, err
	}
	h.inodes = append(h.inodes, i)
	err = i.synced()
	return i, err
}

// synced makes the content of the file at path stay, if anybody wrote it.
func (h *history) synced(path string) error {
	info, err := h.inner.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // it has no name any more
	}
	for _, i := range h.inodes {
		if os.SameFile(i.info, info) {
			return i.synced()
		}
	}
	return nil
}

func (i *inode) synced() (err error) {
	i.stable, err = durable.ReadFile(i.inner, i.path, 1<<30)
	return err
}

// lose takes back what a crash in this mode loses.
func (h *history) lose(m Mode) error {
	if m.losesData() {
		for _, i := range h.inodes {
			if err := i.restore(); err != nil {
				return err
			}
		}
	}
	if m.losesNames() {
		for _, c := range slices.Backward(h.names) {
			// What an earlier undoing took away with its directory is gone already.
			if err := c.undo(); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	h.names, h.inodes = nil, nil
	return nil
}

func (i *inode) restore() error {
	f, err := i.inner.OpenFile(i.path, os.O_WRONLY|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.Write(i.stable)
	return errors.Join(err, f.Close())
}
