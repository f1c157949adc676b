// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SnapshotTemplateSpec says what a machine is prepared with before it is saved. A change
// makes a new revision, and each node a new snapshot; what runs is not touched.
//
// +kubebuilder:validation:XValidation:rule="!has(self.additionalImages) || !(self.image in self.additionalImages)",message="must not repeat spec.image",fieldPath=".additionalImages"
// +kubebuilder:validation:XValidation:rule="!has(self.guestOS) || self.guestOS != 'macos' || !has(self.additionalImages) || self.additionalImages.size() == 0",message="must be empty for a macOS guest, whose only image is its system",fieldPath=".additionalImages"
// +kubebuilder:validation:XValidation:rule="!has(self.guestOS) || self.guestOS != 'macos' || isQuantity(string(self.shape.cpu)) && quantity(string(self.shape.cpu)).compareTo(quantity('2')) >= 0 && isQuantity(string(self.shape.memory)) && quantity(string(self.shape.memory)).compareTo(quantity('4Gi')) >= 0",message="must have at least 2 CPUs and 4Gi of memory for a macOS guest",fieldPath=".shape"
type SnapshotTemplateSpec struct {
	// GuestOS is linux or macos. A macOS guest runs on a Mac only, two at once on each; its
	// image is an installation of macOS (vk-firkin image push-macos makes one), and pods run
	// in that system itself, not isolated from it. The default is linux.
	//
	// +optional
	// +default="linux"
	GuestOS GuestOS `json:"guestOS,omitempty"`

	// Image that set-up, cache-warming and readiness commands run in, and that pods of the
	// template use: a reference such as registry.example/team/app:1.2, or one with a digest.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.matches('^(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[[][0-9a-fA-F:]+[]])(:[0-9]{1,5})?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$')",message="must be an image reference, such as registry.example/team/app:1.2 or registry.example/team/app@sha256:..."
	Image string `json:"image"`

	// AdditionalImages that a pod of the template may use for further containers, at most 3:
	// a machine has 4 image slots.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=3
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[[][0-9a-fA-F:]+[]])(:[0-9]{1,5})?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$')",message="must be an image reference, such as registry.example/team/app:1.2 or registry.example/team/app@sha256:..."
	AdditionalImages []string `json:"additionalImages,omitempty"`

	// Shape of the machine. It is fixed in the snapshot: a pod of the template gets exactly this.
	//
	// +required
	Shape MachineShape `json:"shape"`

	// Env of the commands. Pods bring their own environment.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Env []EnvVar `json:"env,omitempty"`

	// Checkout of a git repository, before the set-up commands. Image must have git.
	//
	// +optional
	Checkout *GitCheckout `json:"checkout,omitempty"`

	// Setup commands run one after the other; what they write is in every machine of the
	// template, under the pod's containers that use Image. Processes they leave behind are ended.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Setup []Command `json:"setup,omitempty"`

	// WarmCache commands run after Setup, to bring files and programs into the machine's memory.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	WarmCache []Command `json:"warmCache,omitempty"`

	// Start is a program that keeps running, in a container of its own that shares the
	// machine's network with the pod: a database, a language server. It is saved running.
	//
	// +optional
	Start *Command `json:"start,omitempty"`

	// Readiness is what must hold before the machine is saved.
	//
	// +optional
	Readiness *ReadinessCheck `json:"readiness,omitempty"`

	// BuildTimeoutSeconds bounds the whole build on a node, without the pull of images. The
	// default is 1800.
	//
	// +optional
	// +default=1800
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	BuildTimeoutSeconds int32 `json:"buildTimeoutSeconds,omitempty"`
}

// GuestOS is the operating system of a machine's guest.
//
// +kubebuilder:validation:Enum=linux;macos
type GuestOS string

// The guest operating systems.
const (
	GuestLinux GuestOS = "linux"
	GuestMacOS GuestOS = "macos"
)

