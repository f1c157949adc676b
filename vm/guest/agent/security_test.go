// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func TestCapabilities(t *testing.T) {
	for _, tt := range []struct {
		name      string
		privilege bool
		add, drop string
		has, not  string
		count     int
	}{
		{name: "default", has: "CAP_CHOWN CAP_NET_RAW", not: "CAP_SYS_ADMIN", count: 14},
		{name: "add", add: "sys_admin CAP_NET_ADMIN CHOWN", has: "CAP_SYS_ADMIN CAP_NET_ADMIN CAP_CHOWN", count: 16},
		{name: "drop", drop: "NET_RAW", not: "CAP_NET_RAW", count: 13},
		{name: "drop all", drop: "ALL"},
		{name: "all but one", add: "all", drop: "NET_RAW", has: "CAP_SYS_ADMIN", not: "CAP_NET_RAW", count: 40},
		{name: "one of none", add: "NET_BIND_SERVICE", drop: "ALL", has: "CAP_NET_BIND_SERVICE", count: 1},
		{name: "both", add: "SYS_TIME", drop: "CAP_SYS_TIME", not: "CAP_SYS_TIME", count: 14},
		{name: "everything", add: "ALL", has: "CAP_SYS_ADMIN CAP_CHECKPOINT_RESTORE", count: 41},
		{name: "nothing", add: "ALL", drop: "ALL"},
		{name: "privileged", privilege: true, drop: "ALL", has: "CAP_SYS_ADMIN", count: 41},
	} {
		s, err := securityOf(&agentv1.Security{Privileged: tt.privilege, AddCapabilities: strings.Fields(tt.add), DropCapabilities: strings.Fields(tt.drop)})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		caps := s.Capabilities()
		if len(caps) != tt.count {
			t.Errorf("%s: %d capabilities %v, want %d", tt.name, len(caps), caps, tt.count)
		}
		for _, c := range strings.Fields(tt.has) {
			if !slices.Contains(caps, c) {
				t.Errorf("%s: has no %s", tt.name, c)
			}
		}
		for _, c := range strings.Fields(tt.not) {
			if slices.Contains(caps, c) {
				t.Errorf("%s: has %s", tt.name, c)
			}
		}
	}
}

