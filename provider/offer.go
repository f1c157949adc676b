// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// holding is what the node's pods hold of a pool that is offered as a resource.
type holding struct {
	// machines are those that pods have which requested the resource, in units of it.
	machines int64
	// unaccounted are those of them that the scheduler knows nothing else of: their pods
	// have no overhead.
	unaccounted int64
}

// offer makes the node say what its pools offer. It is pure.
//
//   - A pool with a machine that can be checked out is a label, so that a scheduler can
//     prefer the node.
//   - A pool whose machines never give way is an extended resource. The scheduler
//     subtracts what pods of the node request of it, also after they got a machine, so
//     there are as many as ready machines and machines in the hands of such pods: what
//     is left then is what can be checked out by the next.
//   - The room of such a pool is not for other pods: what its machines take once pods
//     have them, processor time included, is taken out of what is allocatable: for each
//     that should be ready, and for each that is out. A pod that requests the resource is
//     charged nothing for its machine beyond that; one that has the RuntimeClass as
//     well has its machine in its overhead, and is not counted a second time here.
//   - withheld macOS guests, which the host refuses to run for now, are not allocatable.
func offer(n *corev1.Node, base NodeOptions, pools []NodePool, held map[string]holding, withheld int64) {
	labels := maps.Clone(n.Labels)
	for key := range labels {
		if isWarm(key) {
			delete(labels, key)
		}
	}
	capacity, allocatable := base.Capacity.DeepCopy(), base.Allocatable.DeepCopy()
	take(allocatable, v1alpha1.ResourceMacOSVM, withheld, resource.NewQuantity)
	for _, p := range pools {
		if p.Key != "" && p.Ready > 0 {
			labels[p.Key] = "true"
		}
		if !p.Reserved {
			continue
		}
		h := held[p.Key]
		n := int64(p.Desired) + h.unaccounted
		take(allocatable, corev1.ResourceCPU, n*p.Each.MilliCPU, resource.NewMilliQuantity)
		take(allocatable, corev1.ResourceMemory, n*p.Each.MemoryBytes, resource.NewQuantity)
		take(allocatable, corev1.ResourceEphemeralStorage, n*p.Each.DiskBytes, resource.NewQuantity)
		if p.MacOS {
			take(allocatable, v1alpha1.ResourceMacOSVM, n, resource.NewQuantity)
		}
		if p.Key != "" {
			q := *resource.NewQuantity(int64(p.Ready)+h.machines, resource.DecimalSI)
			capacity[corev1.ResourceName(p.Key)], allocatable[corev1.ResourceName(p.Key)] = q, q
		}
	}
	n.Labels, n.Status.Capacity, n.Status.Allocatable = labels, capacity, allocatable
}

func isWarm(key string) bool {
	return len(key) > len(v1alpha1.LabelWarmPrefix) && key[:len(v1alpha1.LabelWarmPrefix)] == v1alpha1.LabelWarmPrefix
}

// take subtracts, down to nothing.
func take(list corev1.ResourceList, name corev1.ResourceName, amount int64, quantity func(int64, resource.Format) *resource.Quantity) {
	have, ok := list[name]
	if !ok || amount <= 0 {
		return
	}
	have.Sub(*quantity(amount, have.Format))
	if have.Sign() < 0 {
		have = *quantity(0, have.Format)
	}
	list[name] = have
}

// holdings are what the node's pods hold of pools that they requested by resource.
func (p *Provider) holdings() map[string]holding {
	out := map[string]holding{}
	for _, w := range p.all() {
		if !w.view.Load().machine {
			continue
		}
		pod := w.published.Load()
		for i := range pod.Spec.Containers {
			for name, q := range pod.Spec.Containers[i].Resources.Requests {
				if key := string(name); isWarm(key) {
					h := out[key]
					h.machines += q.Value()
					if len(pod.Spec.Overhead) == 0 {
						h.unaccounted += q.Value()
					}
					out[key] = h
				}
			}
		}
	}
	return out
}

// sameOffer: two states of the node offer the same.
func sameOffer(a, b *corev1.Node) bool {
	return maps.Equal(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Status.Capacity, b.Status.Capacity) &&
		equality.Semantic.DeepEqual(a.Status.Allocatable, b.Status.Allocatable)
}
