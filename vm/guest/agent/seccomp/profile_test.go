// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct{ profile, fault string }{
		{`{"defaultAction":"SCMP_ACT_ALLOW"}`, ""},
		{`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],
			"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW","args":[{"index":5,"value":1,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]}]}`, ""},
		{`{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],"syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW","comment":"x",
			"includes":{"caps":["CAP_SYS_ADMIN"],"arches":["amd64"],"minKernel":"4.8"},"excludes":{}}]}`, ""},
		{``, "EOF"},
		{`[]`, "cannot unmarshal"},
		{`{}`, "defaultAction"},
		{`{"defaultAction":"SCMP_ACT_ALLOW"} {}`, "follows"},
		{`{"defaultAction":"ALLOW"}`, "no action"},
		{`{"defaultAction":"SCMP_ACT_NOTIFY"}`, "no agent"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`, "listenerPath"},
		{`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}`, "error number"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["amd64"]}`, "architectures"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"x"}]}`, "architectures"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}`, "flags"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`, "syscalls[0].names"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[""],"action":"SCMP_ACT_ERRNO"}]}`, "syscalls[0].names"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"]}]}`, "syscalls[0].action"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`, "args[0].index"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"op":"=="}]}]}`, "args[0].op"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"new"}}]}`, "minKernel"},
		{`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["` + strings.Repeat(`r","`, maxNames) + `r"],"action":"SCMP_ACT_ERRNO"}]}`, "more than"},
		{`"` + strings.Repeat("x", MaxBytes) + `"`, "at most"},
	} {
		_, err := Decode([]byte(tt.profile))
		if tt.fault == "" && err != nil || tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)) {
			t.Errorf("%.100s: %v, want %q", tt.profile, err, tt.fault)
		}
	}
}

// allowed are the calls that a profile allows whatever their arguments.
func allowed(p *Profile) map[string]bool {
	out := map[string]bool{}
	for _, r := range p.Syscalls {
		if r.Action == "SCMP_ACT_ALLOW" && len(r.Args) == 0 {
			for _, n := range r.Names {
				out[n] = true
			}
		}
	}
	return out
}

func TestDefault(t *testing.T) {
	for _, tt := range []struct {
		name      string
		target    Target
		yes, no   string
		arch      string
		clone3IsE bool
	}{
		{"plain", Target{Arch: "amd64", Kernel: "6.1.0"}, "read execve ptrace arch_prctl modify_ldt", "mount unshare setns clone keyctl add_key bpf chroot io_uring_setup socket personality reboot sync_file_range2 userfaultfd", "SCMP_ARCH_X86", true},
		{"old kernel", Target{Arch: "amd64", Kernel: "4.4.0"}, "read", "ptrace", "SCMP_ARCH_X32", true},
		{"administrator", Target{Arch: "arm64", Kernel: "6.1.0", Capabilities: []string{"CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}}, "mount unshare setns clone clone3 bpf chroot sync_file_range2", "keyctl kexec_load modify_ldt reboot swapon", "SCMP_ARCH_ARM", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Default().For(tt.target)
			if err := p.check(); err != nil {
				t.Fatal(err)
			}
			got := allowed(p)
			for _, n := range strings.Fields(tt.yes) {
				if !got[n] {
					t.Errorf("%s is not allowed", n)
				}
			}
			for _, n := range strings.Fields(tt.no) {
				if got[n] {
					t.Errorf("%s is allowed", n)
				}
			}
			if !slices.Contains(p.Architectures, tt.arch) || len(p.Flags) != 1 {
				t.Errorf("architectures %v, flags %v", p.Architectures, p.Flags)
			}
			if e := slices.ContainsFunc(p.Syscalls, func(r Rule) bool { return r.Names[0] == "clone3" && r.Action == "SCMP_ACT_ERRNO" && *r.ErrnoRet == 38 }); e != tt.clone3IsE {
				t.Errorf("clone3 does not exist: %v", e)
			}
			for _, r := range p.Syscalls {
				if len(r.Includes.Caps)+len(r.Includes.Arches)+len(r.Excludes.Caps) > 0 {
					t.Errorf("conditions are left: %v", r)
				}
			}
		})
	}
}

// Families of sockets are compared in 64 bits, and the kernel takes 32.
func TestDefaultSockets(t *testing.T) {
	may := func(family uint64) bool {
		return slices.ContainsFunc(Default().For(Target{Arch: "amd64", Kernel: "6.1.0"}).Syscalls, func(r Rule) bool {
			return slices.Contains(r.Names, "socket") && !slices.ContainsFunc(r.Args, func(a Arg) bool {
				switch a.Op {
				case "SCMP_CMP_EQ":
					return family != a.Value
				case "SCMP_CMP_NE":
					return family == a.Value
				case "SCMP_CMP_LT":
					return family >= a.Value
				}
				t.Fatalf("the test does not know %s", a.Op)
				return true
			})
		})
	}
	for _, family := range []uint64{1, 2, 10, 16, 17, 29, 39, 44, 45} {
		if !may(family) {
			t.Errorf("family %d is not allowed", family)
		}
	}
	for _, family := range []uint64{38, 40, 1<<32 | 40, 1<<32 | 38, 1<<63 | 40} {
		if may(family) {
			t.Errorf("family %#x is allowed", family)
		}
	}
}

func TestConditions(t *testing.T) {
	target := Target{Arch: "amd64", Capabilities: []string{"A", "B"}, Kernel: "6.1.0-5-cloud"}
	for _, tt := range []struct {
		c        Condition
		includes bool
		excludes bool
	}{
		{Condition{}, true, false},
		{Condition{Caps: []string{"A", "B"}}, true, true},
		{Condition{Caps: []string{"A", "C"}}, false, true},
		{Condition{Arches: []string{"arm64", "amd64"}}, true, true},
		{Condition{Arches: []string{"arm64"}}, false, false},
		{Condition{Arches: []string{"arm64"}, Caps: []string{"A"}}, false, true},
		{Condition{MinKernel: "6.1"}, true, true},
		{Condition{MinKernel: "6.2"}, false, false},
		{Condition{MinKernel: "5.10"}, true, true},
	} {
		if in, ex := tt.c.holds(target, false), tt.c.holds(target, true); in != tt.includes || ex != tt.excludes {
			t.Errorf("%+v: includes %v, excludes %v", tt.c, in, ex)
		}
	}
}

// FuzzProfile: a profile is refused or usable, and what is left of it is one again.
func FuzzProfile(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
		"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}],"includes":{"minKernel":"4.8","caps":["CAP_SYS_ADMIN"]},"excludes":{"arches":["arm64"]}}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"mkdir","action":"SCMP_ACT_ERRNO","errnoRet":13}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":null,"flags":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(data)
		if err != nil {
			return
		}
		for _, arch := range []string{"amd64", "arm64", ""} {
			plain := p.For(Target{Arch: arch, Kernel: "6.1.0"})
			again, err := json.Marshal(plain)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Decode(again); err != nil {
				t.Errorf("%s gives %s, which is refused: %v", data, again, err)
			}
		}
	})
}
