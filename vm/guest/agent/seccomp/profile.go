// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package seccomp reads seccomp profiles and decides which of their rules a container
// gets. It makes no filter: that is libcontainer's.
//
// A profile is what the OCI runtime specification has as linux.seccomp
// (https://github.com/opencontainers/runtime-spec, config-linux.md), with what Docker's
// profiles add to it: rules that hold only on some architectures, for some capabilities
// or from some kernel on, and a table of architectures (archMap). A pod brings it: it is
// checked whole before anything is done with it.
package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a profile. The kernel takes programs of 4096 instructions at most, and there are
// some 500 system calls.
const (
	// MaxBytes is the size of a profile.
	MaxBytes   = 1 << 20
	maxRules   = 4096
	maxNames   = 4096 // in all rules together
	maxErrno   = 4095
	maxNameLen = 64
)

// Profile is a profile that was read and checked.
type Profile struct {
	DefaultAction   string   `json:"defaultAction"`
	DefaultErrnoRet *uint    `json:"defaultErrnoRet"`
	Architectures   []string `json:"architectures"`
	ArchMap         []Arch   `json:"archMap"`
	Flags           []string `json:"flags"`
	Syscalls        []Rule   `json:"syscalls"`
	// The agent that would answer for SCMP_ACT_NOTIFY: there is none.
	ListenerPath string `json:"listenerPath"`
}

// Arch is an entry of Docker's table of architectures.
type Arch struct {
	Architecture     string   `json:"architecture"`
	SubArchitectures []string `json:"subArchitectures"`
}

// Rule is what happens to some system calls, on some conditions.
type Rule struct {
	Names    []string  `json:"names"`
	Name     string    `json:"name"` // Docker's profiles had it before names
	Action   string    `json:"action"`
	ErrnoRet *uint     `json:"errnoRet"`
	Args     []Arg     `json:"args"`
	Includes Condition `json:"includes"`
	Excludes Condition `json:"excludes"`
}

// Arg is a condition on an argument of the call.
type Arg struct {
	Index    uint   `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo"`
	Op       string `json:"op"`
}

// Condition is Docker's condition on a rule.
type Condition struct {
	Caps      []string `json:"caps"`
	Arches    []string `json:"arches"`
	MinKernel string   `json:"minKernel"`
}

// Decode reads and checks a profile.
func Decode(data []byte) (*Profile, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("it has %d bytes, at most %d are allowed", len(data), MaxBytes)
	}
	var p Profile
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&p); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the profile")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return &p, nil
}

func (p *Profile) check() error {
	if err := checkAction("defaultAction", p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return err
	}
	if p.ListenerPath != "" {
		return errors.New("listenerPath: there is no agent to notify")
	}
	arches := slices.Clone(p.Architectures)
	for _, a := range p.ArchMap {
		arches = append(append(arches, a.Architecture), a.SubArchitectures...)
	}
	for _, a := range arches {
		if !slices.Contains(architectures, a) {
			return fmt.Errorf("architectures: %.64q is none", a)
		}
	}
	for _, f := range p.Flags {
		if !slices.Contains(flags, f) {
			return fmt.Errorf("flags: %.64q is none that is known here", f)
		}
	}
	if len(p.Syscalls) > maxRules {
		return fmt.Errorf("syscalls has %d entries, at most %d are allowed", len(p.Syscalls), maxRules)
	}
	names := 0
	for i := range p.Syscalls {
		r := &p.Syscalls[i]
		if r.Name != "" {
			r.Names, r.Name = append(r.Names, r.Name), ""
		}
		if names += len(r.Names); names > maxNames {
			return fmt.Errorf("syscalls name more than %d calls", maxNames)
		}
		if err := r.check(); err != nil {
			return fmt.Errorf("syscalls[%d].%w", i, err)
		}
	}
	return nil
}

func (r *Rule) check() error {
	if len(r.Names) == 0 {
		return errors.New("names is empty")
	}
	for _, n := range r.Names {
		if n == "" || len(n) > maxNameLen || strings.ContainsRune(n, 0) {
			return fmt.Errorf("names: %.64q is no name of a system call", n)
		}
	}
	if err := checkAction("action", r.Action, r.ErrnoRet); err != nil {
		return err
	}
	if len(r.Args) > 6 {
		return fmt.Errorf("args has %d entries, a system call has 6 arguments at most", len(r.Args))
	}
	for i, a := range r.Args {
		if a.Index > 5 {
			return fmt.Errorf("args[%d].index is %d, want 0 to 5", i, a.Index)
		}
		if !slices.Contains(operators, a.Op) {
			return fmt.Errorf("args[%d].op is %.64q, which is no comparison", i, a.Op)
		}
	}
	for _, c := range []Condition{r.Includes, r.Excludes} {
		if c.MinKernel != "" {
			if _, _, err := release(c.MinKernel); err != nil {
				return fmt.Errorf("minKernel: %w", err)
			}
		}
	}
	return nil
}

func checkAction(field, action string, errno *uint) error {
	if action == "SCMP_ACT_NOTIFY" {
		return fmt.Errorf("%s: there is no agent to notify", field)
	}
	if !slices.Contains(actions, action) {
		return fmt.Errorf("%s is %.64q, which is no action", field, action)
	}
	if errno != nil && *errno > maxErrno {
		return fmt.Errorf("%s: the error number is %d, want 0 to %d", field, *errno, maxErrno)
	}
	return nil
}

// What libseccomp calls things (seccomp.h).
var (
	actions = []string{
		"SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO", "SCMP_ACT_TRACE", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG",
	}
	operators = []string{
		"SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ",
	}
	architectures = []string{
		"SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64",
		"SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64",
		"SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_LOONGARCH64",
	}
	flags = []string{"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"}
)

// release reads the first two numbers of a kernel's release.
func release(s string) (major, minor int, err error) {
	first, rest, ok := strings.Cut(s, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	major, err1 := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(rest)
	if !ok || err1 != nil || err2 != nil || major < 0 {
		return 0, 0, fmt.Errorf("%.64q is no kernel's release", s)
	}
	return major, minor, nil
}
