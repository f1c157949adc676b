// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SnapshotTemplateSpec says what a machine is prepared with before it is saved. A change
// makes a new revision, and each node a new snapshot; what runs is not touched.
type SnapshotTemplateSpec struct {
	// Image that set-up, cache-warming and readiness commands run in, and that pods of the
	// template use.
	Image string `json:"image"`

	// AdditionalImages that a pod of the template may use for further containers.
	// +optional
	// +listType=set
	AdditionalImages []string `json:"additionalImages,omitempty"`

	// Shape of the machine. It is fixed in the snapshot.
	Shape MachineShape `json:"shape"`

	// Env of the commands. Pods bring their own environment.
	// +optional
	// +listType=map
	// +listMapKey=name
	Env []EnvVar `json:"env,omitempty"`

	// Checkout of a git repository, before the set-up commands. Image must have git.
	// +optional
	Checkout *GitCheckout `json:"checkout,omitempty"`

	// Setup commands run one after the other; what they write is in every machine of the
	// template, under the pod's containers that use Image. Processes they leave behind are ended.
	// +optional
	// +listType=atomic
	Setup []Command `json:"setup,omitempty"`

	// WarmCache commands run after Setup, to bring files and programs into the machine's memory.
	// +optional
	// +listType=atomic
	WarmCache []Command `json:"warmCache,omitempty"`

	// Start is a program that keeps running, in a container of its own that shares the
	// machine's network with the pod: a database, a language server. It is saved running.
	// +optional
	Start *Command `json:"start,omitempty"`

	// Readiness is what must hold before the machine is saved.
	// +optional
	Readiness *ReadinessCheck `json:"readiness,omitempty"`

	// BuildTimeoutSeconds bounds the whole build on a node, without the pull of images.
	// +optional
	// +kubebuilder:default=1800
	BuildTimeoutSeconds int32 `json:"buildTimeoutSeconds,omitempty"`
}

// MachineShape is the size of a machine.
type MachineShape struct {
	// CPU that a running machine takes from its node, for example 250m. The machine has as many
	// vCPUs, rounded up: vCPUs are threads and share.
	CPU resource.Quantity `json:"cpu"`
	// Memory of the machine, a multiple of 2Mi. Kernel and agent keep about 64Mi of it.
	Memory resource.Quantity `json:"memory"`
}

// EnvVar is a variable of the commands' environment.
type EnvVar struct {
	Name string `json:"name"`
	// +optional
	Value string `json:"value,omitempty"`
}

// Command is a program with its arguments; no shell is involved unless it is named.
type Command struct {
	Command []string `json:"command"`
	// WorkingDir is absolute; the default is the checkout's directory, else the image's.
	// +optional
	WorkingDir string `json:"workingDir,omitempty"`
}

// GitCheckout is a repository at a ref in a directory.
type GitCheckout struct {
	// Repository is an https, http, git, ssh or file URL.
	Repository string `json:"repository"`
	// Ref is a branch, a tag or a commit.
	Ref string `json:"ref"`
	// Directory is absolute.
	Directory string `json:"directory"`
}

// ReadinessCheck has exactly one of Exec, HTTPGet and TCPSocket.
type ReadinessCheck struct {
	// Exec succeeds with exit status 0.
	// +optional
	Exec *Command `json:"exec,omitempty"`
	// HTTPGet succeeds with a status from 200 to 399.
	// +optional
	HTTPGet *HTTPGetCheck `json:"httpGet,omitempty"`
	// TCPSocket succeeds when a connection opens.
	// +optional
	TCPSocket *TCPSocketCheck `json:"tcpSocket,omitempty"`
	// TimeoutSeconds until when it must have succeeded once.
	// +optional
	// +kubebuilder:default=60
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`
	// PeriodSeconds between two tries.
	// +optional
	// +kubebuilder:default=1
	PeriodSeconds int32 `json:"periodSeconds,omitempty"`
}

// HTTPGetCheck asks a server on the machine's loopback.
type HTTPGetCheck struct {
	Port int32 `json:"port"`
	// +optional
	// +kubebuilder:default="/"
	Path string `json:"path,omitempty"`
}

// TCPSocketCheck connects to the machine's loopback.
type TCPSocketCheck struct {
	Port int32 `json:"port"`
}

// SnapshotTemplateStatus is what the controller sees of the template on all nodes.
type SnapshotTemplateStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Revision is a digest of the spec: what snapshots are made of.
	// +optional
	Revision string `json:"revision,omitempty"`
	// RuntimeClassName that pods name to use the template.
	// +optional
	RuntimeClassName string `json:"runtimeClassName,omitempty"`
	// ReadyNodes have a snapshot of this revision.
	// +optional
	ReadyNodes int32 `json:"readyNodes"`
	// BuildingNodes are making one.
	// +optional
	BuildingNodes int32 `json:"buildingNodes"`
	// FailedNodes could not make one.
	// +optional
	FailedNodes int32 `json:"failedNodes"`
	// Failures on nodes, at most 10, with the output of what failed.
	// +optional
	// +listType=map
	// +listMapKey=node
	Failures []TemplateFailure `json:"failures,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// TemplateFailure is why a node has no snapshot of the template.
type TemplateFailure struct {
	Node string `json:"node"`
	// Step that failed: Pull, Checkout, Setup, WarmCache, Start, Readiness, Save.
	// +optional
	Step string `json:"step,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// Output is the end of what the failing command wrote.
	// +optional
	Output string `json:"output,omitempty"`
}

// SnapshotTemplate describes a prepared machine: images, set-up and cache-warming
// commands, done once on each node and saved as a snapshot that pods start from.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=snaptpl;st
type SnapshotTemplate struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SnapshotTemplateSpec `json:"spec"`
	// +optional
	Status SnapshotTemplateStatus `json:"status,omitempty"`
}

// SnapshotTemplateList is a list of SnapshotTemplates.
//
// +kubebuilder:object:root=true
type SnapshotTemplateList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SnapshotTemplate `json:"items"`
}
