// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	podresources "k8s.io/component-helpers/resource"
	schedulinghelpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// Reasons of refusals by what the node is and what it has, as the kubelet has them.
const (
	reasonNodeShutdown  = "NodeShutdown"
	reasonPressed       = "Evicted"
	reasonOSSelector    = "PodOSSelectorNodeLabelDoesNotMatch"
	reasonOS            = "PodOSNotSupported"
	reasonOutOfStorage  = "OutOfephemeral-storage"
	reasonOutOfPods     = "OutOfpods"
	reasonNodeAffinity  = "NodeAffinity"
	reasonNodePorts     = "NodePorts"
	reasonTaints        = "TaintToleration"
	systemCriticalClass = 2_000_000_000 // the priority from which on a pod is critical
)

// claim is what a pod has of the node, beyond what the supply accounts for.
type claim struct {
	ports        []hostPort
	storageBytes int64
}

func claimOf(pod *corev1.Pod) claim {
	requests := podresources.PodRequests(pod, podresources.PodResourcesOptions{})
	return claim{ports: hostPorts(pod), storageBytes: requests.StorageEphemeral().Value()}
}

// nodeFacts are what a pod's admission depends on.
type nodeFacts struct {
	// node as the API has it: its labels and taints.
	node        *corev1.Node
	allocatable corev1.ResourceList
	pressures   []corev1.NodeConditionType
	closing     bool
	others      []claim
}

// critical pods keep a system going: they come and stay when others do not.
func critical(pod *corev1.Pod) bool { return schedulinghelpers.PodPriority(pod) >= systemCriticalClass }

// rejected is the refusal of a pod by one of the scheduler's predicates, which the
// kubelet checks again: a pod may be bound past the scheduler, or the node has changed.
func rejected(predicate, description string) *refusal {
	return &refusal{Reason: predicate, Message: fmt.Sprintf("Pod was rejected: Predicate %s failed: %s", predicate, description)}
}

// admissible says why the node does not take a pod; nil when it does. It is pure. What
// the pod needs of processors and memory is the supply's to judge: it may wait for them.
func admissible(pod *corev1.Pod, f *nodeFacts) *refusal {
	if f.closing {
		return &refusal{Reason: reasonNodeShutdown, Message: "Pod was rejected: the node is shutting down."}
	}
	if len(f.pressures) > 0 && !critical(pod) && !bearsPressure(pod, f.pressures) {
		return &refusal{Reason: reasonPressed, Message: fmt.Sprintf("Pod was rejected: The node had condition: %v.", f.pressures)}
	}
	if want, ok := pod.Labels[corev1.LabelOSStable]; ok && want != string(corev1.Linux) {
		return &refusal{Reason: reasonOSSelector, Message: fmt.Sprintf("Pod was rejected: its label %s is %q, this node's is %q", corev1.LabelOSStable, want, corev1.Linux)}
	}
	if os := pod.Spec.OS; os != nil && os.Name != corev1.Linux {
		return &refusal{Reason: reasonOS, Message: fmt.Sprintf("Pod was rejected: spec.os.name is %q, this node's pods run on %q", os.Name, corev1.Linux)}
	}
	mine := claimOf(pod)
	used := int64(len(f.others))
	if pods, ok := f.allocatable[corev1.ResourcePods]; ok && used+1 > pods.Value() {
		return outOf(reasonOutOfPods, corev1.ResourcePods, 1, used, pods.Value())
	}
	used = 0
	for _, o := range f.others {
		used += o.storageBytes
	}
	if storage, ok := f.allocatable[corev1.ResourceEphemeralStorage]; ok && mine.storageBytes > 0 && used+mine.storageBytes > storage.Value() {
		return outOf(reasonOutOfStorage, corev1.ResourceEphemeralStorage, mine.storageBytes, used, storage.Value())
	}
	if f.node != nil {
		if match, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(f.node); err != nil || !match {
			return rejected(reasonNodeAffinity, "node(s) didn't match Pod's node affinity/selector")
		}
	}
	for _, o := range f.others {
		for _, theirs := range o.ports {
			if i := slices.IndexFunc(mine.ports, theirs.clashes); i >= 0 {
				return rejected(reasonNodePorts, fmt.Sprintf("node(s) didn't have free ports for the requested pod ports (%s)", mine.ports[i]))
			}
		}
	}
	if f.node != nil {
		// Only these end a pod that is there: the others are for the scheduler alone.
		noExecute := func(t *corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute }
		if taint, found := schedulinghelpers.FindMatchingUntoleratedTaint(klog.Background(), f.node.Spec.Taints, pod.Spec.Tolerations, noExecute, true); found {
			return rejected(reasonTaints, fmt.Sprintf("node(s) had taints that the pod didn't tolerate (%s)", taint.ToString()))
		}
	}
	return nil
}

