// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// scratchSerial and slotSerial are the serial numbers that drivers give to disks.
const (
	scratchSerial = "scratch"
	slotSerial    = "slot"
)

// findDisks maps the serial numbers of the virtio disks to their devices.
func findDisks() (map[string]string, error) {
	paths, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return nil, fmt.Errorf("find disks: %w", err)
	}
	out := map[string]string{}
	for _, path := range paths {
		serial, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("find disks: %w", err)
		}
		name := strings.TrimSpace(string(serial))
		if name == "" {
			continue
		}
		if other, ok := out[name]; ok {
			return nil, fmt.Errorf("find disks: %s and %s both have the serial number %q", other, path, name)
		}
		out[name] = filepath.Join("/dev", filepath.Base(filepath.Dir(path)))
	}
	return out, nil
}

func (s *System) mountScratch() error {
	dev, ok := s.disks[scratchSerial]
	if !ok {
		return fmt.Errorf("no disk has the serial number %q", scratchSerial)
	}
	if err := os.MkdirAll(scratchDir, 0o711); err != nil {
		return fmt.Errorf("mount scratch disk: %w", err)
	}
	// No access times: a read must not become a write of the clone's own disk.
	if err := unix.Mount(dev, scratchDir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount scratch disk %s: %w", dev, err)
	}
	if err := os.Remove(filepath.Join(scratchDir, "lost+found")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mount scratch disk: %w", err)
	}
	return nil
}

// ScratchDir implements agent.System.
func (s *System) ScratchDir() string { return scratchDir }

// MountImage implements agent.System.
func (s *System) MountImage(_ context.Context, slot int) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dir, ok := s.images[slot]; ok {
		return dir, nil
	}
	dev, ok := s.disks[slotSerial+strconv.Itoa(slot)]
	if !ok {
		return "", fmt.Errorf("mount image: this machine has no image slot %d", slot)
	}
	// The slot may have been empty when the machine was saved and what was read of it
	// then, by the search for partitions for example, may still be in memory.
	if err := flushBuffers(dev); err != nil {
		return "", fmt.Errorf("mount image of slot %d: %w", slot, err)
	}
	dir := filepath.Join(imagesDir, strconv.Itoa(slot))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("mount image of slot %d: %w", slot, err)
	}
	// A mount follows symlinks. Only the agent writes here; make sure of it.
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
		return "", fmt.Errorf("mount image of slot %d: %s is not a directory", slot, dir)
	}
	// An image has no journal; were there one, replaying it would be a write.
	err := unix.Mount(dev, dir, "ext4", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOATIME, "noload")
	if errors.Is(err, unix.EINVAL) {
		return "", fmt.Errorf("mount image of slot %d: the slot is empty or holds no ext4 file system: %w", slot, err)
	}
	if err != nil {
		return "", fmt.Errorf("mount image of slot %d: %w", slot, err)
	}
	s.images[slot] = dir
	return dir, nil
}

func flushBuffers(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("flush buffers of %s: %w", dev, err)
	}
	return nil
}
