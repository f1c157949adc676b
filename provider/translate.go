// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/vk-firkin/vk-firkin/vm"
)

// plan is what a pod's specification means on this node. It is made once, at
// admission, and is pure data.
type plan struct {
	restartPolicy corev1.RestartPolicy
	grace         time.Duration
	hostname      string
	// images without repetition, in the order of their first use.
	images []imageKey
	// late are the images of ephemeral containers that no other container has: they are not
	// among those that the machine is made with.
	late []imageKey
	// containers in the order of their start: see containersOf.
	containers []containerPlan
	need       Need
	shape      vm.Shape
	budget     Budget
	// template that the machine is of; nil for none. It stays what it was at admission.
	template *Template
}

type containerPlan struct {
	spec *corev1.Container
	kind containerKind
	// field names it in messages.
	field string
	// target is the container whose processes an ephemeral one shares; empty for none.
	target string
	// refused is why an ephemeral container is never started; empty when it may be.
	refused    string
	image      imageKey
	stopSignal syscall.Signal
}

// reasons of a pod's refusal by its size, as the kubelet has them.
const (
	reasonOutOfCPU    = "OutOfcpu"
	reasonOutOfMemory = "OutOfmemory"
)

// translate makes the plan of a pod, or says why the node refuses it, or what the pod
// waits for. It is pure as far as sizing and templates are.
func translate(pod *corev1.Pod, sizing Supply, templates Templates, allocatable corev1.ResourceList) (*plan, *refusal, *templateWait) {
	if faults := unsupported(pod); len(faults) > 0 {
		return nil, &refusal{Reason: ReasonUnsupportedField, Message: strings.Join(faults, "; ")}, nil
	}
	p := planOf(pod)
	if templateName(pod) != "" {
		t, wait := lookUp(pod, templates)
		if wait != nil {
			return nil, nil, wait
		}
		if r := useTemplate(pod, p, t); r != nil {
			return nil, r, nil
		}
		return p, oversized(p.need, allocatable), nil
	}
	refs := p.refs()
	if n := sizing.ImageSlots(); len(refs) > n {
		return nil, &refusal{Reason: ReasonUnsupportedField,
			Message: fmt.Sprintf("spec: containers and volumes have %d different images, a machine has %d image slots", len(refs), n)}, nil
	}
	if r := oversized(p.need, allocatable); r != nil {
		return nil, r, nil
	}
	shape, budget, err := sizing.ShapeFor(p.need)
	if err != nil {
		return nil, sizeRefusal(p.need, err), nil
	}
	p.shape, p.budget = shape, budget
	return p, nil, nil
}

// planOf is the plan of a pod that is accepted, without its shape and budget. It is pure.
func planOf(pod *corev1.Pod) *plan {
	p := &plan{
		restartPolicy: pod.Spec.RestartPolicy,
		grace:         graceOfSpec(pod),
		hostname:      hostname(pod),
		need:          needOf(pod),
	}
	for c := range containersOf(pod) {
		p.add(pod, c)
	}
	p.imageVolumes(pod)
	return p
}

// add takes a container into the plan.
func (p *plan) add(pod *corev1.Pod, c specified) {
	key := imageKey{ref: c.Image, policy: pullPolicy(c.Container)}
	cp := containerPlan{spec: c.Container, kind: c.kind, field: c.field, target: c.target, image: key, stopSignal: stopSignalOf(c.Container, nil)}
	switch {
	case slices.Contains(p.images, key):
	case c.kind != kindEphemeral:
		p.images = append(p.images, key)
	case !slices.Contains(p.late, key):
		p.late = append(p.late, key)
	}
	if c.kind == kindEphemeral {
		cp.refused = strings.Join(unsupportedEphemeral(pod, c.Name), "; ")
	}
	p.containers = append(p.containers, cp)
}

// index of a container; -1 when there is none of this name.
func (p *plan) index(name string) int {
	return slices.IndexFunc(p.containers, func(c containerPlan) bool { return c.spec.Name == name })
}

