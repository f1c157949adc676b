// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durabletest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Mode is what happens at the operation that a fault names.
type Mode string

// The modes.
const (
	// EIO fails this operation alone. It has not happened.
	EIO Mode = "EIO"
	// EIORead is EIO among all operations, also those that only read.
	EIORead Mode = "EIO, reading as well"
	// ENOSPC fails this operation alone, for want of space; a write has written half.
	ENOSPC Mode = "ENOSPC"
	// Full fails this operation and every later one that takes space, until Refill.
	Full Mode = "full"
	// Stall keeps this operation waiting until Release.
	Stall Mode = "stall"
	// Crash fails this operation and every later one with ErrCrashed: the process is dead.
	// A write has written half. What was written stays, synced or not.
	Crash Mode = "crash"
	// CrashLosingData is a Crash of the host: after Restart, files have the content that
	// was synced, under the names that they have.
	CrashLosingData Mode = "crash, losing data"
	// CrashLosingNames is a Crash of the host: after Restart, directories have the names
	// that were synced.
	CrashLosingNames Mode = "crash, losing names"
	// CrashLosingAll loses both.
	CrashLosingAll Mode = "crash, losing all"
)

// Failures are the modes in which the process goes on, Crashes those in which it does not.
var (
	Failures = []Mode{EIO, ENOSPC, Full}
	Crashes  = []Mode{Crash, CrashLosingData, CrashLosingNames, CrashLosingAll}
)

func (m Mode) crash() bool      { return strings.HasPrefix(string(m), string(Crash)) }
func (m Mode) losesData() bool  { return m == CrashLosingData || m == CrashLosingAll }
func (m Mode) losesNames() bool { return m == CrashLosingNames || m == CrashLosingAll }

// ErrCrashed is what a dead process would get if it could ask.
var ErrCrashed = errors.New("the process is dead")

// Fault is one thing that goes wrong. The zero Fault never does.
type Fault struct {
	// At is the operation, from 1 on. Close and whatever only reads are not counted unless
	// Reads says so.
	At   int
	Mode Mode
	// Reads counts operations that change nothing as well. EIORead always does.
	Reads bool
}

func (f Fault) reads() bool { return f.Reads || f.Mode == EIORead }

func (f Fault) String() string { return fmt.Sprintf("%s at operation %d", f.Mode, f.At) }

// FS is a durable.FS on top of another that counts operations and breaks at one of them.
type FS struct {
	inner durable.FS
	root  string
	stash string // outside of what is tested, on the same disk

	mu       sync.Mutex
	fault    Fault
	ops      []string
	hit      string // what the fault did
	dead     bool
	died     chan struct{} // closed with dead
	full     bool
	stalled  chan struct{} // closed when the operation has come
	released chan struct{}
	history  history
}

var _ durable.FS = (*FS)(nil)

// New makes a disk on top of inner, for what is below root.
func New(t testing.TB, inner durable.FS, root string, fault Fault) *FS {
	t.Helper()
	f := &FS{
		inner: inner, root: root, stash: t.TempDir(), fault: fault,
		stalled: make(chan struct{}), released: make(chan struct{}), died: make(chan struct{}),
	}
	f.history = history{inner: inner, stash: f.stash}
	return f
}

// Ops names the operations so far. What is random in a path is an R.
func (f *FS) Ops() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.ops...)
}

// Reached tells whether the fault has happened.
func (f *FS) Reached() bool { return f.At() != "" }

// Dead tells whether the process has died.
func (f *FS) Dead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// Died is closed when the process dies.
func (f *FS) Died() <-chan struct{} { return f.died }

// die ends the process. f.mu is held.
func (f *FS) die() {
	if !f.dead {
		f.dead = true
		close(f.died)
	}
}

// At names the operation at which the fault happened; empty when it has not.
func (f *FS) At() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hit
}

// Heal ends what is wrong, unless the process is dead.
func (f *FS) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = false
	f.fault.At = 0
}

// Arm counts from now on, with another fault.
func (f *FS) Arm(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops, f.fault, f.full, f.hit = nil, fault, false, ""
}

// Stalled is closed when a Stall has begun; Release ends it.
func (f *FS) Stalled() <-chan struct{} { return f.stalled }

// Release lets a stalled operation go on.
func (f *FS) Release() { close(f.released) }

// Restart is what is left when the host, or the process alone, starts again after a crash:
// it takes away what the crash has lost. In a mode of a crash that has not come yet, it
// comes now. It is for after the last call of the dead process.
func (f *FS) Restart(t testing.TB) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.fault.Mode.crash() {
		return
	}
	f.die()
	if err := f.history.lose(f.fault.Mode); err != nil {
		t.Fatalf("lose what a crash loses: %v", err)
	}
}

// random is what durable.Replace makes up in a name.
var random = regexp.MustCompile(`-[A-Z2-7]{26}`)

func (f *FS) name(path string) string {
	if rel, err := filepath.Rel(f.root, path); err == nil {
		path = rel
	}
	return random.ReplaceAllString(path, "-R")
}

// kind of an operation, as far as faults are concerned.
type kind int

const (
	reads kind = iota
	changes
	grows // it may take space
)

