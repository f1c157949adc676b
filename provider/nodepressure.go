// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
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
	// EndsBy is when the pod's containers are killed at the latest, and its machine is given back
	// after that; zero while the pod goes on. MachineID is empty once that has begun.
	EndsBy time.Time
}

// EvictionCandidates are the pods that have a machine here, the oldest first: those that go on,
// and those that end already, whose room comes free by itself.
func (p *Provider) EvictionCandidates() []EvictionCandidate {
	var list []EvictionCandidate
	for _, w := range p.all() {
		pod, view := w.published.Load(), w.view.Load()
		if view.machineID == "" && !view.releasing {
			continue
		}
		if view.endsBy.IsZero() && (pod.DeletionTimestamp != nil || order(pod.Status.Phase) >= order(corev1.PodFailed)) {
			continue // its worker is about to hear of it
		}
		requests := podresources.PodRequests(pod, podresources.PodResourcesOptions{})
		list = append(list, EvictionCandidate{
			UID: pod.UID, Name: pod.Namespace + "/" + pod.Name, MachineID: view.machineID, MachineMemory: view.machineMemory,
			Priority: schedulinghelpers.PodPriority(pod), Critical: critical(pod),
			RequestedDisk: requests.StorageEphemeral().Value(), RequestedMemory: requests.Memory().Value(), EndsBy: view.endsBy,
		})
	}
	return list
}

// EvictForNode ends a pod because its node is short of something, within grace or its own
// where that is shorter, as Failed with the reason Evicted. It does not wait: the pod is among
// the EvictionCandidates until its machine is gone. Called again, the first message stays, and
// the shorter time.
func (p *Provider) EvictForNode(uid types.UID, message string, grace time.Duration) {
	p.mu.Lock()
	w := p.workers[uid]
	p.mu.Unlock()
	if w != nil {
		w.evict(reasonEvicted, message, shutdownGrace(w.published.Load(), grace))
	}
}

// LookAtNode has the node's status looked at now, because what Measure says has changed.
func (p *Provider) LookAtNode() {
	select {
	case p.nodeChanged <- struct{}{}:
	default:
	}
}
