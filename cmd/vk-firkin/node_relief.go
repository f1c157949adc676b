// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/pressure"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// completeEviction reads the thresholds.
func (s *nodeSettings) completeEviction(note func(error), fault func(string, ...any)) {
	flag := func(name string, err error) {
		if err != nil {
			note(fmt.Errorf("%s: %w", name, err))
		}
	}
	var err error
	s.hard, err = pressure.ParseThresholds(s.EvictionHard)
	flag("--eviction-hard", err)
	s.soft, err = pressure.ParseThresholds(s.EvictionSoft)
	flag("--eviction-soft", err)
	s.softGrace, err = pressure.ParseGrace(s.EvictionSoftGrace, s.soft)
	flag("--eviction-soft-grace-period", err)
	if s.EvictionMaxGrace < 0 || time.Duration(s.EvictionMaxGrace) > maxShutdownGrace/time.Second {
		fault("--eviction-max-pod-grace-period %d: want 0 to %d seconds", s.EvictionMaxGrace, maxShutdownGrace/time.Second)
	}
}

// defaultHardDisk is the hard threshold for the disk when none is given.
const defaultHardDisk = 1 << 30

// floors are those of the host's disks and of its memory. Memory has no flag of its own for
// refills: twice what pods must have.
func (s *nodeSettings) floors() (disk, images, memory pressure.Floors) {
	hard := s.hard[pressure.SignalDisk]
	if hard == (pressure.Amount{Bytes: defaultHardDisk}) {
		hard.Bytes = min(hard.Bytes, s.minFreeDisk) // who wants less free means it
	}
	disk = pressure.Floors{
		Refill: s.refillMinFreeDisk, Free: s.minFreeDisk,
		Soft: s.soft[pressure.SignalDisk], Hard: hard, SoftGrace: s.softGrace[pressure.SignalDisk],
	}
	images = pressure.Floors{Free: s.minFreeDisk}
	memory = pressure.Floors{
		Refill: 2 * max(s.hard[pressure.SignalMemory].Bytes, s.soft[pressure.SignalMemory].Bytes),
		Soft:   s.soft[pressure.SignalMemory], Hard: s.hard[pressure.SignalMemory], SoftGrace: s.softGrace[pressure.SignalMemory],
	}
	return disk, images, memory
}

// makeRelief makes what relieves the host. It is run when the pods' part is there.
func (n *node) makeRelief(context.Context) (err error) {
	disk, images, memory := n.floors()
	n.relief, err = pressure.New(pressure.Options{
		Measure: n.measureLeft, Disk: disk, Images: images, Memory: memory,
		Transition: n.PressureTransition, MaxPodGrace: time.Duration(n.EvictionMaxGrace) * time.Second,
		Supply: n.supply, CollectSnapshots: n.freeSnapshots, CollectImages: n.freeImages,
		Pods: n.measurePods, Observer: n.metrics, Logger: n.log("pressure"),
		Evict: func(uid types.UID, message string, grace time.Duration) {
			n.provider.EvictForNode(uid, message, grace)
		},
		Changed: func() { n.provider.LookAtNode() },
	})
	return err
}

// shortage is what the host is short of, as the node's conditions say it.
func (n *node) shortage() (provider.Pressure, error) {
	p, err := n.relief.Pressure()
	if err != nil {
		return p, err
	}
	used, limit, err := hostProcesses()
	if err != nil {
		return p, err
	}
	// The kubelet has no default for this; a tenth of the processes left is little for
	// a host that starts one for each machine.
	p.PID = provider.Measured{Short: limit > 0 && used > limit-limit/10, Message: fmt.Sprintf("%d of %d processes", used, limit)}
	return p, nil
}

// measureLeft measures what the host has left.
func (n *node) measureLeft() (m pressure.Measurement, err error) {
	disk, device, err := readDisk(n.StateDir)
	if err != nil {
		return m, err
	}
	images, other, err := readDisk(n.CacheDir)
	if err != nil {
		return m, err
	}
	m.Disk = disk
	if device != other {
		m.Images = &images
	}
	m.Memory, err = readMemory()
	return m, err
}

