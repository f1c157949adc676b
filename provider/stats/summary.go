// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Host is what the node's host uses. Zero means not known.
type Host struct {
	BootTime                                   time.Time
	CPUTime                                    time.Duration // since boot
	MemoryTotalBytes, MemoryAvailableBytes     int64
	MemoryUsedBytes, WorkingSetBytes, RSSBytes int64
	PageFaults, MajorPageFaults                int64
	Network                                    []Interface
	Processes, MaxProcesses                    int64
	State, Images                              Disk // where machines are kept, and where images are
	ImageUsedBytes                             int64
}

// Interface is a network interface of the host; the first is the one of the default route.
type Interface struct {
	Name                                 string
	RxBytes, RxErrors, TxBytes, TxErrors uint64
}

// Disk is a file system of the host.
type Disk struct {
	SizeBytes, AvailableBytes int64
	Inodes, InodesFree        int64
}

// number is a value that a guest or a host told; nil when it cannot be one.
func number(n int64) *uint64 {
	if n < 0 {
		return nil
	}
	u := uint64(n)
	return &u
}

// known is a value of which zero means that it is not known.
func known(n int64) *uint64 {
	if n == 0 {
		return nil
	}
	return number(n)
}

// counter is a counter that a guest told.
func counter(n uint64) *uint64 {
	if n > math.MaxInt64 {
		return nil
	}
	return &n
}

// podStats is what one pod uses. m is nil when that is not known.
func podStats(p provider.PodMachine, m *measurement, logUsage func(types.UID) (map[string]provider.LogUsage, error)) statsv1alpha1.PodStats {
	out := statsv1alpha1.PodStats{
		PodRef:     statsv1alpha1.PodReference{Name: p.Pod.Name, Namespace: p.Pod.Namespace, UID: string(p.Pod.UID)},
		Containers: []statsv1alpha1.ContainerStats{},
	}
	if p.Pod.Status.StartTime != nil {
		out.StartTime = *p.Pod.Status.StartTime
	}
	if m == nil {
		return out
	}
	at := metav1.NewTime(m.at)
	s := m.stats
	out.CPU = cpuStats(at, s.GetCpuNano(), m.rates, "")
	out.Memory = &statsv1alpha1.MemoryStats{
		Time: at, UsageBytes: number(s.GetMemoryTotalBytes() - s.GetMemoryAvailableBytes()), WorkingSetBytes: number(s.GetMemoryWorkingSetBytes()),
		AvailableBytes: number(s.GetMemoryTotalBytes() - s.GetMemoryWorkingSetBytes()),
	}
	if n := s.GetNetwork(); n != nil {
		i := statsv1alpha1.InterfaceStats{
			Name:    interfaceName(n.GetInterface()),
			RxBytes: counter(n.GetRxBytes()), RxErrors: counter(n.GetRxErrors()), TxBytes: counter(n.GetTxBytes()), TxErrors: counter(n.GetTxErrors()),
		}
		out.Network = &statsv1alpha1.NetworkStats{Time: at, InterfaceStats: i, Interfaces: []statsv1alpha1.InterfaceStats{i}}
	}
	byID := map[string]*agentv1.ContainerStats{}
	for i, c := range s.GetContainers() {
		if i == maxContainers {
			break
		}
		byID[c.GetId()] = c
	}
	var logs map[string]provider.LogUsage
	if logUsage != nil {
		logs, _ = logUsage(p.Pod.UID) // what cannot be measured is left out
	}
	var ephemeral, pids int64
	for _, t := range p.Targets {
		c := byID[t.ID]
		if !t.Running || c == nil {
			continue
		}
		cs := containerStats(at, t, c, s, m.rates)
		ephemeral = plus(ephemeral, c.GetWritableBytes())
		pids = plus(pids, c.GetPids())
		if log, ok := logs[t.Container]; ok {
			cs.Logs = &statsv1alpha1.FsStats{Time: at, UsedBytes: number(log.Bytes), InodesUsed: number(log.Files)}
			ephemeral = plus(ephemeral, log.Bytes)
		}
		for _, c := range p.Pod.Spec.Containers {
			if c.Name == t.Container {
				if limit := c.Resources.Limits.Memory().Value(); limit > 0 && cs.Memory.WorkingSetBytes != nil {
					cs.Memory.AvailableBytes = number(max(limit-int64(*cs.Memory.WorkingSetBytes), 0))
				}
			}
		}
		out.Containers = append(out.Containers, cs)
	}
	var onDisk int64
	out.VolumeStats, onDisk = volumeStats(at, p.Pod, s)
	out.EphemeralStorage = scratch(at, s, plus(ephemeral, onDisk))
	out.ProcessStats = &statsv1alpha1.ProcessStats{ProcessCount: number(pids)}
	return out
}

