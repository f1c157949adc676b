// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// attach moves copies of mounts into another mount namespace, which has a root of its
// own: no path leads out of it. Targets that do not exist are made.
func attach(namespace string, mounts []*configs.Mount) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread that has been elsewhere ends with this goroutine.
		runtime.LockOSThread()
		done <- attachHere(namespace, mounts)
	}()
	return <-done
}

// attachHere does it. It leaves the thread in the other namespace.
func attachHere(namespace string, mounts []*configs.Mount) (err error) {
	trees := make([]int, 0, len(mounts))
	defer func() {
		for _, fd := range trees {
			_ = unix.Close(fd)
		}
	}()
	dirs := make([]bool, 0, len(mounts))
	for _, m := range mounts {
		st, err := os.Stat(m.Source)
		if err != nil {
			return err
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return &os.PathError{Op: "open_tree", Path: m.Source, Err: err}
		}
		trees, dirs = append(trees, fd), append(dirs, st.IsDir())
		attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if m.Flags&unix.MS_RDONLY != 0 {
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		}
		if m.Flags&unix.MS_NOEXEC != 0 {
			attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return &os.PathError{Op: "mount_setattr", Path: m.Source, Err: err}
		}
	}
	ns, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: namespace, Err: err}
	}
	defer func() { _ = unix.Close(ns) }()
	// A thread that shares its root and directory with others cannot change namespaces.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("setns", err)
	}
	for i, m := range mounts {
		if err := moveTo(trees[i], m.Destination, dirs[i]); err != nil {
			return fmt.Errorf("%s: %w", m.Destination, err)
		}
	}
	return nil
}

// moveTo mounts a tree on a path of this thread's namespace.
func moveTo(tree int, target string, dir bool) error {
	if err := makeTarget(target, dir); err != nil {
		return err
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// An image may have a link where the target is.
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	if fs.Type == unix.PROC_SUPER_MAGIC || fs.Type == unix.SYSFS_MAGIC || fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return errors.New("it leads into a file system of the kernel")
	}
	if err := unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	return nil
}

func makeTarget(target string, dir bool) error {
	if dir {
		return os.MkdirAll(target, 0o755)
	}
	if _, err := os.Stat(target); err == nil {
		return nil // not opened: it may be a pipe
	}
	if err := os.MkdirAll(path.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
