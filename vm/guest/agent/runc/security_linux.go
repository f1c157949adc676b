// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	libseccomp "github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/seccomp"
)

// secure sets what libcontainer applies to each process of the container.
func (c *container) secure(cfg *configs.Config) (err error) {
	s := c.spec.Security
	cfg.Capabilities = capabilities(s.Capabilities())
	cfg.NoNewPrivileges = s.NoNewPrivileges
	cfg.OomScoreAdj = nil
	if adj := c.spec.Resources.OOMScoreAdj; adj != 0 {
		cfg.OomScoreAdj = &adj
	}
	cfg.Seccomp, err = filter(s)
	return err
}

// capabilities are what a process gets that may have these. None is inheritable
// (CVE-2022-24769) or ambient: as with containerd, a user other than root keeps what the kernel
// leaves it when it executes a program.
func capabilities(caps []string) *configs.Capabilities {
	return &configs.Capabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// filter is the seccomp filter of a container, in libcontainer's terms; nil is none.
func filter(s agent.Security) (*configs.Seccomp, error) {
	if s.Seccomp == nil {
		return nil, nil
	}
	if !libseccomp.Enabled {
		return nil, fmt.Errorf("%w: the agent was built without seccomp", agent.ErrPrecondition)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	p := s.Seccomp.For(seccomp.Target{Arch: runtime.GOARCH, Capabilities: s.Capabilities(), Kernel: unix.ByteSliceToString(uts.Release[:])})
	out := &configs.Seccomp{DefaultErrnoRet: p.DefaultErrnoRet}
	var err error
	if out.DefaultAction, err = libseccomp.ConvertStringToAction(p.DefaultAction); err != nil {
		return nil, fmt.Errorf("%w: %w", agent.ErrInvalid, err)
	}
	for _, a := range p.Architectures {
		name, err := libseccomp.ConvertStringToArch(a)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", agent.ErrInvalid, err)
		}
		out.Architectures = append(out.Architectures, name)
	}
	for _, f := range p.Flags {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	for _, r := range p.Syscalls {
		action, err := libseccomp.ConvertStringToAction(r.Action)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", agent.ErrInvalid, err)
		}
		var args []*configs.Arg
		for _, a := range r.Args {
			op, err := libseccomp.ConvertStringToOperator(a.Op)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", agent.ErrInvalid, err)
			}
			args = append(args, &configs.Arg{Index: a.Index, Value: a.Value, ValueTwo: a.ValueTwo, Op: op})
		}
		for _, name := range r.Names {
			out.Syscalls = append(out.Syscalls, &configs.Syscall{Name: name, Action: action, ErrnoRet: r.ErrnoRet, Args: args})
		}
	}
	return out, nil
}

// Update implements agent.Container.
func (c *container) Update(_ context.Context, r agent.Resources) error {
	if limit := r.MemoryMaxBytes; limit > 0 {
		st, err := c.lib.Stats()
		if err != nil {
			return fmt.Errorf("measure container: %w", err)
		}
		// The kernel would take the cache back and then kill for the rest.
		if cg := st.CgroupStats; cg != nil {
			if used := workingSet(cg); used > limit {
				return fmt.Errorf("%w: it uses %d bytes of memory, more than the new limit of %d", agent.ErrPrecondition, used, limit)
			}
		}
	}
	if err := c.setLimits(r); err != nil {
		if errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", agent.ErrPrecondition, err)
		}
		// Some may have been set before one was refused.
		return errors.Join(fmt.Errorf("set limits: %w", err), c.setLimits(c.spec.Resources))
	}
	r.OOMScoreAdj = c.spec.Resources.OOMScoreAdj
	c.spec.Resources = r
	return nil
}

// setLimits sets every limit, those that are no more as well.
func (c *container) setLimits(r agent.Resources) error {
	resources := c.resources(r)
	const none = -1
	if r.MemoryMaxBytes == 0 {
		resources.Memory, resources.MemorySwap = none, none
	}
	if r.CPUQuota == 0 {
		resources.CpuQuota, resources.CpuPeriod = none, cpuPeriod
	}
	if r.CPUWeight == 0 {
		resources.CpuWeight = 100 // the kernel's default
	}
	if r.PIDsMax == 0 {
		unlimited := int64(none)
		resources.PidsLimit = &unlimited
	}
	cfg := c.lib.Config()
	cg := *cfg.Cgroups
	cg.Resources = resources
	cfg.Cgroups = &cg
	return c.lib.Set(cfg)
}

// workingSet is memory less what the kernel takes back first.
func workingSet(st *cgroups.Stats) int64 {
	return max(int64(st.MemoryStats.Usage.Usage)-int64(st.MemoryStats.Stats["inactive_file"]), 0)
}