// TestContainerSpecFields: what cannot be is refused by the name of its field.
func TestContainerSpecFields(t *testing.T) {
	slot, minus := int32(1), int32(-1)
	long := strings.Repeat("x", maxPathBytes)
	for _, tt := range []struct {
		field string
		m     *agentv1.CreateContainerRequest
	}{
		{"", &agentv1.CreateContainerRequest{}},
		{"security.add_capabilities[1]", &agentv1.CreateContainerRequest{Security: &agentv1.Security{AddCapabilities: []string{"KILL", "FLY"}}}},
		{"security.drop_capabilities", &agentv1.CreateContainerRequest{Security: &agentv1.Security{DropCapabilities: make([]string, maxCapabilities+1)}}},
		{"security.seccomp.profile", &agentv1.CreateContainerRequest{Security: &agentv1.Security{Seccomp: &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_LOCALHOST, Profile: []byte("{")}}}},
		{"security.seccomp.profile", &agentv1.CreateContainerRequest{Security: &agentv1.Security{Privileged: true, Seccomp: &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_LOCALHOST}}}},
		{"security.seccomp.type", &agentv1.CreateContainerRequest{Security: &agentv1.Security{Seccomp: &agentv1.Seccomp{Type: 9}}}},
		{"", &agentv1.CreateContainerRequest{Security: &agentv1.Security{Seccomp: &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_RUNTIME_DEFAULT}}}},
		{"resources.memory_max_bytes", &agentv1.CreateContainerRequest{Resources: &agentv1.Resources{MemoryMaxBytes: -1}}},
		{"resources.cpu_quota_us", &agentv1.CreateContainerRequest{Resources: &agentv1.Resources{CpuQuotaUs: 1 << 40}}},
		{"resources.cpu_weight", &agentv1.CreateContainerRequest{Resources: &agentv1.Resources{CpuWeight: 10001}}},
		{"resources.pids_max", &agentv1.CreateContainerRequest{Resources: &agentv1.Resources{PidsMax: 1 << 40}}},
		{"resources.oom_score_adj", &agentv1.CreateContainerRequest{Resources: &agentv1.Resources{OomScoreAdj: -1001}}},
		{"termination_message_path", &agentv1.CreateContainerRequest{TerminationMessagePath: "relative"}},
		{"termination_message_path", &agentv1.CreateContainerRequest{TerminationMessagePath: "/" + long}},
		{"termination_message_path", &agentv1.CreateContainerRequest{TerminationMessagePath: "/x/.."}},
		{"target_container", &agentv1.CreateContainerRequest{TargetContainer: "../x"}},
		{"mounts[0].volume", &agentv1.CreateContainerRequest{Mounts: []*agentv1.Mount{{Target: "/v"}}}},
		{"mounts[0] has both", &agentv1.CreateContainerRequest{Mounts: []*agentv1.Mount{{Target: "/v", Volume: "v", ImageSlot: &slot}}}},
		{"mounts[0].image_slot", &agentv1.CreateContainerRequest{Mounts: []*agentv1.Mount{{Target: "/v", ImageSlot: &minus}}}},
		{"mounts[0].sub_path", &agentv1.CreateContainerRequest{Mounts: []*agentv1.Mount{{Target: "/v", ImageSlot: &slot, SubPath: "../x"}}}},
		{"mounts[0].recursive_read_only", &agentv1.CreateContainerRequest{Mounts: []*agentv1.Mount{{Target: "/v", Volume: "v", RecursiveReadOnly: true}}}},
		{"", &agentv1.CreateContainerRequest{Mounts: []*agentv1.Mount{{Target: "/v", ImageSlot: &slot, RecursiveReadOnly: true}}}},
		{"user.supplemental_groups", &agentv1.CreateContainerRequest{User: &agentv1.User{SupplementalGroups: make([]int64, maxGroups+1)}}},
		{"user.image_user", &agentv1.CreateContainerRequest{User: &agentv1.User{ImageUser: long}}},
	} {
		tt.m.Id, tt.m.Args = "a", []string{"x"}
		_, err := containerSpec(tt.m)
		if tt.field == "" && err != nil || tt.field != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.field)) {
			t.Errorf("%.200v: %v, want %q", tt.m, err, tt.field)
		}
	}
}

// kernelOf is a kernel with these parameters.
type kernelOf struct {
	System
	set map[string]string
}

func (k *kernelOf) SetSysctl(path, value string) error {
	if _, ok := k.set[path]; !ok {
		return ErrInvalid
	}
	k.set[path] = value
	return nil
}

