// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io"
	"time"
)

// Kinds of errors of a Runtime, told apart with errors.Is.
var (
	// ErrInvalid: the request names something that cannot be.
	ErrInvalid = errors.New("invalid request")
	// ErrPrecondition: the image or the state of the container does not allow it,
	// for example a user that the image does not have.
	ErrPrecondition = errors.New("precondition failed")
)

// StartError is a program that cannot be executed: it does not exist, is not
// executable, or its working directory cannot be entered.
type StartError struct{ Err error }

func (e *StartError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// Runtime makes containers. Its methods are safe for concurrent use.
type Runtime interface {
	// Create mounts the container's root file system and creates its first process,
	// stopped before the user's program. When it fails, nothing is left.
	//
	// Errors: ErrInvalid, ErrPrecondition, *StartError.
	Create(ctx context.Context, spec ContainerSpec) (Container, error)
	// Prepare makes a container that waits for what it is to run, and is taken by a later
	// Create for the same layers, where that can be: nothing tells but the time that it
	// takes. It may be called again, for more than one.
	Prepare(ctx context.Context, spec PreparedSpec) error
	// Prepared is the number of containers that wait.
	Prepared() int
	// MountTmpfs mounts an empty tmpfs on dir; sizeBytes 0 is the kernel's default.
	MountTmpfs(dir string, sizeBytes int64) error
	// Unmount undoes MountTmpfs.
	Unmount(dir string) error
}

// Container is one container of the pod. Its methods are safe for concurrent use.
type Container interface {
	// Process is the container's first process.
	Process
	// Start lets the first process execute the user's program. Called once.
	// Errors: *StartError.
	Start(ctx context.Context) error
	// Exec starts a further process in the running container.
	// Errors: ErrInvalid, ErrPrecondition, *StartError.
	Exec(ctx context.Context, spec ExecSpec) (Process, error)
	// SignalAll signals every process of the container.
	SignalAll(signal int) error
	// Stats measures the container.
	Stats() (ContainerStats, error)
	// Update sets the limits, all of them or none; OOMScoreAdj stays what it was.
	// Errors: ErrPrecondition when the container uses more memory than it may have then, or
	// has ended.
	Update(ctx context.Context, r Resources) error
	// Remove kills every process of the container, waits for them and releases
	// everything that Create made, on disk as well. Idempotent; after an error it
	// may be called again.
	Remove(ctx context.Context) error
}

// Process is a process of a container. Its methods are safe for concurrent use.
type Process interface {
	// Pid is the process id in the machine.
	Pid() int
	// Stdin is the standard input, or the terminal; nil when it was not asked for.
	// A Write blocks while the process does not read, and Close unblocks it.
	Stdin() io.WriteCloser
	// Stdout is the standard output, or what the terminal shows. It ends with
	// io.EOF when no process has it open any more, and Release ends it earlier.
	Stdout() io.Reader
	// Stderr is the standard error; nil with a terminal.
	Stderr() io.Reader
	// Signal signals the process; nil when it has ended.
	Signal(signal int) error
	// Resize sets the size of the terminal. Errors: ErrPrecondition without one.
	Resize(cols, rows uint16) error
	// Wait blocks until the process has ended. Any number of callers, at any time,
	// get the same exit.
	Wait() Exit
	// Release closes the three streams on this end. It does not end the process.
	Release()
}

// Exit is how a process ended.
type Exit struct {
	// Code is the exit code, 128 + Signal when a signal ended it.
	Code int
	// Signal is the number of the signal that ended it, or 0.
	Signal int
	// OOMKilled: the kernel killed it, or another process of its container, for want
	// of memory.
	OOMKilled bool
	Time      time.Time
}

// ContainerSpec is what a container is made of. The server has checked it.
type ContainerSpec struct {
	ID string
	// Lower is the directory of the image: the read-only lower layer.
	Lower string
	// LowerLayers are directories that lie above Lower, read-only, uppermost first.
	LowerLayers []string
	// Upper is the directory that keeps what the container writes, also after Remove;
	// empty is one of the container's own. It has no other user while the container is.
	Upper string
	Pod   Pod
	Args  []string
	Env   []string
	// WorkingDir is absolute.
	WorkingDir   string
	User         User
	Mounts       []Mount
	TTY          bool
	Stdin        bool
	ReadOnlyRoot bool
	Resources    Resources
	Security     Security
	// Target is a running container whose processes this one sees and is seen by; nil for
	// none but its own, or the pod's.
	Target Container
}

// PreparedSpec is what a container has before it is known what it runs.
type PreparedSpec struct {
	// Lower and LowerLayers are as in ContainerSpec.
	Lower       string
	LowerLayers []string
}

// Pod is what all containers of the machine share.
type Pod struct {
	Hostname   string
	Hosts      []byte
	ResolvConf []byte
	SharePIDs  bool
	// Sysctls are in force: the server has set them. So are Resources, which all containers
	// have together.
	Sysctls   []Sysctl
	Resources Resources
}

// PodLimiter is a Runtime that can limit what all containers use together.
type PodLimiter interface {
	// LimitPod replaces the limits, and nothing when they are what they were. Errors: ErrInvalid
	// when the kernel does not take a value.
	LimitPod(r Resources) error
}

// User as the image writes it, with the pod's numeric overrides.
type User struct {
	Image          string
	UID, GID       *int64
	Groups         []int64
	RequireNonRoot bool
	// StrictGroups: only Groups, none that the image's files name.
	StrictGroups bool
}

// Mount puts a volume, or a part of it, into a container.
type Mount struct {
	// Dir is the directory of the volume in the machine.
	Dir string
	// SubPath is relative to Dir. Containers write to volumes: the path must not be
	// followed out of Dir whatever links are in it.
	SubPath  string
	Target   string
	ReadOnly bool
	// RecursiveReadOnly: what is mounted below is read-only as well.
	RecursiveReadOnly bool
	// Image: Dir is an image's, whose files are read and not executed, as the API says of
	// image volumes. It is ReadOnly too.
	Image bool
}

// Resources are cgroup v2 values; zero is unset.
type Resources struct {
	MemoryMaxBytes int64
	CPUQuota       time.Duration // of processor time per 100 ms
	CPUWeight      int64
	PIDsMax        int64
	// OOMScoreAdj is whom the kernel kills first for want of memory, -1000 to 1000.
	OOMScoreAdj int
}

// ExecSpec is a further process in a container. User and environment are those of
// the container.
type ExecSpec struct {
	Args []string
	// Env is added to the container's.
	Env []string
	// WorkingDir is absolute; empty is the container's.
	WorkingDir string
	// TTY asks for a terminal of this size.
	TTY        bool
	Cols, Rows uint16
	Stdin      bool
}

// ContainerStats is what a container uses.
type ContainerStats struct {
	CPUTime            time.Duration
	MemoryBytes        int64
	WorkingSetBytes    int64
	PIDs               int64
	WritableLayerBytes int64
	// RSSBytes is anonymous memory. Faults are counted since the container was made.
	RSSBytes                    int64
	PageFaults, MajorPageFaults int64
}
