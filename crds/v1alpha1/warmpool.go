// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReclaimPolicy says whether a pool's machines give way to pods.
type ReclaimPolicy string

// The policies.
const (
	// ReclaimOnDemand: ready machines are evicted when a pod needs their room.
	ReclaimOnDemand ReclaimPolicy = "OnDemand"
	// ReclaimNever: their room is carved out of the node's allocatable.
	ReclaimNever ReclaimPolicy = "Never"
)

// WarmPoolSpec says how many machines of a template stand ready, and where.
type WarmPoolSpec struct {
	// TemplateRef names a SnapshotTemplate of the pool's namespace.
	TemplateRef LocalTemplateReference `json:"templateRef"`

	// Replicas is the number of ready machines over all nodes.
	// +optional
	// +kubebuilder:default=1
	Replicas *int32 `json:"replicas,omitempty"`

	// PerNode bounds the machines on each node that has any.
	// +optional
	PerNode *PerNodeBounds `json:"perNode,omitempty"`

	// NodeSelector must match a node's labels.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Tolerations of the nodes' taints. That of virtual machines, firkin.dev/machine, is tolerated anyway.
	// +optional
	// +listType=atomic
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// Priority: a pool of higher priority is filled first and takes room from lower ones
	// that are reclaimable.
	// +optional
	Priority int32 `json:"priority,omitempty"`

	// ReclaimPolicy says whether ready machines give way to pods that do not fit.
	// +optional
	// +kubebuilder:default=OnDemand
	ReclaimPolicy ReclaimPolicy `json:"reclaimPolicy,omitempty"`

	// MaxAge after which a ready machine is replaced. The default is never.
	// +optional
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`

	// Update says how ready machines of an outdated template are replaced, on each node.
	// +optional
	Update *UpdateStrategy `json:"update,omitempty"`
}

// LocalTemplateReference names a template of the same namespace.
type LocalTemplateReference struct {
	Name string `json:"name"`
}

// PerNodeBounds bound the machines of a pool on each node.
type PerNodeBounds struct {
	// Min on each node that has any.
	// +optional
	Min *int32 `json:"min,omitempty"`
	// Max on each node.
	// +optional
	Max *int32 `json:"max,omitempty"`
}

// UpdateStrategy paces the replacement of outdated machines.
type UpdateStrategy struct {
	// MaxSurge is how many machines more than wanted a node may have meanwhile.
	// +optional
	// +kubebuilder:default=1
	MaxSurge *int32 `json:"maxSurge,omitempty"`
	// MaxUnavailable is how many machines fewer than wanted a node may have meanwhile.
	// +optional
	// +kubebuilder:default=0
	MaxUnavailable *int32 `json:"maxUnavailable,omitempty"`
}

// WarmPoolStatus is what the controller sees of the pool on all nodes.
type WarmPoolStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Replicas is the number of machines that exist for the pool and no pod has: ready or on the way.
	Replicas int32 `json:"replicas"`
	// Desired is the sum of the nodes' targets.
	Desired int32 `json:"desired"`
	// Ready machines can be checked out.
	Ready int32 `json:"ready"`
	// Restoring machines are on the way.
	Restoring int32 `json:"restoring"`
	// Outdated ready machines are of an earlier revision of the template.
	Outdated int32 `json:"outdated"`
	// Active machines were checked out and run a pod.
	Active int32 `json:"active"`
	// Selector of the pool's machines, for the scale subresource. No pod carries it.
	// +optional
	Selector string `json:"selector,omitempty"`
	// Revision of the template that is being rolled out.
	// +optional
	Revision string `json:"revision,omitempty"`
	// Nodes that have a target or a machine of the pool, at most 100, sorted by name.
	// +optional
	// +listType=map
	// +listMapKey=name
	Nodes []WarmPoolNodeStatus `json:"nodes,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// WarmPoolNodeStatus is the pool on one node.
type WarmPoolNodeStatus struct {
	Name      string `json:"name"`
	Desired   int32  `json:"desired"`
	Ready     int32  `json:"ready"`
	Restoring int32  `json:"restoring"`
	// +optional
	Outdated int32 `json:"outdated,omitempty"`
	// +optional
	Active int32 `json:"active,omitempty"`
	// SkipReason is why the node does not restore more: InsufficientCapacity, DiskPressure,
	// SnapshotNotReady, Backoff, or NodeUnreachable.
	// +optional
	SkipReason string `json:"skipReason,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
}

// Condition types and reasons of pools and templates. Stable.
const (
	ConditionReady       = "Ready"
	ConditionProgressing = "Progressing"
	ConditionDegraded    = "Degraded"
)

// WarmPool keeps machines of a template ready on nodes, so that a pod only checks one out.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +kubebuilder:resource:shortName=wp
type WarmPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec WarmPoolSpec `json:"spec"`
	// +optional
	Status WarmPoolStatus `json:"status,omitempty"`
}

// WarmPoolList is a list of WarmPools.
//
// +kubebuilder:object:root=true
type WarmPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []WarmPool `json:"items"`
}
