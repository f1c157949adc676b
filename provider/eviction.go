// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	podresources "k8s.io/component-helpers/resource"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

const (
	// reasonEvicted is the kubelet's reason of a pod that it ended for what it used.
	reasonEvicted = "Evicted"
	// usageEvery is how often a pod that has a limit of storage is measured: the kubelet's
	// eviction manager looks as often.
	usageEvery = 10 * time.Second
	// usageTimeout bounds one measurement; a guest counts its files for it.
	usageTimeout = 30 * time.Second
	// evictionGrace is the kubelet's grace of a pod that is over a limit of storage.
	evictionGrace = time.Second
)

// storageUsage is what a pod keeps on disks, in bytes.
type storageUsage struct {
	// volumes by name, as far as they are the machine's own.
	volumes map[string]int64
	// containers by name: writable layer and log files.
	containers map[string]int64
}

// storageLimited: some limit of the pod is about storage, so that it is worth measuring.
func storageLimited(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if emptyDirLimit(&pod.Spec.Volumes[i]) != nil {
			return true
		}
	}
	_, limited := podStorageLimit(pod)
	return limited
}

// emptyDirLimit is the size limit of an emptyDir on disk; nil for none. One in memory cannot
// become larger than its file system.
func emptyDirLimit(v *corev1.Volume) *resource.Quantity {
	if e := v.EmptyDir; e != nil && e.Medium != corev1.StorageMediumMemory && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
		return e.SizeLimit
	}
	return nil
}

// storageLimit is the limit of a container's storage.
func storageLimit(c *corev1.Container) (resource.Quantity, bool) {
	q, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]
	return q, ok && q.Sign() > 0
}

// podStorageLimit is that of the containers together, by the rule that holds for requests.
func podStorageLimit(pod *corev1.Pod) (resource.Quantity, bool) {
	q, ok := podresources.PodLimits(pod, podresources.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]
	return q, ok && q.Sign() > 0
}

// overLimit says whether, and in the kubelet's words why, a pod that uses so much is to be
// ended. It is pure.
func overLimit(pod *corev1.Pod, u storageUsage) (message string, over bool) {
	var total int64
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		used := u.volumes[v.Name]
		if limit := emptyDirLimit(v); limit != nil && used > limit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q.", v.Name, limit.String()), true
		}
		if v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumMemory {
			total = addBytes(total, used)
		}
	}
	for _, used := range u.containers {
		total = addBytes(total, used)
	}
	if limit, ok := podStorageLimit(pod); ok && total > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s.", limit.String()), true
	}
	for c := range containersOf(pod) {
		if limit, ok := storageLimit(c.Container); ok && u.containers[c.Name] > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q.", c.Name, limit.String()), true
		}
	}
	return "", false
}

// addBytes adds what a guest says: neither negative nor beyond what can be counted.
func addBytes(a, b int64) int64 {
	if b = max(b, 0); a+b < a {
		return a
	}
	return a + b
}

// usageOf reads a machine's answer. What it says of others than the pod's own is left out.
func usageOf(pod *corev1.Pod, stats *agentv1.StatsResponse, logs map[string]LogUsage) storageUsage {
	u := storageUsage{volumes: map[string]int64{}, containers: map[string]int64{}}
	for name, n := range logs {
		u.containers[name] = addBytes(u.containers[name], n.Bytes)
	}
	for _, v := range stats.GetVolumes() {
		if volumeNamed(pod, v.GetName()) != nil {
			u.volumes[v.GetName()] = addBytes(u.volumes[v.GetName()], v.GetUsedBytes())
		}
	}
	for _, c := range stats.GetContainers() {
		if name, ok := containerOfID(c.GetId(), pod.UID); ok {
			u.containers[name] = addBytes(u.containers[name], c.GetWritableBytes())
		}
	}
	return u
}

// containerOfID is the name in an id that containerID made for the pod.
func containerOfID(id string, uid types.UID) (name string, ok bool) {
	rest, ok := strings.CutSuffix(id, "-"+string(uid))
	if !ok {
		return "", false
	}
	i := strings.LastIndexByte(rest, '-')
	if i < 1 || i+1 == len(rest) || strings.Trim(rest[i+1:], "0123456789") != "" {
		return "", false
	}
	return rest[:i], true
}

// watchUsage measures the pod's storage until it is over a limit or the hold ends. A pod
// that has no such limit is never measured.
func (w *worker) watchUsage(h *machineHold) {
	if !storageLimited(w.published.Load()) {
		return
	}
	for sleep(h.ctx, usageEvery) {
		pod := w.published.Load()
		u, err := w.measure(h, pod)
		if err != nil {
			if h.ctx.Err() == nil {
				w.log.Debug("The pod's storage could not be measured", "err", err)
			}
			continue
		}
		if message, over := overLimit(pod, u); over && pod.DeletionTimestamp == nil {
			w.evict(reasonEvicted, message, evictionGrace)
			return
		}
	}
}

func (w *worker) measure(h *machineHold, pod *corev1.Pod) (storageUsage, error) {
	ctx, cancel := context.WithTimeout(h.ctx, usageTimeout)
	defer cancel()
	logs, err := w.env.logs.Usage(pod.UID)
	if err != nil {
		return storageUsage{}, err
	}
	g, err := h.lease.Guest(ctx)
	if err != nil {
		return storageUsage{}, fmt.Errorf("reach the machine's agent: %w", err)
	}
	res, err := g.Agent.Stats(ctx, connect.NewRequest(&agentv1.StatsRequest{}))
	if err != nil {
		return storageUsage{}, fmt.Errorf("measure the machine: %w", err)
	}
	return usageOf(pod, res.Msg, logs), nil
}
