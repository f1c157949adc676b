// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	podresources "k8s.io/component-helpers/resource"
	schedulinghelpers "k8s.io/component-helpers/scheduling/corev1"
)

// EvictionCandidate is a pod that has a machine and could be ended for the node's sake.
type EvictionCandidate struct {
	UID types.UID
	// Name with its namespace.
	Name      string
	MachineID string
	// MachineMemory is all the memory that the machine may take, in bytes.
	MachineMemory int64
	Priority      int32
	// Critical pods keep a system going.
	Critical bool
	// RequestedDisk and RequestedMemory are bytes.
	RequestedDisk, RequestedMemory int64
}

// EvictionCandidates are the pods that run here and do not end yet, the oldest first.
func (p *Provider) EvictionCandidates() []EvictionCandidate {
	var list []EvictionCandidate
	for _, w := range p.all() {
		pod, view := w.published.Load(), w.view.Load()
		if view.machineID == "" || pod.DeletionTimestamp != nil || order(pod.Status.Phase) >= order(corev1.PodFailed) {
			continue
		}
		requests := podresources.PodRequests(pod, podresources.PodResourcesOptions{})
		list = append(list, EvictionCandidate{
			UID: pod.UID, Name: pod.Namespace + "/" + pod.Name, MachineID: view.machineID, MachineMemory: view.machineMemory,
			Priority: schedulinghelpers.PodPriority(pod), Critical: critical(pod),
			RequestedDisk: requests.StorageEphemeral().Value(), RequestedMemory: requests.Memory().Value(),
		})
	}
	return list
}

// evictedLookAgain is how often an evicted pod's machine is looked for.
const evictedLookAgain = 50 * time.Millisecond

// EvictForNode ends a pod because its node is short of something, within grace or its own
// where that is shorter, as Failed with the reason Evicted. It returns when the pod's machine is
// gone, or ctx ends. A pod that is gone is no error.
func (p *Provider) EvictForNode(ctx context.Context, uid types.UID, message string, grace time.Duration) error {
	p.mu.Lock()
	w := p.workers[uid]
	p.mu.Unlock()
	if w == nil {
		return nil
	}
	w.evict(reasonEvicted, message, shutdownGrace(w.published.Load(), grace))
	for !allDown([]*worker{w}) {
		if !sleep(ctx, evictedLookAgain) {
			return fmt.Errorf("wait for the machine to be gone: %w", ctx.Err())
		}
	}
	return nil
}

// LookAtNode has the node's status looked at now, because what Measure says has changed.
func (p *Provider) LookAtNode() {
	select {
	case p.nodeChanged <- struct{}{}:
	default:
	}
}