func TestSysctls(t *testing.T) {
	for _, tt := range []struct{ name, value, path, fault string }{
		{"net.ipv4.tcp_syncookies", "0", "net/ipv4/tcp_syncookies", ""},
		{"net.ipv4.conf.eth0/100.forwarding", "1", "net/ipv4/conf/eth0.100/forwarding", ""},
		{"kernel.core_pattern", "core.%p", "kernel/core_pattern", ""},
		{"vm.panic_on_oom", "0", "vm/panic_on_oom", ""},
		{"kernel.nothing", "1", "", "set sysctl kernel.nothing"},
		{"kernel.core_pattern", " |/bin/sh", "", "outside of every container"},
		{"kernel.modprobe", "/x", "", "outside of every container"},
		{"fs.binfmt_misc.register", ":x", "", "outside of every container"},
		{"kernel.hostname", "x", "", "spec.hostname"},
		{"vm.panic_on_oom", "1", "", "the machine would end"},
		{"kernel.hung_task_panic", "1", "", "the machine would end"},
		{"kernel.softlockup_panic", "1", "", "the machine would end"},
		{"kernel.panic", "10", "", "boot again"},
		{"kernel.modules_disabled", "1", "", "modules"},
		{"", "1", "", "sysctls[0].name"},
		{"kernel", "1", "", "sysctls[0].name"},
		{"kernel.//.x", "1", "", "sysctls[0].name"},
		{"net.//", "1", "", "sysctls[0].name"},
		{".kernel.x", "1", "", "sysctls[0].name"},
		{"kernel x.y", "1", "", "sysctls[0].name"},
		{"kernel." + strings.Repeat("x", 253), "1", "", "sysctls[0].name"},
		{"kernel.x", strings.Repeat("x", maxSysctlBytes+1), "", "sysctls[0].value"},
	} {
		k := &kernelOf{set: map[string]string{"net/ipv4/tcp_syncookies": "", "net/ipv4/conf/eth0.100/forwarding": "", "kernel/core_pattern": "", "vm/panic_on_oom": "", "kernel/x": ""}}
		all, err := sysctlsOf([]*agentv1.Sysctl{{Name: tt.name, Value: tt.value}})
		if err == nil {
			err = setSysctls(k, all)
		}
		if tt.fault == "" && (err != nil || k.set[tt.path] != tt.value) || tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)) {
			t.Errorf("%.64s: %v, %v, want %q", tt.name, err, k.set, tt.fault)
		}
	}
	if err := setSysctls(nil, []Sysctl{{Name: "a.b"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a system without parameters: %v", err)
	}
}

// FuzzContainerSpec: whatever a host asks for is refused, or within its bounds.
func FuzzContainerSpec(f *testing.F) {
	slot, id := int32(1), int64(5)
	for _, m := range []*agentv1.CreateContainerRequest{
		{Id: "a", Args: []string{"sh"}, Env: []string{"A=1"}, WorkingDir: "/w", TerminationMessagePath: "/dev/termination-log", TargetContainer: "b", WritableLayer: "w", LowerLayers: []string{"l"}},
		{Id: "a", Args: []string{"sh"}, User: &agentv1.User{ImageUser: "u:g", Uid: &id, Gid: &id, SupplementalGroups: []int64{7}, StrictGroups: true}, Resources: &agentv1.Resources{MemoryMaxBytes: 1, CpuQuotaUs: 1000, CpuWeight: 5, PidsMax: 9, OomScoreAdj: -997}},
		{Id: "a", Args: []string{"sh"}, Mounts: []*agentv1.Mount{{Volume: "v", SubPath: "a/b", Target: "/v", ReadOnly: true, RecursiveReadOnly: true}, {ImageSlot: &slot, Target: "/i"}}},
		{Id: "a", Args: []string{"sh"}, Security: &agentv1.Security{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CAP_KILL"}, NoNewPrivileges: true, UnmaskedProc: true,
			Seccomp: &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_LOCALHOST, Profile: []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)}}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m agentv1.CreateContainerRequest
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		spec, err := containerSpec(&m)
		if err != nil {
			return
		}
		if checkName("id", spec.ID) != nil || !path.IsAbs(spec.WorkingDir) || len(spec.Mounts) != len(m.GetMounts()) || len(spec.Mounts) > maxMounts {
			t.Errorf("%v gives %+v", &m, spec)
		}
		for _, mount := range spec.Mounts {
			if !path.IsAbs(mount.Target) || mount.Target == "/" || mount.SubPath != "" && !filepath.IsLocal(mount.SubPath) || mount.Image && !mount.ReadOnly {
				t.Errorf("mount %+v", mount)
			}
		}
		known := KnownCapabilities()
		for _, c := range spec.Security.Capabilities() {
			if !slices.Contains(known, c) {
				t.Errorf("capability %q", c)
			}
		}
		if spec.Security.Privileged && spec.Security.Seccomp != nil {
			t.Error("a privileged container has a filter")
		}
		if r := spec.Resources; r.MemoryMaxBytes < 0 || r.CPUQuota < 0 || r.PIDsMax < 0 || r.OOMScoreAdj < -1000 || r.OOMScoreAdj > 1000 {
			t.Errorf("resources %+v", r)
		}
	})
}