// readDisk measures the file system that a folder is on, and tells which it is.
func readDisk(dir string) (r pressure.Reading, device uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return r, 0, fmt.Errorf("measure the disk of %s: %w", dir, err)
	}
	d, err := diskOf(dir)
	return pressure.Reading{Available: d.AvailableBytes, Total: d.SizeBytes, FreeInodes: d.InodesFree, Inodes: d.Inodes}, uint64(st.Dev), err //nolint:unconvert // it is smaller, and signed, on macOS
}

// justUsed is how long a snapshot that nobody uses stays under pressure all the same: it was
// built because somebody is about to restore from it.
const justUsed = 10 * time.Minute

// freeSnapshots and freeImages remove what nobody needs, the least recently used first,
// until need bytes are free.
func (n *node) freeSnapshots(ctx context.Context, need int64) (int64, error) {
	return n.garbage.FreeSnapshots(ctx, need, justUsed)
}

func (n *node) freeImages(ctx context.Context, need int64) (int64, error) {
	return n.garbage.FreeImages(ctx, need, justUsed)
}

// measurePods measures what comes free on the host with each pod that could be ended.
func (n *node) measurePods(ctx context.Context) ([]pressure.Pod, error) {
	candidates := n.provider.EvictionCandidates()
	pods := make([]*pressure.Pod, len(candidates))
	var group errgroup.Group
	group.SetLimit(measurements)
	for i, c := range candidates {
		group.Go(func() error {
			pods[i] = n.measurePod(ctx, c)
			return nil
		})
	}
	_ = group.Wait() // what cannot be measured is said, and no error
	var list []pressure.Pod
	for _, p := range pods {
		if p != nil {
			list = append(list, *p)
		}
	}
	return list, ctx.Err()
}

// measurements is how many machines are measured at once: one that does not answer takes its
// time, while the host runs short.
const measurements = 8

// measurePod measures one pod; nil when it cannot be measured and goes on: it is no candidate
// then.
func (n *node) measurePod(ctx context.Context, c provider.EvictionCandidate) *pressure.Pod {
	pod := &pressure.Pod{
		UID: c.UID, Name: c.Name, Critical: c.Critical, Priority: c.Priority,
		Requested: pressure.Amounts{Disk: c.RequestedDisk, Memory: c.RequestedMemory}, EndsBy: c.EndsBy,
	}
	if c.MachineID == "" {
		return pod // it is being deleted: nobody knows what is left of it
	}
	used, err := n.machineUsage(ctx, c)
	if err != nil {
		// It may be the one that is wrong, or just ending: it is asked again at the next look.
		n.logger.Warn("A machine could not be measured", "machine", c.MachineID, "error", err)
		if c.EndsBy.IsZero() {
			return nil
		}
		return pod
	}
	pod.Used = pressure.Amounts{Disk: used.DiskBytes, Memory: used.PrivateBytes}
	if logs, err := n.logs.Usage(c.UID); err == nil {
		for _, l := range logs {
			pod.Used.Disk += l.Bytes
		}
	}
	return pod
}

// measureTimeout bounds the measurement of one machine.
const measureTimeout = 5 * time.Second

// machineUsage is what a machine costs the host: of memory all that its shape has, where the
// driver cannot tell.
func (n *node) machineUsage(ctx context.Context, c provider.EvictionCandidate) (vm.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	m, err := n.driver.Load(ctx, c.MachineID)
	if err != nil {
		return vm.Usage{}, err
	}
	if meter, ok := m.(vm.Meter); ok {
		return meter.Usage(ctx)
	}
	u := vm.Usage{PrivateBytes: c.MachineMemory}
	err = filepath.WalkDir(filepath.Join(n.StateDir, "machines", c.MachineID), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			u.DiskBytes += machinedir.AllocatedBytes(info)
		}
		return err
	})
	return u, err
}
