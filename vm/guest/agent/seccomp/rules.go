// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"slices"
)

// Target is the container that a profile is for.
type Target struct {
	// Arch is the machine's, as Go names it.
	Arch string
	// Capabilities are those that the container may have at all, with CAP_.
	Capabilities []string
	// Kernel is the release of the machine's kernel.
	Kernel string
}

// For returns the profile without what does not hold for a container: its rules have no
// conditions, and its architectures are a plain list.
func (p *Profile) For(t Target) *Profile {
	out := &Profile{
		DefaultAction: p.DefaultAction, DefaultErrnoRet: p.DefaultErrnoRet,
		Architectures: slices.Clone(p.Architectures), Flags: slices.Clone(p.Flags),
	}
	native := nativeArch[t.Arch]
	for _, a := range p.ArchMap {
		if a.Architecture == native {
			out.Architectures = append(append(out.Architectures, native), a.SubArchitectures...)
		}
	}
	slices.Sort(out.Architectures)
	out.Architectures = slices.Compact(out.Architectures)
	if out.Flags == nil {
		// runc's default: without it the kernel slows down every program that has a filter.
		out.Flags = []string{"SECCOMP_FILTER_FLAG_SPEC_ALLOW"}
	}
	for _, r := range p.Syscalls {
		if r.Includes.holds(t, false) && !r.Excludes.holds(t, true) {
			out.Syscalls = append(out.Syscalls, Rule{Names: r.Names, Action: r.Action, ErrnoRet: r.ErrnoRet, Args: r.Args})
		}
	}
	return out
}

// nativeArch is libseccomp's name of an architecture.
var nativeArch = map[string]string{"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}

// holds tells whether a condition does. Of what includes a rule everything must be so, of
// what excludes it one thing is enough, and an empty condition excludes nothing.
func (c Condition) holds(t Target, excluding bool) bool {
	var facts []bool
	if len(c.Arches) > 0 {
		facts = append(facts, slices.Contains(c.Arches, t.Arch))
	}
	for _, name := range c.Caps {
		facts = append(facts, slices.Contains(t.Capabilities, name))
	}
	if c.MinKernel != "" {
		facts = append(facts, atLeast(t.Kernel, c.MinKernel))
	}
	if excluding {
		return slices.Contains(facts, true)
	}
	return !slices.Contains(facts, false)
}

func atLeast(kernel, want string) bool {
	major, minor, err := release(kernel)
	wantMajor, wantMinor, err2 := release(want)
	if err != nil || err2 != nil {
		return false
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}
