// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// holderDir makes this test binary a process that holds a directory until it is killed.
const holderDir = "DURABLE_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holderDir); dir != "" {
		hold(dir)
	}
	os.Exit(m.Run())
}

// hold takes a directory, starts a program that outlives it, and says so.
func hold(dir string) {
	_, err := durable.LockDir(dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	child := exec.Command("cat")
	child.Stdin = os.Stdin // it ends with the test that holds the other end
	if err := child.Start(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	runtime.GC() // nobody refers to the lock, and it stays
	runtime.GC()
	fmt.Println("held")
	select {}
}

// TestLockDir: one process has a directory; the next is told which, and gets it when the
// first is gone, although it was killed and a program that it had started still runs.
func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	alive, ours, err := os.Pipe()
	must(t, err)
	defer ours.Close()
	holder := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this test's own binary
	holder.Env = append(os.Environ(), holderDir+"="+dir)
	holder.Stdin = alive
	out, err := holder.StdoutPipe()
	must(t, err)
	must(t, holder.Start())
	must(t, alive.Close())
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || said != "held\n" {
		t.Fatalf("the first said %q, %v", said, err)
	}

	_, err = durable.LockDir(dir)
	var locked *durable.LockedError
	if !errors.Is(err, durable.ErrLocked) || !errors.As(err, &locked) || locked.PID != holder.Process.Pid || locked.Dir != dir {
		t.Fatalf("the second got %v, want that process %d has it", err, holder.Process.Pid)
	}
	if want := fmt.Sprintf("%s is in use by another process (process %d)", dir, locked.PID); err.Error() != want {
		t.Errorf("it says %q, want %q", err, want)
	}

	must(t, holder.Process.Kill())
	if err := holder.Wait(); err == nil {
		t.Error("the first has ended by itself")
	}
	lock, err := durable.LockDir(dir)
	must(t, err)
	if _, err := ours.Write([]byte("x")); err != nil {
		t.Errorf("the program that the first had started does not run any more: %v", err)
	}
	_, err = durable.LockDir(dir)
	if !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Errorf("got %v, want that we have it", err)
	}
	must(t, errors.Join(lock.Close(), lock.Close()))
	lock, err = durable.LockDir(dir)
	must(t, err)
	must(t, lock.Close())
}

// TestLockDirWithoutAHolder: the file says nothing of use, and is not believed.
func TestLockDirWithoutAHolder(t *testing.T) {
	self, err := process.Self()
	must(t, err)
	self.StartTicks++ // the number of this process, of the time before it had it
	stale, err := json.Marshal(self)
	must(t, err)
	for _, content := range []string{"", string(stale), fmt.Sprintf("{\"pid\":%d}", os.Getpid()), "1\n", "-5", "x", "99999999999999999999999999999999999"} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, ".lock"), []byte(content), 0o600))
		lock, err := durable.LockDir(dir)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, ".lock"), []byte(content), 0o600))
		_, err = durable.LockDir(dir)
		var locked *durable.LockedError
		if !errors.As(err, &locked) || locked.PID != 0 {
			t.Errorf("%q: %v", content, err)
		}
		must(t, lock.Close())
	}
	_, err = durable.LockDir(filepath.Join(t.TempDir(), "nothing"))
	is(t, err, os.ErrNotExist)
	if errors.Is(err, durable.ErrLocked) || errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestLockFile: many may share a file, one may have it; it is the one that has the name.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	_, err := durable.LockFile(path, durable.LockOptions{})
	is(t, err, fs.ErrNotExist)
	alone, err := durable.LockFile(path, durable.LockOptions{Create: true})
	must(t, err)
	for _, shared := range []bool{true, false} {
		_, err = durable.LockFile(path, durable.LockOptions{Shared: shared})
		is(t, err, durable.ErrLocked)
	}
	must(t, alone.Close())
	first, err := durable.LockFile(path, durable.LockOptions{Shared: true})
	must(t, err)
	second, err := durable.LockFile(path, durable.LockOptions{Shared: true})
	must(t, err)
	_, err = durable.LockFile(path, durable.LockOptions{})
	is(t, err, durable.ErrLocked)
	must(t, first.Close())
	_, err = durable.LockFile(path, durable.LockOptions{})
	is(t, err, durable.ErrLocked)
	// Who has the file that had the name has nothing of the one that has it now.
	must(t, os.Remove(path))
	alone, err = durable.LockFile(path, durable.LockOptions{Create: true})
	must(t, err)
	must(t, errors.Join(alone.Close(), second.Close()))
	must(t, os.Symlink("f", path+"2"))
	if _, err := durable.LockFile(path+"2", durable.LockOptions{}); err == nil {
		t.Error("a link was followed")
	}
}

// TestCannotLock: a file system without locks is told apart from one that is locked.
func TestCannotLock(t *testing.T) {
	for err, want := range map[error]bool{syscall.ENOTSUP: true, syscall.ENOLCK: true, syscall.ENOSYS: true, syscall.EWOULDBLOCK: false, syscall.EIO: false, nil: false} {
		if durable.CannotLock(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
