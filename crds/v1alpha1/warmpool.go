// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReclaimPolicy says whether a pool's machines give way to pods.
//
// +kubebuilder:validation:Enum=OnDemand;Never
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
	//
	// +required
	TemplateRef LocalTemplateReference `json:"templateRef"`

	// Replicas is the number of ready machines over all nodes. The default is 1.
	//
	// +optional
	// +default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100000
	Replicas *int32 `json:"replicas,omitempty"`

	// PerNode bounds the machines on each node that has any.
	//
	// +optional
	PerNode *PerNodeBounds `json:"perNode,omitempty"`

	// NodeSelector must match a node's labels.
	//
	// +optional
	// +mapType=atomic
	// +kubebuilder:validation:MaxProperties=32
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Tolerations of the nodes' taints. That of virtual machines, firkin.dev/machine, is tolerated anyway.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// Priority: a pool of higher priority is filled first and takes room from lower ones.
	//
	// +optional
	// +kubebuilder:validation:Minimum=-1000000000
	// +kubebuilder:validation:Maximum=1000000000
	Priority int32 `json:"priority,omitempty"`

	// ReclaimPolicy says whether ready machines give way to pods that do not fit: OnDemand,
	// the default, or Never, which takes their room out of the node's allocatable.
	//
	// +optional
	// +default="OnDemand"
	ReclaimPolicy ReclaimPolicy `json:"reclaimPolicy,omitempty"`

	// MaxAge after which a ready machine is replaced, such as 12h, at least 1s. The default is never.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self) >= duration('1s')",message="must be a duration such as 12h or 30m, at least 1s"
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`

	// Update says how ready machines of an outdated template are replaced, on each node. The
	// default is one machine more than wanted meanwhile, and none fewer.
	//
	// +optional
	Update *UpdateStrategy `json:"update,omitempty"`
}

// LocalTemplateReference names a template of the same namespace.
type LocalTemplateReference struct {
	// Name of the SnapshotTemplate.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!format.dns1123Subdomain().validate(self).hasValue()",message="must be the name of a SnapshotTemplate"
	Name string `json:"name"`
}

// PerNodeBounds bound the machines of a pool on each node.
//
// +kubebuilder:validation:XValidation:rule="!has(self.min) || !has(self.max) || self.min <= self.max",message="min must not be above max",fieldPath=".min"
type PerNodeBounds struct {
	// Min on each node that has any, as long as there are so many replicas.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100000
	Min *int32 `json:"min,omitempty"`
	// Max on each node.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	Max *int32 `json:"max,omitempty"`
}

// UpdateStrategy paces the replacement of outdated machines.
//
// +kubebuilder:validation:XValidation:rule="(has(self.maxSurge) ? self.maxSurge : 1) + (has(self.maxUnavailable) ? self.maxUnavailable : 0) > 0",message="maxSurge and maxUnavailable must not both be 0: nothing could be replaced",fieldPath=".maxUnavailable"
type UpdateStrategy struct {
	// MaxSurge is how many machines more than wanted a node may have meanwhile. The default is 1.
	//
	// +optional
	// +default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	MaxSurge *int32 `json:"maxSurge,omitempty"`
	// MaxUnavailable is how many machines fewer than wanted a node may have meanwhile. The default is 0.
	//
	// +optional
	// +default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	MaxUnavailable *int32 `json:"maxUnavailable,omitempty"`
}

// WarmPoolStatus is what the controller sees of the pool on all nodes.
type WarmPoolStatus struct {
	// ObservedGeneration is the generation of the spec that this status is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Replicas is the number of machines that exist for the pool and no pod has: ready or on the way.
	//
	// +optional
	Replicas int32 `json:"replicas"`
	// Desired is the sum of the nodes' targets.
	//
	// +optional
	Desired int32 `json:"desired"`
	// Ready machines can be checked out.
	//
	// +optional
	Ready int32 `json:"ready"`
	// Restoring machines are on the way.
	//
	// +optional
	Restoring int32 `json:"restoring"`
	// Outdated ready machines are of an earlier revision of the template.
	//
	// +optional
	Outdated int32 `json:"outdated"`
	// Active machines were checked out and run a pod.
	//
	// +optional
	Active int32 `json:"active"`
	// Selector of the pool's machines, for the scale subresource. No pod carries it.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Selector string `json:"selector,omitempty"`
	// Revision of the template that is being rolled out.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Revision string `json:"revision,omitempty"`
	// Nodes that have a target or a machine of the pool, at most 100, sorted by name; those
	// with something to say come first when there are more.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=100
	Nodes []WarmPoolNodeStatus `json:"nodes,omitempty"`
	// Conditions of the pool: Ready, Progressing and Degraded.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// WarmPoolNodeStatus is the pool on one node.
type WarmPoolNodeStatus struct {
	// Name of the node.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Desired is the node's target.
	//
	// +optional
	Desired int32 `json:"desired"`
	// Ready machines can be checked out.
	//
	// +optional
	Ready int32 `json:"ready"`
	// Restoring machines are on the way.
	//
	// +optional
	Restoring int32 `json:"restoring"`
	// Outdated ready machines are of an earlier revision of the template.
	//
	// +optional
	Outdated int32 `json:"outdated,omitempty"`
	// Active machines were checked out and run a pod.
	//
	// +optional
	Active int32 `json:"active,omitempty"`
	// SkipReason is why the node does not restore more: InsufficientCapacity, DiskPressure,
	// MemoryPressure, SnapshotNotReady, Backoff, or NodeUnreachable.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	SkipReason string `json:"skipReason,omitempty"`
	// Message says more about the skip reason.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
}

// WarmPool keeps machines of a template ready on nodes, so that a pod only checks one out.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +kubebuilder:resource:shortName=wp,categories=firkin
// +kubebuilder:printcolumn:name="Template",type=string,JSONPath=`.spec.templateRef.name`
// +kubebuilder:printcolumn:name="Replicas",type=integer,JSONPath=`.spec.replicas`,description="Machines that are to stand ready"
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.ready`,description="Machines that can be checked out"
// +kubebuilder:printcolumn:name="Restoring",type=integer,JSONPath=`.status.restoring`,description="Machines on the way"
// +kubebuilder:printcolumn:name="Active",type=integer,JSONPath=`.status.active`,description="Machines that were checked out and run a pod"
// +kubebuilder:printcolumn:name="Outdated",type=integer,JSONPath=`.status.outdated`,description="Ready machines of an earlier revision",priority=1
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`,priority=1
// +kubebuilder:printcolumn:name="Reclaim",type=string,JSONPath=`.spec.reclaimPolicy`,priority=1
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Degraded")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 50",message="metadata.name must be at most 50 characters: nodes carry the label warm.firkin.dev/NAMESPACE.POOL, where NAMESPACE.POOL has room for 63"
type WarmPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec says how many machines stand ready, and where.
	//
	// +required
	Spec WarmPoolSpec `json:"spec"`
	// Status is what the controller sees on all nodes.
	//
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
