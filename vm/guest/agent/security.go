// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent/seccomp"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Security is what a container may do in the machine. The zero value is what one begins
// with that asks for nothing.
type Security struct {
	// Privileged: all capabilities and devices, nothing masked, no seccomp filter.
	Privileged bool
	// Add and Drop are capabilities, with CAP_, or ALL. See Capabilities.
	Add, Drop []string
	// NoNewPrivileges: a program gains nothing by set-user-ID or file capabilities.
	NoNewPrivileges bool
	// Seccomp is the profile; nil is no filter. It is nil for a privileged container.
	Seccomp *seccomp.Profile
	// UnmaskedProc: nothing of /proc is hidden or read-only.
	UnmaskedProc bool
}

const allCapabilities = "ALL"

// Capabilities are those that a container may have, sorted. The order of the steps is
// containerd's: ALL comes before names, so that "drop ALL, add one" and "add ALL, drop one"
// both mean what they say, and who both adds and drops a name does not have it.
func (s Security) Capabilities() []string {
	if s.Privileged {
		return KnownCapabilities()
	}
	caps := defaultCapabilities()
	if slices.Contains(s.Add, allCapabilities) {
		caps = KnownCapabilities()
	}
	if slices.Contains(s.Drop, allCapabilities) {
		caps = nil
	}
	for _, c := range s.Add {
		if c != allCapabilities {
			caps = append(caps, c)
		}
	}
	caps = slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(s.Drop, c) })
	slices.Sort(caps)
	return slices.Compact(caps)
}

// defaultCapabilities are those that containerd gives a container.
func defaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
		"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// KnownCapabilities are all of capabilities(7), sorted.
func KnownCapabilities() []string {
	caps := strings.Fields(`CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_AUDIT_WRITE CAP_BLOCK_SUSPEND CAP_BPF CAP_CHECKPOINT_RESTORE CAP_CHOWN
		CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_IPC_LOCK CAP_IPC_OWNER CAP_KILL CAP_LEASE CAP_LINUX_IMMUTABLE
		CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_MKNOD CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_RAW CAP_PERFMON
		CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYSLOG CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_CHROOT CAP_SYS_MODULE CAP_SYS_NICE
		CAP_SYS_PACCT CAP_SYS_PTRACE CAP_SYS_RAWIO CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM`)
	slices.Sort(caps)
	return caps
}

// maxCapabilities bounds a list: more than there are, should some be there twice.
const maxCapabilities = 128

// securityOf decodes what a request says.
func securityOf(m *agentv1.Security) (Security, error) {
	s := Security{Privileged: m.GetPrivileged(), NoNewPrivileges: m.GetNoNewPrivileges(), UnmaskedProc: m.GetUnmaskedProc()}
	var errs [3]error
	s.Add, errs[0] = capabilityNames("security.add_capabilities", m.GetAddCapabilities())
	s.Drop, errs[1] = capabilityNames("security.drop_capabilities", m.GetDropCapabilities())
	s.Seccomp, errs[2] = profileOf(m.GetSeccomp())
	if s.Privileged {
		s.Seccomp = nil
	}
	return s, errors.Join(errs[:]...)
}

// capabilityNames are names as the kernel has them. One that does not exist is refused:
// runc leaves it out, and the container would lack what it counts on.
func capabilityNames(field string, names []string) ([]string, error) {
	if len(names) > maxCapabilities {
		return nil, fmt.Errorf("%s has %d entries, at most %d are allowed", field, len(names), maxCapabilities)
	}
	known := KnownCapabilities()
	var out []string
	for i, name := range names {
		full := strings.ToUpper(name)
		if full != allCapabilities && !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if full != allCapabilities && !slices.Contains(known, full) {
			return nil, fmt.Errorf("%s[%d]: %.64q is no capability", field, i, name)
		}
		out = append(out, full)
	}
	return out, nil
}

func profileOf(m *agentv1.Seccomp) (*seccomp.Profile, error) {
	switch m.GetType() {
	case agentv1.SeccompType_SECCOMP_TYPE_UNSPECIFIED:
		return nil, nil
	case agentv1.SeccompType_SECCOMP_TYPE_RUNTIME_DEFAULT:
		return seccomp.Default(), nil
	case agentv1.SeccompType_SECCOMP_TYPE_LOCALHOST:
		p, err := seccomp.Decode(m.GetProfile())
		if err != nil {
			return nil, fmt.Errorf("security.seccomp.profile: %w", err)
		}
		return p, nil
	}
	return nil, fmt.Errorf("security.seccomp.type is %d, which is none", m.GetType())
}

// resourcesOf decodes and bounds limits.
func resourcesOf(m *agentv1.Resources) (Resources, error) {
	for _, f := range []struct {
		name            string
		value, low, top int64
	}{
		{"memory_max_bytes", m.GetMemoryMaxBytes(), 0, maxMemoryBytes},
		{"cpu_quota_us", m.GetCpuQuotaUs(), 0, maxQuotaUs},
		{"cpu_weight", m.GetCpuWeight(), 0, 10000},
		{"pids_max", m.GetPidsMax(), 0, maxPIDs},
		{"oom_score_adj", int64(m.GetOomScoreAdj()), -1000, 1000},
	} {
		if f.value < f.low || f.value > f.top {
			return Resources{}, fmt.Errorf("resources.%s is %d, want %d to %d", f.name, f.value, f.low, f.top)
		}
	}
	return Resources{
		MemoryMaxBytes: m.GetMemoryMaxBytes(), CPUQuota: microseconds(m.GetCpuQuotaUs()), CPUWeight: m.GetCpuWeight(),
		PIDsMax: m.GetPidsMax(), OOMScoreAdj: int(m.GetOomScoreAdj()),
	}, nil
}
