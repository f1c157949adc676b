// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durabletest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

func TestHostConforms(t *testing.T) {
	Conformance(t, func(t *testing.T) (durable.FS, string) { return durable.Host, t.TempDir() })
}

func TestFSConforms(t *testing.T) {
	Conformance(t, func(t *testing.T) (durable.FS, string) {
		dir := t.TempDir()
		return New(t, durable.Host, dir, Fault{}), dir
	})
}

// TestCrashLoses: what a crash takes away is what was not synced, and only that.
func TestCrashLoses(t *testing.T) {
	tests := map[string]struct {
		do   func(t *testing.T, disk *FS, dir string)
		want map[Mode]string // content of f, "-" when there is no f
	}{
		"written and not synced": {
			do: func(t *testing.T, disk *FS, dir string) {
				write(t, disk, filepath.Join(dir, "f"), os.O_CREATE|os.O_WRONLY, "new")
			},
			want: map[Mode]string{Crash: "new", CrashLosingData: "", CrashLosingNames: "-", CrashLosingAll: "-"},
		},
		"synced without its directory": {
			do: func(t *testing.T, disk *FS, dir string) {
				must(t, durable.WriteNew(disk, filepath.Join(dir, "f"), []byte("new"), durable.Synced))
			},
			want: map[Mode]string{Crash: "new", CrashLosingData: "new", CrashLosingNames: "-", CrashLosingAll: "-"},
		},
		"its directory synced, not itself": {
			do: func(t *testing.T, disk *FS, dir string) {
				write(t, disk, filepath.Join(dir, "f"), os.O_CREATE|os.O_WRONLY, "new")
				must(t, disk.SyncDir(dir))
			},
			want: map[Mode]string{Crash: "new", CrashLosingData: "", CrashLosingNames: "new", CrashLosingAll: ""},
		},
		"replaced and synced": {
			do: func(t *testing.T, disk *FS, dir string) {
				must(t, durable.Replace(disk, filepath.Join(dir, "f"), []byte("old"), durable.Synced))
				must(t, durable.Replace(disk, filepath.Join(dir, "f"), []byte("new"), durable.Synced))
			},
			want: map[Mode]string{Crash: "new", CrashLosingData: "new", CrashLosingNames: "new", CrashLosingAll: "new"},
		},
		"replaced and not synced": {
			do: func(t *testing.T, disk *FS, dir string) {
				must(t, durable.Replace(disk, filepath.Join(dir, "f"), []byte("old"), durable.Synced))
				must(t, durable.Replace(disk, filepath.Join(dir, "f"), []byte("new"), durable.Unsynced))
			},
			want: map[Mode]string{Crash: "new", CrashLosingData: "", CrashLosingNames: "old", CrashLosingAll: "old"},
		},
		"removed and not synced": {
			do: func(t *testing.T, disk *FS, dir string) {
				must(t, durable.Replace(disk, filepath.Join(dir, "f"), []byte("old"), durable.Synced))
				must(t, durable.Remove(disk, filepath.Join(dir, "f"), durable.Unsynced))
			},
			want: map[Mode]string{Crash: "-", CrashLosingData: "-", CrashLosingNames: "old", CrashLosingAll: "old"},
		},
		"appended to what was synced": {
			do: func(t *testing.T, disk *FS, dir string) {
				must(t, durable.Replace(disk, filepath.Join(dir, "f"), []byte("old"), durable.Synced))
				write(t, disk, filepath.Join(dir, "f"), os.O_APPEND|os.O_WRONLY, "new")
			},
			want: map[Mode]string{Crash: "oldnew", CrashLosingData: "old", CrashLosingNames: "oldnew", CrashLosingAll: "old"},
		},
		"a tree that was removed": {
			do: func(t *testing.T, disk *FS, dir string) {
				must(t, durable.Replace(disk, filepath.Join(dir, "f"), []byte("old"), durable.Synced))
				must(t, disk.RemoveAll(dir))
			},
			want: map[Mode]string{Crash: "-", CrashLosingData: "-", CrashLosingNames: "old", CrashLosingAll: "old"},
		},
	}
	for name, test := range tests {
		for mode, want := range test.want {
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				root := t.TempDir()
				dir := filepath.Join(root, "d")
				must(t, os.Mkdir(dir, 0o700))
				count := New(t, durable.Host, dir, Fault{})
				test.do(t, count, dir)
				must(t, os.RemoveAll(dir))
				must(t, os.Mkdir(dir, 0o700))
				disk := New(t, durable.Host, dir, Fault{At: len(count.Ops()) + 1, Mode: mode})
				test.do(t, disk, dir)
				is(t, disk.Mkdir(filepath.Join(dir, "last")), ErrCrashed)
				is(t, disk.SyncDir(dir), ErrCrashed)
				disk.Restart(t)
				disk.Restart(t) // nothing more is lost
				got, err := os.ReadFile(filepath.Join(dir, "f"))
				if os.IsNotExist(err) {
					got = []byte("-")
				} else {
					must(t, err)
				}
				if string(got) != want {
					t.Errorf("there is %q, want %q", got, want)
				}
			})
		}
	}
}

// TestFailures: one operation fails and the next does not; a full disk stays full.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	disk := New(t, durable.Host, dir, Fault{At: 2, Mode: ENOSPC})
	f, err := disk.OpenFile(path, os.O_CREATE|os.O_WRONLY)
	must(t, err)
	n, err := f.Write([]byte("abcd"))
	if n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d, %v", n, err)
	}
	_, err = f.Write([]byte("ef"))
	must(t, errors.Join(err, f.Close()))
	content(t, disk, path, "abef")
	if !disk.Reached() {
		t.Error("the fault has not happened")
	}

	disk = New(t, durable.Host, dir, Fault{At: 1, Mode: Full})
	for range 2 {
		is(t, disk.Mkdir(filepath.Join(dir, "d")), syscall.ENOSPC)
	}
	must(t, disk.RemoveAll(path))
	disk.Heal()
	must(t, disk.Mkdir(filepath.Join(dir, "d")))

	disk = New(t, durable.Host, dir, Fault{At: 1, Mode: EIO, Reads: true})
	_, err = disk.Lstat(dir)
	is(t, err, syscall.EIO)
	_, err = disk.Lstat(dir)
	must(t, err)
}

// TestStall: an operation waits until it is released, the others do not.
func TestStall(t *testing.T) {
	dir := t.TempDir()
	disk := New(t, durable.Host, dir, Fault{At: 1, Mode: Stall})
	done := make(chan error, 1)
	go func() { done <- disk.Mkdir(filepath.Join(dir, "a")) }()
	<-disk.Stalled()
	must(t, disk.Mkdir(filepath.Join(dir, "b")))
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	disk.Release()
	must(t, <-done)
}
