// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm"
)

// plan is what a pod's specification means on this node. It is made once, at
// admission, and is pure data.
type plan struct {
	restartPolicy corev1.RestartPolicy
	grace         time.Duration
	hostname      string
	// images without repetition, in the order of their first use.
	images     []imageKey
	containers []containerPlan
	need       Need
	shape      vm.Shape
	budget     Budget
	// template that the machine is of; nil for none. It stays what it was at admission.
	template *Template
}

type containerPlan struct {
	spec       *corev1.Container
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
		grace:         corev1.DefaultTerminationGracePeriodSeconds * time.Second,
		hostname:      hostname(pod),
		need:          needOf(pod),
	}
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		p.grace = seconds(*s)
	}
	seen := map[imageKey]bool{}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		key := imageKey{ref: c.Image, policy: pullPolicy(c)}
		if !seen[key] {
			seen[key] = true
			p.images = append(p.images, key)
		}
		p.containers = append(p.containers, containerPlan{spec: c, image: key, stopSignal: syscall.SIGTERM})
	}
	p.imageVolumes(pod)
	return p
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

// needOf adds up the containers. A limit counts only where every container has one:
// a container without a limit may use what the machine has.
func needOf(pod *corev1.Pod) Need {
	var n Need
	allCPU, allMemory := true, true
	for i := range pod.Spec.Containers {
		r := &pod.Spec.Containers[i].Resources
		cpuLimit, memoryLimit := r.Limits.Cpu().MilliValue(), r.Limits.Memory().Value()
		cpu, memory := r.Requests.Cpu().MilliValue(), r.Requests.Memory().Value()
		if _, ok := r.Requests[corev1.ResourceCPU]; !ok {
			cpu = cpuLimit
		}
		if _, ok := r.Requests[corev1.ResourceMemory]; !ok {
			memory = memoryLimit
		}
		n.MilliCPURequest += cpu
		n.MemoryRequestBytes += memory
		n.MilliCPULimit += cpuLimit
		n.MemoryLimitBytes += memoryLimit
		allCPU, allMemory = allCPU && cpuLimit > 0, allMemory && memoryLimit > 0
	}
	if !allCPU {
		n.MilliCPULimit = 0
	}
	if !allMemory {
		n.MemoryLimitBytes = 0
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
	name := pod.Spec.Hostname
	if name == "" {
		name = pod.Name
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
