// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"cmp"
	"fmt"
	"slices"
	"time"

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
	// What a machine uses that is being deleted may not be known, and is zero then.
	Used, Requested Amounts
	// EndsBy is when a pod that ends already is killed at the latest; its machine is given back
	// after that. Zero while the pod goes on.
	EndsBy time.Time
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

// goneTimeout is how long, after its grace, an ended pod's machine is waited for, as the
// kubelet does.
const goneTimeout = 30 * time.Second

// move is what is done about the pods.
type move int

const (
	// moveNone: ending all that may be ended would not do. Then something else fills the host,
	// and work would be lost in vain.
	moveNone move = iota
	// moveWait: room comes free soon, by a pod that ends already. The next one is chosen when
	// that is there, and was measured.
	moveWait
	// moveEnd: a pod is ended. It may be one that ends already, and now has less time for it.
	moveEnd
)

// choose says what to do for a lack of so many bytes, when a pod that is ended now is killed by
// then. told are the pods that were ended for the node's sake before, and by when: one at a
// time, and each once. One that is not gone long after it should be is not waited for any more,
// and not chosen again: its machine cannot be deleted, and another pod has to go. It is pure.
func choose(pods []Pod, told map[types.UID]time.Time, r Resource, lack int64, by, now time.Time) (Pod, move) {
	var may []Pod
	coming := false
	for _, p := range pods {
		end, mine := told[p.UID]
		if !mine || !p.EndsBy.IsZero() && p.EndsBy.Before(end) {
			end = p.EndsBy
		}
		switch {
		case end.IsZero():
			may = append(may, p)
		case !now.Before(end.Add(goneTimeout)):
		case mine && end.After(by):
			return p, moveEnd
		case mine:
			return p, moveWait
		case !end.After(by) && p.Used.of(r) > 0:
			coming = true
			if lack -= p.Used.of(r); lack <= 0 {
				return p, moveWait
			}
		}
	}
	p, ok := victim(may, r, lack)
	switch {
	case ok:
		return p, moveEnd
	case coming:
		return p, moveWait
	}
	return p, moveNone
}

// victim is the pod to end for a lack of so many bytes; none when all that may be ended have
// less. It is pure.
func victim(pods []Pod, r Resource, lack int64) (Pod, bool) {
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
