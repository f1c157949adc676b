// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// Platform is what an operating system does its own way.
type Platform interface {
	// SetupPod gives the machine the pod's hostname, hosts and resolver. It is called
	// before each container and does nothing when the pod is the one of the last call.
	SetupPod(ctx context.Context, pod agent.Pod) error
	// MountTmpfs mounts an empty memory file system on dir; sizeBytes 0 is the kernel's
	// default.
	MountTmpfs(dir string, sizeBytes int64) error
	// Unmount undoes MountTmpfs. A directory where nothing is mounted is no error.
	Unmount(dir string) error
}

// defaultPath is what macOS has in /etc/paths, and Linux where it is needed.
const defaultPath = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

// Options of a runtime. The zero value is usable.
type Options struct {
	// Root is the directory that stands for the machine's own system: what
	// agent.System.MountImage returns. Empty: "/".
	Root string
	// Path is the PATH of a container that says nothing else. Empty: a default.
	Path string
	// Platform is the operating system's part. Without one the pod's hostname and files
	// are left alone and memory volumes are refused.
	Platform Platform
	// Logger gets what has no caller to be returned to. nil discards.
	Logger *slog.Logger
}

// Runtime runs containers as processes of the machine.
type Runtime struct {
	opts   Options
	links  links
	self   account
	pod    sync.Mutex // one SetupPod at a time
	listed func() ([]entry, error)
}

var _ agent.Runtime = (*Runtime)(nil)

// New makes a runtime. It touches nothing.
func New(o Options) *Runtime {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Path == "" {
		o.Path = defaultPath
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Runtime{opts: o, links: links{table: map[string]*link{}}, self: ownAccount(), listed: processTable}
}

// Create implements agent.Runtime.
func (r *Runtime) Create(ctx context.Context, spec agent.ContainerSpec) (_ agent.Container, err error) {
	if err := r.refuse(spec); err != nil {
		return nil, err
	}
	who, err := r.self.resolve(spec.User)
	if err != nil {
		return nil, err
	}
	if r.opts.Platform != nil {
		r.pod.Lock()
		err := r.opts.Platform.SetupPod(ctx, spec.Pod)
		r.pod.Unlock()
		if err != nil {
			return nil, fmt.Errorf("set up the pod: %w", err)
		}
	}
	c := &container{r: r, spec: spec, who: who, sessions: map[int]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.links.remove(c.linked))
		}
	}()
	if c.linked, err = r.links.place(spec.Mounts); err != nil {
		return nil, err
	}
	p, err := openProcess(who, spec.Stdin, spec.TTY)
	if err != nil {
		return nil, err
	}
	c.process = p
	return c, nil
}

// refuse names everything that this runtime cannot do for a container.
func (r *Runtime) refuse(spec agent.ContainerSpec) error {
	var faults []string
	limits, security := spec.Resources, spec.Security
	images := slices.ContainsFunc(spec.Mounts, func(m agent.Mount) bool { return m.Image })
	for _, f := range []struct {
		wanted bool
		name   string
	}{
		{spec.Lower != r.opts.Root || images, "an image beside the machine's own system"},
		{spec.ReadOnlyRoot, "a read-only root file system"},
		{limits.MemoryMaxBytes > 0, "a memory limit"},
		{limits.CPUQuota > 0, "a CPU limit"},
		{limits.PIDsMax > 0, "a limit of processes"},
		{security.Privileged, "privileges of their own"},
		{len(security.Add)+len(security.Drop) > 0, "capabilities"},
		{security.NoNewPrivileges, "no_new_privs"},
		{security.Seccomp != nil, "a seccomp filter"},
		{spec.Target != nil, "a PID namespace"},
	} {
		if f.wanted {
			faults = append(faults, f.name)
		}
	}
	if faults == nil {
		return nil
	}
	return fmt.Errorf("%w: containers of this machine are plain processes of its operating system, which cannot have %s", agent.ErrPrecondition, strings.Join(faults, ", nor "))
}

// Prepare implements agent.Runtime. There is nothing to be made before it is known what
// runs: what is left, a fork, takes no time.
func (r *Runtime) Prepare(_ context.Context, spec agent.PreparedSpec) error {
	return r.refuse(agent.ContainerSpec{Lower: spec.Lower})
}

// Prepared implements agent.Runtime.
func (r *Runtime) Prepared() int { return 0 }

// MountTmpfs implements agent.Runtime.
func (r *Runtime) MountTmpfs(dir string, sizeBytes int64) error {
	if r.opts.Platform == nil {
		return fmt.Errorf("%w: this machine has no memory file system", agent.ErrPrecondition)
	}
	return r.opts.Platform.MountTmpfs(dir, sizeBytes)
}

// Unmount implements agent.Runtime.
func (r *Runtime) Unmount(dir string) error {
	if r.opts.Platform == nil {
		return nil
	}
	return r.opts.Platform.Unmount(dir)
}
