// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Durability is what a change has to survive.
type Durability int

const (
	// Synced survives a crash of the host.
	Synced Durability = iota
	// Unsynced survives the end of the process, however it ends, and is whole or not
	// there after a crash of the host only if the file system says so: a reader has to
	// take a damaged record for one that was never written.
	Unsynced
)

// TempPrefix begins the names of files that are being written. Whoever lists a directory
// skips them, and Sweep removes them.
const TempPrefix = ".tmp-"

func tempOf(path string) string {
	return filepath.Join(filepath.Dir(path), TempPrefix+filepath.Base(path)+"-"+rand.Text())
}

// Replace puts data in the place of a file in one step: whoever reads it, also after a
// crash, has the old content or the new. After an error it is one of the two.
func Replace(fsys FS, path string, data []byte, how Durability) error {
	return put(fsys, path, data, how, fsys.Rename)
}

// Publish makes a file in one step unless it is there: of several that try, one does. The
// others get fs.ErrExist, and what they meant to write is nowhere.
func Publish(fsys FS, path string, data []byte, how Durability) error {
	return put(fsys, path, data, how, func(temp, path string) error {
		if err := fsys.Link(temp, path); err != nil {
			return err
		}
		// Its content has its name. A temporary name that stays is swept.
		_ = fsys.RemoveAll(temp)
		return nil
	})
}

func put(fsys FS, path string, data []byte, how Durability, name func(temp, path string) error) error {
	temp := tempOf(path)
	if err := WriteNew(fsys, temp, data, how); err != nil {
		return err
	}
	if err := name(temp, path); err != nil {
		// The name under which nobody looks for it is swept if this fails too.
		_ = fsys.RemoveAll(temp)
		return err
	}
	if how == Synced {
		return fsys.SyncDir(filepath.Dir(path))
	}
	return nil
}

// WriteNew makes a file that must not be there, in more than one step: it is for a place
// where nobody looks yet. The directory is not synced. After an error there is no file,
// unless the disk does not let go of it.
func WriteNew(fsys FS, path string, data []byte, how Durability) error {
	f, err := fsys.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY)
	if err != nil {
		return err
	}
	n, err := f.Write(data)
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if err == nil && how == Synced {
		// A failed sync is not tried again: the kernel may have dropped the pages, and say
		// so once only.
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = fsys.RemoveAll(path)
		return err
	}
	return nil
}

// ReadFile reads a regular file of at most limit bytes. What is longer, or is no regular
// file, is ErrCorrupt.
func ReadFile(fsys FS, path string, limit int64) (data []byte, err error) {
	info, err := fsys.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: %w: it is no regular file", path, ErrCorrupt)
	}
	// If it is exchanged meanwhile, neither a link is followed nor a pipe waited for.
	f, err := fsys.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: %w: it has more than %d bytes", path, ErrCorrupt, limit)
	}
	return data, nil
}

// Remove removes a file or a directory with all that is in it. Nil when it is not there.
func Remove(fsys FS, path string, how Durability) error {
	if err := fsys.RemoveAll(path); err != nil {
		return err
	}
	if how != Synced {
		return nil
	}
	if err := fsys.SyncDir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// MakeDir makes a directory and those above it that are missing. One that is there is made
// to stay: whoever made it may have died before that.
func MakeDir(fsys FS, path string, how Durability) error {
	parent := filepath.Dir(path)
	switch info, err := fsys.Lstat(path); {
	case err == nil && (info.IsDir() || info.Mode()&fs.ModeSymlink != 0): // a root may be a link: the user's doing
		if how != Synced || parent == path {
			return nil
		}
		// Who may not read the directory above has not made this one.
		if err := fsys.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if parent != path {
		if err := MakeDir(fsys, parent, how); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if how == Synced {
		return fsys.SyncDir(parent)
	}
	return nil
}

// Dirs makes directories, and remembers which it has made to stay: that costs a sync, which
// whoever writes into one all the time need not pay for each time. The zero value is ready.
// Safe for concurrent use.
type Dirs struct {
	mu   sync.Mutex
	made map[string]bool // guarded by mu
}

// Make is MakeDir.
func (d *Dirs) Make(fsys FS, path string, how Durability) error {
	d.mu.Lock()
	made := d.made[path]
	d.mu.Unlock()
	if made {
		if _, err := fsys.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := MakeDir(fsys, path, how); err != nil || how != Synced {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made == nil {
		d.made = map[string]bool{}
	}
	d.made[path] = true
	return nil
}

// Forget is for a directory that was removed: another one of its name is not made yet.
func (d *Dirs) Forget(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.made, path)
}

// Sweep removes the files in a directory that a process which died was writing. Nobody
// may be writing in it. It is nil when there is no such directory.
func Sweep(fsys FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), TempPrefix) && e.Type().IsRegular() {
			errs = append(errs, fsys.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Sync makes a file's content survive a crash of the host.
func Sync(fsys FS, path string) error {
	f, err := fsys.OpenFile(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