// plus adds what a guest told, when it can be.
func plus(sum, n int64) int64 {
	if n < 0 || sum > math.MaxInt64-n {
		return sum
	}
	return sum + n
}

// maxInterfaceName is Linux' IFNAMSIZ less its end.
const maxInterfaceName = 15

// interfaceName is a name that a guest told, or one that it might have.
func interfaceName(s string) string {
	if s == "" || len(s) > maxInterfaceName {
		return "eth0"
	}
	for _, r := range s {
		if r <= ' ' || r > '~' {
			return "eth0"
		}
	}
	return s
}

func cpuStats(at metav1.Time, nano int64, rates map[string]uint64, id string) *statsv1alpha1.CPUStats {
	out := &statsv1alpha1.CPUStats{Time: at, UsageCoreNanoSeconds: number(nano)}
	if rate, ok := rates[id]; ok {
		out.UsageNanoCores = &rate
	}
	return out
}

func containerStats(at metav1.Time, t provider.Target, c *agentv1.ContainerStats, s *agentv1.StatsResponse, rates map[string]uint64) statsv1alpha1.ContainerStats {
	out := statsv1alpha1.ContainerStats{
		Name: t.Container,
		CPU:  cpuStats(at, c.GetCpuNano(), rates, t.ID),
		Memory: &statsv1alpha1.MemoryStats{
			Time: at, UsageBytes: number(c.GetMemoryBytes()), WorkingSetBytes: number(c.GetMemoryWorkingSetBytes()), RSSBytes: number(c.GetMemoryRssBytes()),
			PageFaults: number(c.GetPageFaults()), MajorPageFaults: number(c.GetMajorPageFaults()),
		},
		Rootfs: scratch(at, s, c.GetWritableBytes()),
	}
	out.Rootfs.InodesUsed = nil // the file system's, and not the container's
	if t.State.Running != nil {
		out.StartTime = t.State.Running.StartedAt
	}
	return out
}

// scratch is the scratch disk, with what something uses of it.
func scratch(at metav1.Time, s *agentv1.StatsResponse, used int64) *statsv1alpha1.FsStats {
	out := &statsv1alpha1.FsStats{
		Time: at, UsedBytes: number(used),
		CapacityBytes: number(s.GetScratchTotalBytes()), AvailableBytes: number(s.GetScratchTotalBytes() - s.GetScratchUsedBytes()),
	}
	if s.GetScratchInodesTotal() > 0 {
		out.Inodes, out.InodesUsed = number(s.GetScratchInodesTotal()), number(s.GetScratchInodesUsed())
		out.InodesFree = number(s.GetScratchInodesTotal() - s.GetScratchInodesUsed())
	}
	return out
}

// volumeStats are the volumes of the pod that the machine measured, and what those of
// them take of the scratch disk that count as ephemeral storage: emptyDir, not in memory.
func volumeStats(at metav1.Time, pod *corev1.Pod, s *agentv1.StatsResponse) (out []statsv1alpha1.VolumeStats, onDisk int64) {
	byName := map[string]*agentv1.VolumeStats{}
	for i, v := range s.GetVolumes() {
		if i == maxVolumes {
			break
		}
		byName[v.GetName()] = v
	}
	for _, v := range pod.Spec.Volumes {
		m := byName[v.Name]
		if m == nil {
			continue
		}
		fs := scratch(at, s, m.GetUsedBytes())
		fs.InodesUsed = number(m.GetInodesUsed())
		if e := v.EmptyDir; e != nil {
			if e.Medium != corev1.StorageMediumMemory {
				onDisk = plus(onDisk, m.GetUsedBytes())
			}
			if e.SizeLimit != nil && e.SizeLimit.Value() > 0 {
				fs.CapacityBytes = number(e.SizeLimit.Value())
				fs.AvailableBytes = number(max(e.SizeLimit.Value()-max(m.GetUsedBytes(), 0), 0))
			}
		}
		out = append(out, statsv1alpha1.VolumeStats{Name: v.Name, FsStats: *fs})
	}
	return out, onDisk
}

