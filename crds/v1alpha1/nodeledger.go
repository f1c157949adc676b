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
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1000
	Templates []TemplateRevision `json:"templates,omitempty"`
	// Targets of the node, one a pool.
	//
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=pool
	// +kubebuilder:validation:MaxItems=1000
	Targets []PoolTarget `json:"targets,omitempty"`
}

// TemplateRevision is a template as it was when the targets were made.
type TemplateRevision struct {
	// Namespace of the SnapshotTemplate.
	//
	// +required
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Name of the SnapshotTemplate.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Revision is a digest of Spec.
	//
	// +required
	// +kubebuilder:validation:MaxLength=64
	Revision string `json:"revision"`
	// Spec of the SnapshotTemplate; kubectl explain snapshottemplate.spec describes it.
	//
	// +required
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	Spec SnapshotTemplateSpec `json:"spec"`
}

// PoolTarget is how many machines of a pool a node keeps ready.
type PoolTarget struct {
	// Namespace of the WarmPool.
	//
	// +required
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Pool is the WarmPool's name.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Pool string `json:"pool"`
	// UID of the WarmPool.
	//
	// +optional
	UID types.UID `json:"uid,omitempty"`
	// Template and Revision name one of Templates, in Namespace.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Template string `json:"template"`
	// Revision of the template.
	//
	// +required
	// +kubebuilder:validation:MaxLength=64
	Revision string `json:"revision"`
	// Replicas that the node keeps ready.
	//
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100000
	Replicas int32 `json:"replicas"`
	// Priority of the pool.
	//
	// +optional
	Priority int32 `json:"priority,omitempty"`
	// ReclaimPolicy of the pool: OnDemand or Never.
	//
	// +optional
	ReclaimPolicy ReclaimPolicy `json:"reclaimPolicy,omitempty"`
	// MaxAge after which a ready machine is replaced; never if it is not set.
	//
	// +optional
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`
	// MaxSurge is how many machines more than Replicas there may be while outdated ones are replaced.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	MaxSurge int32 `json:"maxSurge,omitempty"`
	// MaxUnavailable is how many machines fewer than Replicas there may be while outdated ones are replaced.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	MaxUnavailable int32 `json:"maxUnavailable,omitempty"`
}

// NodeLedgerStatus is the node's account. Only that node writes it.
type NodeLedgerStatus struct {
	// ObservedGeneration is the generation of the spec that the node has taken up.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Capacity of the node for machines.
	//
	// +optional
	Capacity Amounts `json:"capacity,omitempty"`
	// Active is what pods' machines hold.
	//
	// +optional
	Active Amounts `json:"active,omitempty"`
	// Warm is what machines of pools hold that no pod has.
	//
	// +optional
	Warm Amounts `json:"warm,omitempty"`
	// Available is Capacity less Active and Warm.
	//
	// +optional
	Available Amounts `json:"available,omitempty"`
	// WithheldSlots are slots for macOS guests that are not in Capacity because the host
	// refused to fill them. It is tried again; the condition Degraded says when.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	WithheldSlots int32 `json:"withheldSlots,omitempty"`
	// ActiveMachines is the number of machines of pods, those in quarantine included.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	ActiveMachines int32 `json:"activeMachines"`
	// WarmMachines is the number of machines of pools that no pod has.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	WarmMachines int32 `json:"warmMachines"`
	// QuarantinedMachines is the number of machines that are kept, and take their room, because
	// the node's records do not say whose they are.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	QuarantinedMachines int32 `json:"quarantinedMachines"`
	// Quarantined tells of the machines in quarantine, at most 20;
	// `vk-firkin quarantine list` on the node has all of them.
	//
	// +optional
	// +listType=map
	// +listMapKey=machine
	// +kubebuilder:validation:MaxItems=20
	Quarantined []QuarantinedMachine `json:"quarantined,omitempty"`
	// Pools that the node has a target or a machine of.
	//
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=pool
	// +kubebuilder:validation:MaxItems=1000
	Pools []PoolStatus `json:"pools,omitempty"`
	// Snapshots of templates on the node.
	//
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +listMapKey=template
	// +listMapKey=revision
	// +kubebuilder:validation:MaxItems=1000
	Snapshots []SnapshotStatus `json:"snapshots,omitempty"`
	// Conditions of the node's supply.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// QuarantinedMachine is a machine of which the node does not know whose it is. It is ended by
// `vk-firkin quarantine remove MACHINE` on the node.
type QuarantinedMachine struct {
	// Machine is its id.
	//
	// +required
	// +kubebuilder:validation:MaxLength=64
	Machine string `json:"machine"`
	// PodUID of the pod that may have it, if that is known.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	PodUID string `json:"podUID,omitempty"`
	// Reason says what is not clear.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
	// Since is when the node's process found it.
	//
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
}

// Amounts are parts of a node.
type Amounts struct {
	// CPU in cores.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="must be a quantity"
	CPU resource.Quantity `json:"cpu,omitempty"`
	// Memory in bytes.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="must be a quantity"
	Memory resource.Quantity `json:"memory,omitempty"`
	// Disk in bytes.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self))",message="must be a quantity"
	Disk resource.Quantity `json:"disk,omitempty"`
	// Slots are macOS guests, of which Apple's licence allows two on a host.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Slots int32 `json:"slots,omitempty"`
}

// PoolStatus is a pool on the node.
type PoolStatus struct {
	// Namespace of the WarmPool.
	//
	// +required
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Pool is the WarmPool's name.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Pool string `json:"pool"`
	// Revision of the template that the node keeps ready.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Revision string `json:"revision,omitempty"`
	// Desired is the target that the node has taken up.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Desired int32 `json:"desired"`
	// Ready machines can be checked out, outdated ones included.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Ready int32 `json:"ready"`
	// Restoring machines are on the way.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Restoring int32 `json:"restoring"`
	// Outdated ready machines are of an earlier revision.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Outdated int32 `json:"outdated,omitempty"`
	// Active machines were checked out and run a pod.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	Active int32 `json:"active,omitempty"`
	// SkipReason is why the node does not restore more: InsufficientCapacity, DiskPressure,
	// MemoryPressure, SnapshotNotReady or Backoff.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	SkipReason string `json:"skipReason,omitempty"`
	// Message says more about the skip reason.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
	// UnmetSince is when the pool was last as full as it should be, while it is not.
	//
	// +optional
	UnmetSince *metav1.Time `json:"unmetSince,omitempty"`
}

// SnapshotPhase is where a template's snapshot is on a node.
//
// +kubebuilder:validation:Enum=Pending;Building;Ready;Failed
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
	// Namespace of the SnapshotTemplate.
	//
	// +required
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Template is the SnapshotTemplate's name.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Template string `json:"template"`
	// Revision of the template.
	//
	// +required
	// +kubebuilder:validation:MaxLength=64
	Revision string `json:"revision"`
	// Phase is Pending, Building, Ready or Failed.
	//
	// +required
	Phase SnapshotPhase `json:"phase"`
	// Key names the snapshot in `vk-firkin snapshot list`.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Key string `json:"key,omitempty"`
	// Step of the build that failed: Pull, Checkout, Setup, WarmCache, Start, Readiness, Save.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Step string `json:"step,omitempty"`
	// Message says what went wrong.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
	// Output is the end of what the failing command wrote.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Output string `json:"output,omitempty"`
	// RetryAt is when the node tries again.
	//
	// +optional
	RetryAt *metav1.Time `json:"retryAt,omitempty"`
	// BuildMillis is what the last build took, in milliseconds.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	BuildMillis int64 `json:"buildMillis,omitempty"`
	// SaveMillis is what the save in it took, in milliseconds.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	SaveMillis int64 `json:"saveMillis,omitempty"`
}

// NodeLedger is the account of one node, named like it and owned by it: the controller
// writes what the node is to keep ready, the node what it has.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nl,categories=firkin
// +kubebuilder:printcolumn:name="Active",type=integer,JSONPath=`.status.activeMachines`,description="Machines of pods"
// +kubebuilder:printcolumn:name="Warm",type=integer,JSONPath=`.status.warmMachines`,description="Machines of pools that no pod has"
// +kubebuilder:printcolumn:name="Quarantined",type=integer,JSONPath=`.status.quarantinedMachines`,description="Machines of which it is not clear whose they are"
// +kubebuilder:printcolumn:name="CPU",type=string,JSONPath=`.status.capacity.cpu`
// +kubebuilder:printcolumn:name="CPU-Free",type=string,JSONPath=`.status.available.cpu`
// +kubebuilder:printcolumn:name="Memory",type=string,JSONPath=`.status.capacity.memory`
// +kubebuilder:printcolumn:name="Memory-Active",type=string,JSONPath=`.status.active.memory`,priority=1
// +kubebuilder:printcolumn:name="Memory-Warm",type=string,JSONPath=`.status.warm.memory`
// +kubebuilder:printcolumn:name="Memory-Free",type=string,JSONPath=`.status.available.memory`
// +kubebuilder:printcolumn:name="Slots",type=integer,JSONPath=`.status.capacity.slots`,priority=1,description="macOS guests at once"
// +kubebuilder:printcolumn:name="Slots-Free",type=integer,JSONPath=`.status.available.slots`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeLedger struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the node is to keep ready.
	//
	// +optional
	Spec NodeLedgerSpec `json:"spec,omitempty"`
	// Status is what the node has.
	//
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
