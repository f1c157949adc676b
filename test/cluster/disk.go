// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// Disk is a file system of its own that can be filled to the last byte.
type Disk struct {
	// Path is where it is mounted.
	Path string
}

// MountDisk makes an ext4 of a size, as truncate(1) takes it, and mounts it below dir. It needs
// root, and Linux. Not a tmpfs: that one takes a page for every hole which is read through a
// mapping, and kills the reader when it has none.
func MountDisk(ctx context.Context, dir, size string) (*Disk, error) {
	mount, image := filepath.Join(dir, "d"), filepath.Join(dir, "d.ext4")
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return nil, err
	}
	for _, command := range [][]string{
		{"truncate", "--size", size, image},
		{"mkfs.ext4", "-q", "-F", "-m", "0", image},
		// discard: what is deleted on it takes no room on the host any more.
		{"mount", "-o", "loop,discard", image, mount},
	} {
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", command, err, out)
		}
	}
	return &Disk{Path: mount}, nil
}

// Unmount takes it away. Lazily: what somebody left open must not keep a test from ending.
func (d *Disk) Unmount() error {
	if out, err := exec.Command("umount", "-l", d.Path).CombinedOutput(); err != nil {
		return fmt.Errorf("umount %s: %w: %s", d.Path, err, out)
	}
	return nil
}

// FillDisk makes a file that takes all that its file system has left, to the last byte, or adds
// to it what has come free since.
func FillDisk(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	reserve(f)
	for block := make([]byte, 1<<20); ; {
		if _, err := f.Write(block); err != nil {
			switch {
			case !errors.Is(err, syscall.ENOSPC):
				return err
			case len(block) == 1:
				return nil
			}
			block = block[:len(block)/2+len(block)%2]
			if len(block) < 512 {
				block = block[:1]
			}
		}
	}
}

// reserve takes most of the room without writing it, where fallocate(1) can; what it does not
// get is written.
func reserve(f *os.File) {
	var fs syscall.Statfs_t
	info, err := f.Stat()
	if err != nil || syscall.Statfs(f.Name(), &fs) != nil {
		return
	}
	size := info.Size()
	for free := int64(fs.Bavail*uint64(fs.Bsize)) / 10 * 9; free > 8<<20; free /= 2 {
		if exec.Command("fallocate", "--offset", strconv.FormatInt(size, 10), "--length", strconv.FormatInt(free, 10), f.Name()).Run() == nil {
			size += free
		}
	}
}
