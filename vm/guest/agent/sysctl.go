// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// SysctlSetter is a System whose kernel has parameters that can be set.
type SysctlSetter interface {
	// SetSysctl sets one, whose path is below /proc/sys. Errors: ErrInvalid when the kernel
	// does not have it or does not take the value.
	SetSysctl(path, value string) error
}

// Bounds of sysctls.
const (
	maxSysctls     = 256
	maxSysctlBytes = 4 << 10 // of a value: the kernel takes a page
	maxSysctlName  = 253     // the API's limit
)

// Sysctl is a kernel parameter of the machine.
type Sysctl struct{ Name, Value string }

// sysctlsOf decodes the kernel parameters of a pod. The pod has the kernel to itself, so that
// those which a kubelet calls unsafe harm nobody else. What would run programs outside of every
// container, or end the machine and its agent for a container's fault, is refused.
func sysctlsOf(in []*agentv1.Sysctl) ([]Sysctl, error) {
	if len(in) > maxSysctls {
		return nil, fmt.Errorf("sysctls has %d entries, at most %d are allowed", len(in), maxSysctls)
	}
	var out []Sysctl
	for i, m := range in {
		s := Sysctl{Name: m.GetName(), Value: m.GetValue()}
		if _, err := s.path(); err != nil {
			return nil, fmt.Errorf("sysctls[%d].name: %w", i, err)
		}
		if len(s.Value) > maxSysctlBytes || strings.ContainsRune(s.Value, 0) {
			return nil, fmt.Errorf("sysctls[%d].value of %s has %d bytes or a zero byte, at most %d are allowed", i, s.Name, len(s.Value), maxSysctlBytes)
		}
		if why := s.harm(); why != "" {
			return nil, fmt.Errorf("sysctls[%d]: %s: not for a pod: %s", i, s.Name, why)
		}
		out = append(out, s)
	}
	return out, nil
}

// path is where the parameter is below /proc/sys: dots separate, and a slash stands for a dot
// in a name, of a network interface for example (sysctl.d(5)).
func (s Sysctl) path() (string, error) {
	if len(s.Name) > maxSysctlName {
		return "", fmt.Errorf("it has %d bytes, at most %d are allowed", len(s.Name), maxSysctlName)
	}
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/@:", r)
	}
	p := strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, s.Name)
	if strings.ContainsFunc(s.Name, bad) || !strings.Contains(p, "/") || !filepath.IsLocal(p) || filepath.Clean(p) != p {
		return "", fmt.Errorf("%.64q is no name of a kernel parameter", s.Name)
	}
	return p, nil
}

// harm says what a parameter would do to the machine; "" for nothing.
func (s Sysctl) harm() string {
	const outside = "it runs a program outside of every container"
	switch {
	case s.Name == "kernel.core_pattern" && strings.HasPrefix(strings.TrimSpace(s.Value), "|"):
		return outside
	case s.Name == "kernel.modprobe", s.Name == "kernel.poweroff_cmd", s.Name == "kernel.hotplug",
		strings.HasPrefix(s.Name, "kernel.usermodehelper."), strings.HasPrefix(s.Name, "fs.binfmt_misc."):
		return outside
	case s.Name == "kernel.hostname":
		return "the pod's hostname is set by spec.hostname"
	case s.Name == "kernel.modules_disabled":
		return "the agent loads modules"
	case s.Name == "kernel.panic":
		return "a machine whose kernel panicked is not to boot again by itself"
	case strings.Contains(s.Name, "panic") && strings.TrimSpace(s.Value) != "0": // panic_on_oom, hung_task_panic, and so on
		return "the machine would end with a container's fault"
	}
	return ""
}

// setSysctls sets parameters, in order, up to the first that fails.
func setSysctls(system System, all []Sysctl) error {
	if len(all) == 0 {
		return nil
	}
	setter, ok := system.(SysctlSetter)
	if !ok {
		return fmt.Errorf("%w: sysctls: this machine's kernel has none", ErrInvalid)
	}
	for _, s := range all {
		p, err := s.path()
		if err == nil {
			err = setter.SetSysctl(p, s.Value)
		}
		if err != nil {
			return fmt.Errorf("set sysctl %s: %w", s.Name, err)
		}
	}
	return nil
}