// Least that a macOS guest has: what Apple's tools give one at least.
const (
	MinMacOSCPUs        = 2
	MinMacOSMemoryBytes = 4 << 30
)

// MachineShape is the size of a machine.
type MachineShape struct {
	// CPU that a running machine takes from its node, from 1m to 64, for example 250m. The
	// machine has as many vCPUs, rounded up: vCPUs are threads and share.
	//
	// +required
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('1m')) >= 0 && quantity(string(self)).compareTo(quantity('64')) <= 0",message="must be from 1m to 64"
	CPU resource.Quantity `json:"cpu"`
	// Memory of the machine, from 128Mi to 1Ti, a multiple of 2Mi. Kernel and agent keep
	// about 64Mi of it.
	//
	// +required
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('128Mi')) >= 0 && quantity(string(self)).compareTo(quantity('1Ti')) <= 0",message="must be from 128Mi to 1Ti"
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self)) && quantity(string(self)).isInteger() && quantity(string(self)).asInteger() % 2097152 == 0",message="must be a multiple of 2Mi"
	Memory resource.Quantity `json:"memory"`
}

// EnvVar is a variable of the commands' environment.
type EnvVar struct {
	// Name of the variable: letters, digits and underscores, and no digit first.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z_][A-Za-z0-9_]*$')",message="must be letters, digits and underscores, and must not begin with a digit"
	Name string `json:"name"`
	// Value of the variable, as it is: nothing in it is expanded.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=8192
	// +kubebuilder:validation:Pattern=`^[^\x00]*$`
	Value string `json:"value,omitempty"`
}

// Command is a program with its arguments; no shell is involved unless it is named.
//
// +kubebuilder:validation:XValidation:rule="self.command[0].size() > 0",message="must name a program first",fieldPath=".command"
type Command struct {
	// Command is the program, looked up in the image's PATH, and its arguments.
	//
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=8192
	// +kubebuilder:validation:items:Pattern=`^[^\x00]*$`
	Command []string `json:"command"`
	// WorkingDir is absolute; the default is the checkout's directory, else the image's.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self == '' || (self.matches('^/([^/\\\\x00]+(/[^/\\\\x00]+)*)?$') && !self.matches('/[.][.]?(/|$)'))",message="must be an absolute path without a slash at its end and without . and .. in it"
	WorkingDir string `json:"workingDir,omitempty"`
}

// GitCheckout is a repository at a ref in a directory.
type GitCheckout struct {
	// Repository is an https, http, git, ssh or file URL.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="self.matches('^(https|http|git|ssh|file)://[^[:space:][:cntrl:]]+$') && !self.matches('^[a-z]+://([^/]*@)?[-/]') || self.matches('^file:///[^[:space:][:cntrl:]]+$')",message="must be a URL that begins with https://, http://, git://, ssh:// or file://, without spaces, its host not empty and not beginning with -"
	Repository string `json:"repository"`
	// Ref is a branch, a tag or a commit.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:XValidation:rule="self.matches('^[^-/.~^:?*[:space:][:cntrl:][\\\\\\\\]([^~^:?*[:space:][:cntrl:][\\\\\\\\]*[^/.~^:?*[:space:][:cntrl:][\\\\\\\\])?$') && !self.contains('..') && !self.contains('@{') && !self.contains('//') && !self.endsWith('.lock')",message="must be the name of a branch, a tag or a commit, and must not begin with -"
	Ref string `json:"ref"`
	// Directory that the repository is checked out to. It is absolute.
	//
	// +required
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.matches('^/([^/\\\\x00]+(/[^/\\\\x00]+)*)?$') && !self.matches('/[.][.]?(/|$)')",message="must be an absolute path without a slash at its end and without . and .. in it"
	Directory string `json:"directory"`
}

