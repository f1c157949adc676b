// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

// Pod is a running pod that could be ended.
type Pod struct {
	UID  types.UID
	Name string // with its namespace
	// Critical pods are never ended: they are admitted under pressure, so that their
	// controllers' next ones would be ended in turn. The kubelet spares them too.
	Critical bool
	Priority int32
	// Used is what comes free on the host with its machine, Requested what the pod asked for.
	Used, Requested Amounts
}

// Amounts are bytes.
type Amounts struct{ Disk, Memory int64 }

func (a Amounts) of(r Resource) int64 {
	if r == Memory {
		return a.Memory
	}
	return a.Disk
}

// rank is the kubelet's order: what uses more than it requested, then by priority, then by
// how much more. It is pure.
func rank(pods []Pod, r Resource) []Pod {
	list := slices.Clone(pods)
	over := func(p *Pod) int64 { return p.Used.of(r) - p.Requested.of(r) }
	slices.SortStableFunc(list, func(a, b Pod) int {
		x, y := over(&a), over(&b)
		if (x > 0) != (y > 0) {
			if x > 0 {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(y, x), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// choose is the pod to end for a lack of so many bytes; none when ending all that may be
// ended would not do: then something else fills the host, and work would be lost in vain.
// It is pure.
func choose(pods []Pod, r Resource, lack int64) (Pod, bool) {
	var sum int64
	var first *Pod
	for _, p := range rank(pods, r) {
		if p.Critical || p.Used.of(r) <= 0 {
			continue
		}
		if first == nil {
			first = &p
		}
		sum += min(p.Used.of(r), max(lack, 0))
	}
	if first == nil || sum < lack {
		return Pod{}, false
	}
	return *first, true
}

// message says why a pod is ended, as the kubelet does; what it says of containers is said
// of the machine.
func message(p Pod, r Resource, s standing) string {
	name := corev1.ResourceEphemeralStorage
	if r == Memory {
		name = corev1.ResourceMemory
	}
	text := fmt.Sprintf("The node was low on resource: %s. ", name)
	if s.threshold > 0 {
		text += fmt.Sprintf("Threshold quantity: %s, available: %s. ", quantity(s.threshold), quantity(s.available))
	}
	return text + fmt.Sprintf("The pod's machine was using %s, request is %s. ", quantity(p.Used.of(r)), quantity(p.Requested.of(r)))
}

// quantity is in KiB, as the kubelet has it: it is no more exact than that.
func quantity(bytes int64) string {
	return resource.NewQuantity(bytes&^1023, resource.BinarySI).String()
}
