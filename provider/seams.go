// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process/processconnect"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// Supply gives machines to pods. warmpool is behind it. Safe for concurrent use.
type Supply interface {
	// Acquire makes a machine and returns its lease. It blocks until the agent has
	// answered or ctx ends, and leaves nothing behind when it fails. A refusal is a
	// *RefusedError.
	Acquire(ctx context.Context, req MachineRequest) (Lease, error)

	// Adopt takes over the machine that an earlier process acquired by the same
	// request. Errors: warmpool.ErrQuarantined when it is kept for somebody to look at, which
	// may take any time; vm.ErrNotFound when there is no such machine, or it has
	// exited (what it left is then reaped by Reap); anything else may be tried again.
	Adopt(ctx context.Context, req MachineRequest) (Lease, error)

	// Reconcile looks at the machines that no lease holds, and says what is to become of each,
	// by what the pods' records say. From then on all of them take their room. Those of somebody
	// else are not among them.
	Reconcile(ctx context.Context, claims []MachineClaim) ([]warmpool.Finding, error)

	// Reap ends and deletes a machine that has no lease, by its own id or that of its request.
	// Idempotent.
	Reap(ctx context.Context, machineID string) error

	// ShapeFor returns the shape that carries the given requests and limits, and
	// what such a machine takes from the node. A *RefusedError when none does.
	ShapeFor(need Need) (vm.Shape, Budget, error)

	// ImageSlots is the number of different images one machine can have.
	ImageSlots() int
}

// Need is what the containers of a pod ask for together. Zero means not said.
type Need struct {
	MilliCPURequest, MilliCPULimit       int64
	MemoryRequestBytes, MemoryLimitBytes int64
}

// Budget is what a machine takes from the node.
type Budget struct {
	MilliCPU    int64 `json:"milliCPU"`
	MemoryBytes int64 `json:"memoryBytes"`
	DiskBytes   int64 `json:"diskBytes"`
}

// MachineRequest asks for one machine for one pod.
type MachineRequest struct {
	MachineID string
	PodUID    types.UID
	Shape     vm.Shape
	Budget    Budget
	// Images are the files behind the image slots, in slot order. A machine of a template
	// brings its own: see Lease.Images.
	Images []string
	// Template that the machine is of; nil for none.
	Template *warmpool.Template
	// Refs are the images, of the template's, that the machine must have.
	Refs []string
	// Path asks for a way: PathRestore or PathCold; empty is the fastest.
	Path string
	// Pool, "namespace/name", is the only one to take a warm machine from; empty is any.
	Pool string
}

// Ways that a pod may ask for by AnnotationPath.
const (
	// PathRestore: no warm machine, one from a snapshot.
	PathRestore = "restore"
	// PathCold: booted without any snapshot.
	PathCold = "cold"
)

// RefusedError is a supply's refusal of a machine.
type RefusedError struct {
	// Reason is a CamelCase word: Oversized, InsufficientCapacity, DiskPressure, ...
	Reason string
	// Permanent: waiting will not help, the pod can never run here.
	Permanent bool
	Err       error
}

// Error implements error.
func (e *RefusedError) Error() string { return e.Reason + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Lease is a pod's hold on its machine. Safe for concurrent use.
type Lease interface {
	// MachineID is the id of the machine.
	MachineID() string
	// Path tells how the machine came to be: "warm", "restore", "build", "cold", "adopt".
	Path() string
	// Images tell which image of the template is in which slot; nil for a machine
	// without a template.
	Images() []warmpool.SlotImage
	// Timings tells how long the parts of the acquisition took.
	Timings() Timings
	// Notices are things about the acquisition that the pod's owner should hear.
	Notices() []Notice
	// Guest returns a connection to the agent, the same one until it is lost, then
	// a new one. It blocks until the agent answered or ctx ends.
	Guest(ctx context.Context) (*Guest, error)
	// Wait blocks until the machine has exited.
	Wait(ctx context.Context) (vm.Exit, error)
	// Release stops the machine, deletes it and gives its budget back. It may be
	// called again after an error, and is nil once everything is gone.
	Release(ctx context.Context, grace time.Duration) error
}

// Prober is implemented by leases whose machine's hypervisor can be asked whether it
// lives, beside the guest.
type Prober interface {
	// State asks the hypervisor. It does not wait for the guest and ends with ctx.
	State(ctx context.Context) (vm.State, error)
}

// Timings is how long the parts of an acquisition took.
type Timings struct {
	// Restore is from the request to a machine that runs.
	Restore time.Duration
	// Agent is from there to an agent that answered and was refreshed.
	Agent time.Duration
	// Resume is the part of both in which the machine was on its way: from the beginning
	// of its restore, resume or boot until the agent answered. It ends with the Acquire.
	Resume time.Duration
}

// Notice is something to tell the pod's owner by an event.
type Notice struct {
	// Reason is CamelCase, for example SnapshotQuarantined.
	Reason  string
	Message string
	Warning bool
}

// Guest is the connection to the agent of a machine.
type Guest struct {
	Agent      agentv1connect.AgentServiceClient
	Containers agentv1connect.ContainerServiceClient
	Volumes    agentv1connect.VolumeServiceClient
	Process    processconnect.ProcessClient
	// Done is closed when the connection is lost.
	Done <-chan struct{}
}

// PullPolicy says when to ask the registry.
type PullPolicy string

// Policies, as the API has them.
const (
	PullAlways       PullPolicy = "Always"
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullNever        PullPolicy = "Never"
)

// PullSecret is the content of an image pull secret.
type PullSecret struct {
	// Type is the Secret's: kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg.
	Type string
	Data []byte
}

// PullRequest asks for one image for one pod.
type PullRequest struct {
	// Ref is the reference as the pod has it.
	Ref    string
	Policy PullPolicy
	// Secrets are the pod's pull secrets, in order.
	Secrets []PullSecret
	// Owner keeps the image from being collected until Unpin.
	Owner types.UID
}

// Images is the node's image store. vm/image is behind it. Safe for concurrent use.
type Images interface {
	// Pull returns the image, pinned for the owner. Errors by kind: ErrImageInvalidName,
	// ErrImageNeverPull; all others are worth another try.
	Pull(ctx context.Context, req PullRequest) (Image, error)
	// Pin returns the image of a manifest digest that is already on the node, pinned
	// for the owner, without asking a registry.
	Pin(ctx context.Context, owner types.UID, digest string) (Image, error)
	// Unpin gives back all pins of an owner. Idempotent.
	Unpin(owner types.UID)
}

// Image is an image on the node.
type Image struct {
	// Ref is the reference it was asked by.
	Ref string
	// Digest is the manifest's: "sha256:" and 64 hex digits.
	Digest string
	// ID is what the pod's status shows, for example "docker.io/library/busybox@sha256:...".
	ID string
	// DiskPath is the read-only disk for an image slot.
	DiskPath  string
	SizeBytes int64
	Config    ImageConfig
	// Present: it was there already, nothing was downloaded.
	Present bool
}

// ImageConfig is what an image says about running it.
type ImageConfig struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	User       string
	StopSignal string
}