// begin counts an operation and returns the error with which it fails. half: it is a
// write, and half of it is to be done. f.mu is held when it returns.
func (f *FS) begin(k kind, op string, paths ...string) (half bool, err error) {
	f.mu.Lock()
	if f.dead {
		return false, ErrCrashed
	}
	if k == reads && !f.fault.reads() {
		return false, nil
	}
	for _, p := range paths {
		op += " " + f.name(p)
	}
	f.ops = append(f.ops, op)
	failed := func(err error) error { return &fs.PathError{Op: op, Path: paths[0], Err: err} }
	if len(f.ops) == f.fault.At {
		f.hit = fmt.Sprintf("%v (%s)", f.fault, op)
		switch m := f.fault.Mode; {
		case m.crash():
			f.die()
			return true, failed(ErrCrashed)
		case m == Stall:
			close(f.stalled)
			f.mu.Unlock()
			<-f.released
			f.mu.Lock()
		case m == ENOSPC && k == grows:
			return true, failed(syscall.ENOSPC)
		case m == Full:
			f.full = true
		default:
			return false, failed(syscall.EIO)
		}
	}
	if f.full && k == grows {
		return true, failed(syscall.ENOSPC)
	}
	return false, nil
}

// OpenFile implements durable.FS.
func (f *FS) OpenFile(path string, flag int) (durable.File, error) {
	_, statErr := f.inner.Lstat(path)
	missing := errors.Is(statErr, fs.ErrNotExist)
	k, op := reads, "open"
	switch {
	case flag&os.O_CREATE != 0 && missing:
		k, op = grows, "create"
	case flag&os.O_TRUNC != 0:
		k, op = changes, "truncate"
	}
	_, err := f.begin(k, op, path)
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if flag&os.O_TRUNC != 0 && !missing {
		if err := f.history.content(path); err != nil {
			return nil, err
		}
	}
	file, err := f.inner.OpenFile(path, flag)
	if err != nil {
		return nil, err
	}
	opened := &openFile{File: file, fs: f, path: path}
	if k == grows {
		err = f.history.created(path)
	}
	if err == nil && flag&(os.O_WRONLY|os.O_RDWR) != 0 {
		opened.inode, err = f.history.inode(path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return opened, nil
}

// ReadDir implements durable.FS.
func (f *FS) ReadDir(path string) ([]fs.DirEntry, error) {
	_, err := f.begin(reads, "list", path)
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.inner.ReadDir(path)
}

// Lstat implements durable.FS.
func (f *FS) Lstat(path string) (fs.FileInfo, error) {
	_, err := f.begin(reads, "stat", path)
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.inner.Lstat(path)
}

// Mkdir implements durable.FS.
func (f *FS) Mkdir(path string) error {
	_, err := f.begin(grows, "mkdir", path)
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	if err := f.inner.Mkdir(path); err != nil {
		return err
	}
	return f.history.created(path)
}

// Rename implements durable.FS.
func (f *FS) Rename(from, to string) error {
	_, err := f.begin(changes, "rename", from, to)
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.history.rename(from, to)
}

// Link implements durable.FS.
func (f *FS) Link(from, to string) error {
	_, err := f.begin(grows, "link", from, to)
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	if err := f.inner.Link(from, to); err != nil {
		return err
	}
	return f.history.created(to)
}

// RemoveAll implements durable.FS. Where it fails it has removed a part of a directory.
func (f *FS) RemoveAll(path string) error {
	dead := f.Dead()
	_, err := f.begin(changes, "remove", path)
	defer f.mu.Unlock()
	if err != nil {
		if in, rerr := f.inner.ReadDir(path); !dead && rerr == nil && len(in) > 0 {
			err = errors.Join(err, f.history.remove(filepath.Join(path, in[0].Name())))
		}
		return err
	}
	return f.history.remove(path)
}

// Crash ends the process, or the host, as the mode says, between two operations.
func (f *FS) Crash(mode Mode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead, f.fault.Mode, f.hit = true, mode, "between two operations"
}

// SyncDir implements durable.FS.
func (f *FS) SyncDir(path string) error {
	_, err := f.begin(changes, "syncdir", path)
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	// The crash is ours, so that there is no need to wait for the disk.
	if _, err := f.inner.Lstat(path); err != nil {
		return err
	}
	f.history.syncDir(path)
	return nil
}

// openFile is a file of an FS.
type openFile struct {
	durable.File
	fs    *FS
	path  string
	inode *inode // nil: open for reading only
}

func (o *openFile) Read(p []byte) (int, error) {
	_, err := o.fs.begin(reads, "read", o.path)
	defer o.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return o.File.Read(p)
}

func (o *openFile) Write(p []byte) (int, error) {
	half, err := o.fs.begin(grows, "write", o.path)
	defer o.fs.mu.Unlock()
	if err != nil && !half {
		return 0, err
	}
	if half {
		n, werr := o.File.Write(p[:len(p)/2])
		return n, errors.Join(err, werr)
	}
	return o.File.Write(p)
}

func (o *openFile) Truncate(size int64) error {
	_, err := o.fs.begin(changes, "truncate", o.path)
	defer o.fs.mu.Unlock()
	if err != nil {
		return err
	}
	return o.File.Truncate(size)
}

func (o *openFile) Sync() error {
	_, err := o.fs.begin(changes, "sync", o.path)
	defer o.fs.mu.Unlock()
	if err != nil {
		return err
	}
	if o.inode == nil {
		return o.fs.history.synced(o.path)
	}
	return o.inode.synced()
}

// Close never fails but for a dead process: what it could report, Sync does.
func (o *openFile) Close() error {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	err := o.File.Close()
	if o.fs.dead {
		return errors.Join(ErrCrashed, err)
	}
	return err
}
