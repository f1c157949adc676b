// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/provider/stats"
)

// makeStats makes what measures the node and its pods.
func (n *node) makeStats() (*stats.Collector, error) {
	return stats.New(stats.Options{
		NodeName: n.NodeName, Machines: n.provider.Machines, LogUsage: n.logs.Usage, Host: n.measureHost, Logger: n.log("stats"),
	})
}

// measureHost is what the host uses: all of it, as a kubelet tells of its own.
func (n *node) measureHost() (stats.Host, error) {
	var h stats.Host
	var err error
	if h.MemoryTotalBytes, err = hostMemory(); err != nil {
		return h, err
	}
	if h.MemoryAvailableBytes, err = hostMemoryAvailable(); err != nil {
		return h, err
	}
	h.MemoryUsedBytes = h.MemoryTotalBytes - h.MemoryAvailableBytes
	h.WorkingSetBytes = h.MemoryUsedBytes
	if h.Processes, h.MaxProcesses, err = hostProcesses(); err != nil {
		return h, err
	}
	if h.State, err = diskOf(n.StateDir); err != nil {
		return h, err
	}
	if h.Images, err = diskOf(n.CacheDir); err != nil {
		return h, err
	}
	err = hostUsage(&h)
	return h, err
}

func diskOf(path string) (stats.Disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return stats.Disk{}, fmt.Errorf("measure the disk of %s: %w", path, err)
	}
	return stats.Disk{
		SizeBytes: int64(fs.Blocks * uint64(fs.Bsize)), AvailableBytes: int64(fs.Bavail * uint64(fs.Bsize)),
		Inodes: int64(fs.Files), InodesFree: int64(fs.Ffree),
	}, nil
}