// maxVolumes bounds the volumes of one answer.
const maxVolumes = 1024

// nodeStats is what the node uses.
func (c *Collector) nodeStats() statsv1alpha1.NodeStats {
	out := statsv1alpha1.NodeStats{NodeName: c.opts.NodeName, StartTime: metav1.NewTime(c.started)}
	if c.opts.Host == nil {
		return out
	}
	h, err := c.opts.Host()
	if err != nil {
		c.opts.Logger.Warn("Cannot measure the host", "error", err)
		return out
	}
	now := time.Now()
	at := metav1.NewTime(now)
	if !h.BootTime.IsZero() {
		out.StartTime = metav1.NewTime(h.BootTime)
	}
	if h.CPUTime == 0 {
		// A host that does not tell: what the machines use is nearly all of it.
		c.mu.Lock()
		h.CPUTime = c.used
		c.mu.Unlock()
	}
	if h.CPUTime > 0 {
		out.CPU = &statsv1alpha1.CPUStats{Time: at, UsageCoreNanoSeconds: number(int64(h.CPUTime))}
		to := sample{at: now, nano: int64(h.CPUTime)}
		c.mu.Lock()
		if rate, ok := rateOf(c.node, to); ok {
			out.CPU.UsageNanoCores = &rate
			c.node = to
		} else if c.node.at.IsZero() {
			c.node = to
		}
		c.mu.Unlock()
	}
	if h.MemoryTotalBytes > 0 {
		out.Memory = &statsv1alpha1.MemoryStats{
			Time: at, AvailableBytes: number(h.MemoryAvailableBytes), UsageBytes: known(h.MemoryUsedBytes), WorkingSetBytes: known(h.WorkingSetBytes),
			RSSBytes: known(h.RSSBytes), PageFaults: known(h.PageFaults), MajorPageFaults: known(h.MajorPageFaults),
		}
	}
	for i, n := range h.Network {
		s := statsv1alpha1.InterfaceStats{Name: n.Name, RxBytes: &n.RxBytes, RxErrors: &n.RxErrors, TxBytes: &n.TxBytes, TxErrors: &n.TxErrors}
		if i == 0 {
			out.Network = &statsv1alpha1.NetworkStats{Time: at, InterfaceStats: s}
		}
		out.Network.Interfaces = append(out.Network.Interfaces, s)
	}
	out.Fs = diskStats(at, h.State)
	out.Runtime = &statsv1alpha1.RuntimeStats{ImageFs: diskStats(at, h.Images), ContainerFs: diskStats(at, h.State)}
	if h.ImageUsedBytes > 0 && out.Runtime.ImageFs != nil {
		out.Runtime.ImageFs.UsedBytes = number(h.ImageUsedBytes)
	}
	if h.MaxProcesses > 0 {
		out.Rlimit = &statsv1alpha1.RlimitStats{Time: at, MaxPID: &h.MaxProcesses, NumOfRunningProcesses: &h.Processes}
	}
	return out
}

func diskStats(at metav1.Time, d Disk) *statsv1alpha1.FsStats {
	if d.SizeBytes == 0 {
		return nil
	}
	out := &statsv1alpha1.FsStats{
		Time: at, CapacityBytes: number(d.SizeBytes), AvailableBytes: number(d.AvailableBytes), UsedBytes: number(max(d.SizeBytes-d.AvailableBytes, 0)),
	}
	if d.Inodes > 0 {
		out.Inodes, out.InodesFree, out.InodesUsed = number(d.Inodes), number(d.InodesFree), number(d.Inodes-d.InodesFree)
	}
	return out
}