// graceOfSpec is how long the pod may take to end when nobody says otherwise.
func graceOfSpec(pod *corev1.Pod) time.Duration {
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return seconds(*s)
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// stopSignalOf is what a container is stopped with: its own signal, else its image's.
func stopSignalOf(c *corev1.Container, img *Image) syscall.Signal {
	switch {
	case c.Lifecycle != nil && c.Lifecycle.StopSignal != nil:
		return stopSignal(string(*c.Lifecycle.StopSignal))
	case img != nil:
		return stopSignal(img.Config.StopSignal)
	default:
		return syscall.SIGTERM
	}
}

// oversized refuses what can never fit on the node, in the kubelet's words.
func oversized(n Need, allocatable corev1.ResourceList) *refusal {
	cpu, hasCPU := allocatable[corev1.ResourceCPU]
	memory, hasMemory := allocatable[corev1.ResourceMemory]
	switch {
	case hasCPU && n.MilliCPURequest > cpu.MilliValue():
		return &refusal{Reason: reasonOutOfCPU, Message: fmt.Sprintf(
			"Pod was rejected: Node didn't have enough resource: cpu, requested: %d, used: 0, capacity: %d", n.MilliCPURequest, cpu.MilliValue())}
	case hasMemory && n.MemoryRequestBytes > memory.Value():
		return &refusal{Reason: reasonOutOfMemory, Message: fmt.Sprintf(
			"Pod was rejected: Node didn't have enough resource: memory, requested: %d, used: 0, capacity: %d", n.MemoryRequestBytes, memory.Value())}
	}
	return nil
}

func sizeRefusal(n Need, err error) *refusal {
	return &refusal{Reason: reasonOutOfMemory, Message: fmt.Sprintf(
		"Pod was rejected: no machine of this node has %d milliCPU and %d bytes of memory: %v", n.MilliCPURequest, max(n.MemoryRequestBytes, n.MemoryLimitBytes), err)}
}

// needOf is what the containers of a pod ask for together, by the rule that the scheduler
// has: main containers and sidecars run side by side, init containers one after the other
// beside the sidecars before them; what the pod as a whole asks for stands instead. A limit
// counts only where every container has one, or the pod: a container without may use what the machine has.
func needOf(pod *corev1.Pod) Need {
	// Where a request is missing, the limit stands for it, as the API server has it.
	sized := &corev1.Pod{Spec: corev1.PodSpec{Resources: pod.Spec.Resources}}
	limited := map[corev1.ResourceName]bool{corev1.ResourceCPU: true, corev1.ResourceMemory: true}
	for c := range containersOf(pod) {
		if c.kind == kindEphemeral {
			continue // it has no resources of its own
		}
		r := corev1.ResourceRequirements{Limits: c.Resources.Limits, Requests: corev1.ResourceList{}}
		for name := range limited {
			limit := c.Resources.Limits[name]
			request, ok := c.Resources.Requests[name]
			if !ok {
				request = limit
			}
			r.Requests[name] = request
			limited[name] = limited[name] && limit.Sign() > 0
		}
		list := &sized.Spec.Containers
		if c.kind.inOrder() {
			list = &sized.Spec.InitContainers
		}
		*list = append(*list, corev1.Container{Resources: r, RestartPolicy: c.RestartPolicy})
	}
	if r := pod.Spec.Resources; r != nil {
		for name := range limited { // a limit of them all stands for those that have none
			limit := r.Limits[name]
			limited[name] = limited[name] || limit.Sign() > 0
		}
	}
	requests, limits := resource.PodRequests(sized, resource.PodResourcesOptions{}), resource.PodLimits(sized, resource.PodResourcesOptions{})
	n := Need{MilliCPURequest: requests.Cpu().MilliValue(), MemoryRequestBytes: requests.Memory().Value()}
	if limited[corev1.ResourceCPU] {
		n.MilliCPULimit = limits.Cpu().MilliValue()
	}
	if limited[corev1.ResourceMemory] {
		n.MemoryLimitBytes = limits.Memory().Value()
	}
	return n
}

// pullPolicy is the container's policy; the API server sets it, except for pods that it never saw.
func pullPolicy(c *corev1.Container) PullPolicy {
	if c.ImagePullPolicy != "" {
		return PullPolicy(c.ImagePullPolicy)
	}
	return DefaultPullPolicy(c.Image)
}

// DefaultPullPolicy is the API's for an image that nobody gave one for: a reference that
// moves by habit is looked up each time.
func DefaultPullPolicy(ref string) PullPolicy {
	if strings.Contains(ref, "@") {
		return PullIfNotPresent
	}
	last := ref[strings.LastIndexByte(ref, '/')+1:]
	if !strings.Contains(last, ":") || strings.HasSuffix(last, ":latest") {
		return PullAlways
	}
	return PullIfNotPresent
}

// hostname is the pod's name in its machine: at most 63 bytes, as Linux and DNS have it.
func hostname(pod *corev1.Pod) string {
	name := cmp.Or(pod.Spec.Hostname, pod.Name)
	if o := pod.Spec.HostnameOverride; o != nil {
		name = *o
	}
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-.")
	}
	return name
}

// seconds of the API as a duration, within what a duration can hold.
func seconds(s int64) time.Duration {
	const most = int64(10 * 365 * 24 * time.Hour / time.Second)
	return time.Duration(max(0, min(s, most))) * time.Second
}

// stopSignal reads the signal an image wants to be stopped with: "SIGTERM", "TERM" or "15".
func stopSignal(s string) syscall.Signal {
	if s == "" {
		return syscall.SIGTERM
	}
	names := map[string]syscall.Signal{
		"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11,
		"USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21,
		"TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR": 30, "SYS": 31,
	}
	up := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig, ok := names[up]; ok {
		return sig
	}
	var base, n int
	switch {
	case strings.HasPrefix(up, "RTMIN"):
		base, up = 34, strings.TrimPrefix(strings.TrimPrefix(up, "RTMIN"), "+")
	case strings.HasPrefix(up, "RTMAX"):
		base, up = 64, strings.TrimPrefix(up, "RTMAX")
	}
	if up != "" {
		if _, err := fmt.Sscanf(up, "%d", &n); err != nil {
			return syscall.SIGTERM
		}
	}
	if sig := base + n; sig >= 1 && sig <= 64 {
		return syscall.Signal(sig)
	}
	return syscall.SIGTERM
}
