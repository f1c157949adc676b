// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"fmt"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

var _ agent.PodLimiter = (*Runtime)(nil)

// LimitPod implements agent.PodLimiter: the limits are those of the cgroup that all containers
// are in, a template's own program among them. Which of them is killed for want of memory is decided by their scores.
func (r *Runtime) LimitPod(limits agent.Resources) error {
	resources := &cgroups.Resources{SkipDevices: true, Memory: -1, MemorySwap: -1, CpuQuota: -1, CpuPeriod: cpuPeriod}
	if m := limits.MemoryMaxBytes; m > 0 {
		resources.Memory, resources.MemorySwap = m, m
	}
	if q := limits.CPUQuota; q > 0 {
		resources.CpuQuota = q.Microseconds()
	}
	if n := limits.PIDsMax; n > 0 {
		resources.PidsLimit = &n
	}
	m, err := manager.New(&cgroups.Cgroup{Path: r.opts.CgroupParent, Resources: resources})
	if err == nil {
		err = m.Apply(-1) // makes it; no process is put there
	}
	if err == nil {
		err = m.Set(resources)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", agent.ErrInvalid, err)
	}
	return nil
}