// ReadinessCheck has exactly one of Exec, HTTPGet and TCPSocket.
//
// +kubebuilder:validation:XValidation:rule="[has(self.exec), has(self.httpGet), has(self.tcpSocket)].filter(x, x).size() == 1",message="must have exactly one of exec, httpGet and tcpSocket"
type ReadinessCheck struct {
	// Exec succeeds with exit status 0.
	//
	// +optional
	Exec *Command `json:"exec,omitempty"`
	// HTTPGet succeeds with a status from 200 to 399.
	//
	// +optional
	HTTPGet *HTTPGetCheck `json:"httpGet,omitempty"`
	// TCPSocket succeeds when a connection opens.
	//
	// +optional
	TCPSocket *TCPSocketCheck `json:"tcpSocket,omitempty"`
	// TimeoutSeconds until when it must have succeeded once. The default is 60.
	//
	// +optional
	// +default=60
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`
	// PeriodSeconds between two tries. The default is 1.
	//
	// +optional
	// +default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=3600
	PeriodSeconds int32 `json:"periodSeconds,omitempty"`
}

// HTTPGetCheck asks a server on the machine's loopback.
type HTTPGetCheck struct {
	// Port of the server.
	//
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
	// Path of the request, with its query. The default is /.
	//
	// +optional
	// +default="/"
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches('^/[^[:space:][:cntrl:]]*$')",message="must begin with / and have no spaces"
	Path string `json:"path,omitempty"`
}

// TCPSocketCheck connects to the machine's loopback.
type TCPSocketCheck struct {
	// Port to connect to.
	//
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
}

// SnapshotTemplateStatus is what the controller sees of the template on all nodes.
type SnapshotTemplateStatus struct {
	// ObservedGeneration is the generation of the spec that this status is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Revision is a digest of the spec: what snapshots are made of.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Revision string `json:"revision,omitempty"`
	// RuntimeClassName that pods name to use the template.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	RuntimeClassName string `json:"runtimeClassName,omitempty"`
	// ReadyNodes have a snapshot of this revision.
	//
	// +optional
	ReadyNodes int32 `json:"readyNodes"`
	// BuildingNodes are making one.
	//
	// +optional
	BuildingNodes int32 `json:"buildingNodes"`
	// FailedNodes could not make one.
	//
	// +optional
	FailedNodes int32 `json:"failedNodes"`
	// Failures on nodes, at most 10, with the output of what failed.
	//
	// +optional
	// +listType=map
	// +listMapKey=node
	// +kubebuilder:validation:MaxItems=10
	Failures []TemplateFailure `json:"failures,omitempty"`
	// Conditions of the template: Ready, Progressing and Degraded.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// TemplateFailure is why a node has no snapshot of the template.
type TemplateFailure struct {
	// Node that could not make the snapshot.
	//
	// +required
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// Step that failed: Pull, Checkout, Setup, WarmCache, Start, Readiness, Save.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Step string `json:"step,omitempty"`
	// Message says what went wrong, and when the node tries again.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
	// Output is the end of what the failing command wrote.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Output string `json:"output,omitempty"`
}

// SnapshotTemplate describes a prepared machine: images, set-up and cache-warming
// commands, done once on each node and saved as a snapshot that pods start from.
// A pod of the same namespace uses it by spec.runtimeClassName, or by the annotation
// firkin.dev/template.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=snaptpl;st,categories=firkin
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Guest",type=string,JSONPath=`.spec.guestOS`
// +kubebuilder:printcolumn:name="CPU",type=string,JSONPath=`.spec.shape.cpu`
// +kubebuilder:printcolumn:name="Memory",type=string,JSONPath=`.spec.shape.memory`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readyNodes`,description="Nodes that have the snapshot"
// +kubebuilder:printcolumn:name="Building",type=integer,JSONPath=`.status.buildingNodes`,description="Nodes that make it"
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.failedNodes`,description="Nodes that could not make it"
// +kubebuilder:printcolumn:name="Revision",type=string,JSONPath=`.status.revision`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Degraded")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type SnapshotTemplate struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec says what a machine is prepared with.
	//
	// +required
	Spec SnapshotTemplateSpec `json:"spec"`
	// Status is what the controller sees on all nodes.
	//
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
