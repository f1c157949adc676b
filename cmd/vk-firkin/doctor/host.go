// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

const (
	// runTimeout bounds a program that only tells its version.
	runTimeout = 20 * time.Second
	// maxFileBytes bounds what is read of a file of the kernel.
	maxFileBytes = 64 << 10
)

// ThisHost is the host that the process runs on.
type ThisHost struct{}

var _ Host = ThisHost{}

// Run implements Host, like the methods below.
func (ThisHost) Run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return string(out), fmt.Errorf("run %s: %w", name, err)
	}
	return string(out), nil
}

// ReadFile reads at most 64 KiB.
func (ThisHost) ReadFile(path string) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFileBytes))
}

// OpenReadWrite opens and closes.
func (ThisHost) OpenReadWrite(path string) error {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Writable asks for the rights; it makes nothing.
func (ThisHost) Writable(dir string) error {
	existing, err := nearest(dir)
	if err != nil {
		return err
	}
	if err := unix.Access(existing, unix.W_OK|unix.X_OK); err != nil {
		return &os.PathError{Op: "access", Path: existing, Err: err}
	}
	return nil
}

// FreeBytes is the space that is free to this user.
func (ThisHost) FreeBytes(dir string) (int64, error) {
	existing, err := nearest(dir)
	if err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(existing, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: existing, Err: err}
	}
	return int64(st.Bavail * uint64(st.Bsize)), nil
}

// User is the name, or the number when it has none.
func (ThisHost) User() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprint(os.Getuid())
}

// Mac looks at the binary of this process.
func (ThisHost) Mac(ctx context.Context, stateDir string) mac.Facts {
	binary, err := os.Executable()
	if err != nil {
		binary = os.Args[0] // codesign says what is wrong with it
	}
	if resolved, err := filepath.EvalSymlinks(binary); err == nil {
		binary = resolved
	}
	if existing, err := nearest(stateDir); err == nil {
		stateDir = existing
	}
	return mac.This().Facts(ctx, binary, stateDir)
}

// Machines counts directories: what is in one of them, its driver knows. A machine has
// one from before it is started until after it has ended.
func (ThisHost) Machines(stateDir string) (int, error) {
	entries, err := os.ReadDir(filepath.Join(stateDir, "machines"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("count machines: %w", err)
	}
	n := 0
	for _, e := range entries {
		if e.IsDir() {
			n++
		}
	}
	return n, nil
}

// nearest is the path itself or the first directory above it that exists.
func nearest(path string) (string, error) {
	for {
		_, err := os.Stat(path)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return path, err
		}
		up := filepath.Dir(path)
		if up == path {
			return "", err
		}
		path = up
	}
}

func isPermission(err error) bool { return errors.Is(err, os.ErrPermission) }

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }
