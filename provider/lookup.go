// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	corev1 "k8s.io/api/core/v1"
)

// Target is what the kubelet API needs to know about a container to serve its logs
// or to run a command in it.
type Target struct {
	ContainerRef
	// State is the container's state as the pod's status has it.
	State corev1.ContainerState
	// Previous is the run before this one; nil when there is none, or its log is gone.
	Previous *ContainerRef
	// Running: the container has a process that a command can join.
	Running bool
	// Dial reaches the machine's agent; nil when the pod has no machine.
	Dial Dial
}

// Containers finds the containers of the pods on the node. *Provider implements it.
type Containers interface {
	// Target finds a container of the pod that the API server has by this name now.
	// An empty container name stands for the only one. Errors: ErrNotFound.
	Target(namespace, pod, container string) (Target, error)
	// Pods returns a copy of every pod on the node with its current status.
	Pods() []*corev1.Pod
}