func outOf(reason string, resource corev1.ResourceName, requested, used, capacity int64) *refusal {
	return &refusal{Reason: reason, Message: fmt.Sprintf("Pod was rejected: Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", resource, requested, used, capacity)}
}

// bearsPressure: the node is short of memory alone, and the pod has told how much of it
// it needs, or tolerates the taint that stands for the pressure.
func bearsPressure(pod *corev1.Pod, pressures []corev1.NodeConditionType) bool {
	if len(pressures) != 1 || pressures[0] != corev1.NodeMemoryPressure {
		return false
	}
	if pod.Status.QOSClass != corev1.PodQOSBestEffort {
		return true
	}
	taint := &corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
	return schedulinghelpers.TolerationsTolerateTaint(klog.Background(), pod.Spec.Tolerations, taint, true)
}

// admission admits pods one by one, and knows what those that were admitted have.
type admission struct {
	allocatable corev1.ResourceList
	// own are the ports that the node itself listens on.
	own claim
	// node is this node as the API has it; fresh asks the server. nil when it has none yet.
	node func(ctx context.Context, fresh bool) *corev1.Node

	mu        sync.Mutex
	claims    map[types.UID]claim        // guarded by mu
	pressures []corev1.NodeConditionType // guarded by mu
	closing   bool                       // guarded by mu
	held      int                        // guarded by mu; how many want no pods for a while
}

// admit admits a pod, or says why not. What it claims is its own until forget. It asks
// the API server, for a short while, before a pod is refused by the node's labels: they
// may have been changed a moment ago.
func (a *admission) admit(ctx context.Context, pod *corev1.Pod) *refusal {
	r := a.try(pod, a.node(ctx, false))
	if r != nil && r.Reason == reasonNodeAffinity {
		if n := a.node(ctx, true); n != nil {
			r = a.try(pod, n)
		}
	}
	return r
}

func (a *admission) try(pod *corev1.Pod, node *corev1.Node) *refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.claims[pod.UID]; ok {
		return nil // it was admitted before
	}
	f := nodeFacts{node: node, allocatable: a.allocatable, pressures: a.pressures, closing: a.closing || a.held > 0}
	for _, c := range a.claims {
		f.others = append(f.others, c)
	}
	if r := admissible(pod, &f); r != nil {
		return r
	}
	for _, p := range a.own.ports {
		if slices.ContainsFunc(hostPorts(pod), p.clashes) {
			return rejected(reasonNodePorts, fmt.Sprintf("node(s) didn't have free ports for the requested pod ports (%s is the node's own)", p))
		}
	}
	a.claims[pod.UID] = claimOf(pod)
	return nil
}

// hold notes what a pod has that an earlier process admitted.
func (a *admission) hold(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.claims[pod.UID] = claimOf(pod)
}

// forget gives back what a pod has claimed. Idempotent.
func (a *admission) forget(uid types.UID) {
	if a == nil { // a worker in a test of something else
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.claims, uid)
}

// close refuses all further pods.
func (a *admission) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closing = true
}

// holdOff refuses further pods until resume is called, once.
func (a *admission) holdOff() (resume func()) {
	add := func(n int) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.held += n
	}
	add(1)
	return sync.OnceFunc(func() { add(-1) })
}

func (a *admission) isClosing() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closing || a.held > 0
}

// press takes in what the node is short of.
func (a *admission) press(conditions []corev1.NodeCondition) {
	var pressures []corev1.NodeConditionType
	for _, c := range conditions {
		switch c.Type {
		case corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure:
			if c.Status == corev1.ConditionTrue {
				pressures = append(pressures, c.Type)
			}
		default:
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pressures = pressures
}

// freshNodeTimeout bounds the question for the node's labels: the pod's worker waits for it.
const freshNodeTimeout = 5 * time.Second
