// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeLedgerSpec is what a node is to keep ready. Only the controller writes it.
type NodeLedgerSpec struct {
	// Templates that the targets name, each revision once.
	// +optional
	// +listType=atomic
	Templates []TemplateRevision `json:"templates,omitempty"`
	// Targets of the node, one a pool.
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=pool
	Targets []PoolTarget `json:"targets,omitempty"`
}

// TemplateRevision is a template as it was when the targets were made.
type TemplateRevision struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Revision is SnapshotTemplateSpec.Revision of Spec.
	Revision string               `json:"revision"`
	Spec     SnapshotTemplateSpec `json:"spec"`
}

// PoolTarget is how many machines of a pool a node keeps ready.
type PoolTarget struct {
	Namespace string `json:"namespace"`
	// Pool is the WarmPool's name.
	Pool string `json:"pool"`
	// UID of the WarmPool.
	// +optional
	UID types.UID `json:"uid,omitempty"`
	// Template and Revision name one of Templates, in Namespace.
	Template string `json:"template"`
	Revision string `json:"revision"`
	// Replicas that the node keeps ready.
	Replicas int32 `json:"replicas"`
	// +optional
	Priority int32 `json:"priority,omitempty"`
	// +optional
	ReclaimPolicy ReclaimPolicy `json:"reclaimPolicy,omitempty"`
	// +optional
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`
	// +optional
	MaxSurge int32 `json:"maxSurge,omitempty"`
	// +optional
	MaxUnavailable int32 `json:"maxUnavailable,omitempty"`
}

// NodeLedgerStatus is the node's account. Only that node writes it.
type NodeLedgerStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Capacity of the node for machines.
	// +optional
	Capacity Amounts `json:"capacity,omitempty"`
	// Active is what pods' machines hold.
	// +optional
	Active Amounts `json:"active,omitempty"`
	// Warm is what machines of pools hold that no pod has.
	// +optional
	Warm Amounts `json:"warm,omitempty"`
	// Available is Capacity less Active and Warm.
	// +optional
	Available Amounts `json:"available,omitempty"`
	// Machines of pods and of pools.
	// +optional
	ActiveMachines int32 `json:"activeMachines"`
	// +optional
	WarmMachines int32 `json:"warmMachines"`
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=pool
	Pools []PoolStatus `json:"pools,omitempty"`
	// Snapshots of templates on the node.
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=template
	// +listMapKey=revision
	Snapshots []SnapshotStatus `json:"snapshots,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Amounts are parts of a node.
type Amounts struct {
	// +optional
	CPU resource.Quantity `json:"cpu,omitempty"`
	// +optional
	Memory resource.Quantity `json:"memory,omitempty"`
	// +optional
	Disk resource.Quantity `json:"disk,omitempty"`
	// Slots are macOS guests, of which Apple's licence allows two on a host.
	// +optional
	Slots int32 `json:"slots,omitempty"`
}

// PoolStatus is a pool on the node.
type PoolStatus struct {
	Namespace string `json:"namespace"`
	Pool      string `json:"pool"`
	// +optional
	Revision  string `json:"revision,omitempty"`
	Desired   int32  `json:"desired"`
	Ready     int32  `json:"ready"`
	Restoring int32  `json:"restoring"`
	// +optional
	Outdated int32 `json:"outdated,omitempty"`
	// +optional
	Active int32 `json:"active,omitempty"`
	// +optional
	SkipReason string `json:"skipReason,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// UnmetSince is when the pool was last as full as it should be, while it is not.
	// +optional
	UnmetSince *metav1.Time `json:"unmetSince,omitempty"`
}

// SnapshotPhase is where a template's snapshot is on a node.
type SnapshotPhase string

// The phases.
const (
	SnapshotPending  SnapshotPhase = "Pending"
	SnapshotBuilding SnapshotPhase = "Building"
	SnapshotReady    SnapshotPhase = "Ready"
	SnapshotFailed   SnapshotPhase = "Failed"
)

// SnapshotStatus is a template's snapshot on the node.
type SnapshotStatus struct {
	Namespace string        `json:"namespace"`
	Template  string        `json:"template"`
	Revision  string        `json:"revision"`
	Phase     SnapshotPhase `json:"phase"`
	// Key names the snapshot in `vk-firkin snapshot list`.
	// +optional
	Key string `json:"key,omitempty"`
	// Step, Message and Output of a build that failed.
	// +optional
	Step string `json:"step,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	Output string `json:"output,omitempty"`
	// RetryAt is when the node tries again.
	// +optional
	RetryAt *metav1.Time `json:"retryAt,omitempty"`
	// BuildSeconds and SaveSeconds are what the last build took, and the save in it.
	// +optional
	BuildMillis int64 `json:"buildMillis,omitempty"`
	// +optional
	SaveMillis int64 `json:"saveMillis,omitempty"`
}

// NodeLedger is the account of one node, named like it and owned by it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nl
type NodeLedger struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec NodeLedgerSpec `json:"spec,omitempty"`
	// +optional
	Status NodeLedgerStatus `json:"status,omitempty"`
}

// NodeLedgerList is a list of NodeLedgers.
//
// +kubebuilder:object:root=true
type NodeLedgerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeLedger `json:"items"`
}