// ContainerRef names one run of one container of a pod.
type ContainerRef struct {
	PodUID         types.UID
	Namespace, Pod string
	Container      string
	// Attempt counts the runs of the container from 0.
	Attempt int
	// ID is the container's id in the machine.
	ID string
}

// Dial gives a connection to the agent of a pod's machine.
type Dial func(ctx context.Context) (*Guest, error)

// Logs keeps the output of containers in files. provider/podlog implements it.
// Safe for concurrent use.
type Logs interface {
	// Copy appends the container's output, after what is already on disk, to the log
	// file of this attempt, and acknowledges what is durable. It dials again when
	// the connection is lost. It returns nil when the container has exited and
	// all of its output is on disk, and ctx's error when ctx ends. ErrNotFound: the
	// machine does not have the container; all others may be tried again.
	Copy(ctx context.Context, c ContainerRef, dial Dial) error
	// NoRoom tells whether a Copy of it is under way and the last that it could not do was to
	// write, for want of room on the host's disk.
	NoRoom(c ContainerRef) bool
	// Tail returns the end of what is on disk of the container's output: at most so many
	// lines and bytes, both streams as the container wrote them. Nothing when there is none.
	Tail(ctx context.Context, c ContainerRef, lines int64, bytes int) ([]byte, error)
	// RemoveAttempt deletes the log files of one attempt. Idempotent.
	RemoveAttempt(c ContainerRef) error
	// Usage is what the log files of each container of a pod take on disk.
	Usage(uid types.UID) (map[string]LogUsage, error)
	// RemovePod deletes all log files of a pod. Idempotent.
	RemovePod(uid types.UID) error
}

// LogUsage is what log files take on disk.
type LogUsage struct{ Bytes, Files int64 }

// Phase is a part of a pod's start, in order.
type Phase string

// The phases of a pod's start.
const (
	// PhaseScheduleSeen: from the pod being bound until the node saw it.
	PhaseScheduleSeen Phase = "schedule_seen"
	// PhaseImage: until all images are on the node.
	PhaseImage Phase = "image"
	// PhaseRestore: until the machine runs.
	PhaseRestore Phase = "restore"
	// PhaseAgent: until its agent has answered.
	PhaseAgent Phase = "agent"
	// PhaseVolumes: until pod and volumes are set up in the machine.
	PhaseVolumes Phase = "volumes"
	// PhaseContainerStart: until all containers were started.
	PhaseContainerStart Phase = "container_start"
	// PhaseRunningReported: until the API server has the pod's Running.
	PhaseRunningReported Phase = "running_reported"
	// PhaseTotal: all of them, from the node seeing the pod until the API server has its
	// Running.
	PhaseTotal Phase = "total"
)

// Observer is told how long the phases of pod starts took. provider/metrics makes a
// histogram of it. Calls must not block.
type Observer interface {
	// ObservePhase is called once for each phase of each pod's start, when the path
	// is known.
	ObservePhase(phase Phase, path string, took time.Duration)
	// ObserveSample is called for each measurement.
	ObserveSample(sample Sample, took time.Duration)
	// ObserveMachine is called when what is thought of a pod's machine has changed.
	ObserveMachine(health MachineHealth)
}

// Sample names a measurement of what a container's user waits for. Stable.
type Sample string

// The samples that the provider measures, by this host's clock: a guest's may be off by
// more than what is measured.
const (
	// SampleCommandStart: from the request to start a container, or a command in one,
	// until its process runs.
	SampleCommandStart Sample = "command_start"
	// SampleFirstByte: from there until the host had the first of its output. For the
	// first run of each container.
	SampleFirstByte Sample = "first_stdout_byte"
	// SampleResumeToFirstByte: from the beginning of the machine's restore, resume or boot
	// until the host had the first output of any of the pod's containers. Once a pod, of
	// its first machine.
	SampleResumeToFirstByte Sample = "start_resume_to_first_stdout"
	// SampleRecovery: from the beginning of the node process until it had adopted the last
	// machine that an earlier one left to a pod. Once a process, if there is any.
	SampleRecovery Sample = "node_recovery"
)
