// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func runtimeDefault() *agentv1.Seccomp {
	return &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_RUNTIME_DEFAULT}
}

func localhost(profile string) *agentv1.Seccomp {
	return &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_LOCALHOST, Profile: []byte(profile)}
}

// status shows what the kernel knows of a process's rights, and what a filter forbids.
const status = `grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t\n' ' |'; cat /proc/self/oom_score_adj
mkdir /dev/shm/$NAME-$$ && echo made; busybox unshare -U true && echo unshared`

// security: a container may do what its request says, what runs in it later no more, and a
// runtime that has no such thing refuses it.
func security(t *testing.T, s *Subject) {
	deny := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}`
	for _, test := range []struct {
		name     string
		security *agentv1.Security
		user     *agentv1.User
		oom      int32
		want     []string
		not      []string
	}{
		{name: "restricted", security: &agentv1.Security{DropCapabilities: []string{"ALL"}, NoNewPrivileges: true, Seccomp: runtimeDefault()}, user: user(1000, 1000), oom: 997,
			want: []string{"CapEff: 0000000000000000|CapBnd: 0000000000000000|NoNewPrivs: 1|Seccomp: 2|997\n", "\nmade\n"}, not: []string{"unshared"}},
		{name: "default filter", security: &agentv1.Security{AddCapabilities: []string{"NET_ADMIN"}, Seccomp: runtimeDefault()}, oom: -997,
			want: []string{"CapEff: 00000000a80435fb|CapBnd: 00000000a80435fb|NoNewPrivs: 0|Seccomp: 2|-997\n", "\nmade\n"}, not: []string{"unshared"}},
		{name: "default filter of an administrator", security: &agentv1.Security{AddCapabilities: []string{"CAP_SYS_ADMIN"}, Seccomp: runtimeDefault()},
			want: []string{"CapEff: 00000000a82425fb|", "|Seccomp: 2|0\n", "\nmade\n", "unshared"}},
		{name: "own filter", security: &agentv1.Security{Seccomp: localhost(deny)}, user: user(1000, 1000),
			want: []string{"CapEff: 0000000000000000|CapBnd: 00000000a80425fb|NoNewPrivs: 0|Seccomp: 2|0\n", "No space left", "unshared"}, not: []string{"\nmade"}},
		{name: "privileged", security: &agentv1.Security{Privileged: true, Seccomp: localhost(deny)},
			want: []string{"CapEff: 000001ffffffffff|CapBnd: 000001ffffffffff|NoNewPrivs: 0|Seccomp: 0|0\n", "\nmade\n", "unshared"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := Sh(status + "\necho end\nsleep 1000")
			m.Security, m.User, m.Resources = test.security, test.user, &agentv1.Resources{OomScoreAdj: test.oom}
			m.Env = []string{"NAME=" + strings.ReplaceAll(test.name, " ", "-")}
			if !s.Features.Security {
				if _, err := s.Try(t, Refusable(m)); test.security != nil && (connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "plain processes")) {
					t.Errorf("%v", err)
				}
				return
			}
			s.Run(t, "rights", m)
			first := s.outputUntil(t, "rights", "end")
			later, _, err := s.Exec(t, "rights", shell(status))
			if err != nil {
				t.Fatal(err)
			}
			for what, out := range map[string]string{"the first process": first, "a later one": later} {
				for _, want := range test.want {
					if !strings.Contains(out, want) {
						t.Errorf("%s: lacks %q:\n%s", what, want, out)
					}
				}
				for _, not := range test.not {
					if strings.Contains(out, not) {
						t.Errorf("%s: has %q:\n%s", what, not, out)
					}
				}
			}
		})
	}
}

// Refusable is a request that ends at once should it not be refused.
func Refusable(m *agentv1.CreateContainerRequest) *agentv1.CreateContainerRequest {
	m.Args = []string{"/bin/sh", "-c", "exit 0"}
	return m
}

// privileged: a privileged container has the machine's devices and kernel interfaces, and one
// that only has /proc as it is has no more than that.
func privileged(t *testing.T, s *Subject) {
	if !s.Features.Security {
		return
	}
	const look = `mount -t tmpfs x /mnt 2>&1 && echo mounted; grep -c ' /proc/' /proc/mounts; ls /dev | grep -c '^vd'
cat /proc/sys/vm/swappiness > /proc/sys/vm/swappiness && echo proc; mkdir /sys/fs/cgroup/mine && echo cgroup; head -c 1 /dev/vda | wc -c; exit 0`
	for _, test := range []struct {
		name     string
		security *agentv1.Security
		want     string
	}{
		{"privileged", &agentv1.Security{Privileged: true}, "mounted\n0\n+\nproc\ncgroup\n1\n"},
		{"unmasked", &agentv1.Security{UnmaskedProc: true}, "mount: permission denied (are you root?)\n0\n0\nproc\n0\n"},
	} {
		m := Sh("mkdir /mnt; " + look)
		m.Security = test.security
		r, err := s.Try(t, m)
		lines := strings.Split(r.Out, "\n")
		if len(lines) > 2 && lines[2] != "0" {
			lines[2] = "+"
		}
		if got := strings.Join(lines, "\n"); err != nil || got != test.want {
			t.Errorf("%s: %q, want %q: %q %v", test.name, got, test.want, r.Err, err)
		}
	}
}

// targets: a container sees the processes of the one that it is for, and outlives nothing of it.
func targets(t *testing.T, s *Subject) {
	if !s.Features.Security {
		m := Sh(`exit 0`)
		m.TargetContainer = "nobody"
		if _, err := s.Try(t, m); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("an unknown target: %v", err)
		}
		return
	}
	s.Run(t, "target", Sh(`echo ready; exec sleep 7654`))
	s.firstLine(t, "target")
	m := Sh(`tr '\0' ' ' < /proc/1/cmdline; echo; kill -9 1 2>/dev/null; exit 3`)
	m.TargetContainer = "target"
	if r, err := s.Try(t, m); err != nil || !strings.Contains(r.Out, "sleep 7654") {
		t.Errorf("%q %q %v %v", r.Out, r.Err, r.ContainerStatus, err)
	}
	m = Sh(`sleep 1000 & sleep 1000`)
	m.TargetContainer = "target"
	s.Run(t, "debug", m)
	s.Remove(t, "debug")
	if out, _, err := s.Exec(t, "target", shell(`grep -lE 'sleep.1000' /proc/[0-9]*/cmdline; echo end`)); err != nil || strings.Count(out, "\n") > 2 {
		t.Errorf("left: %q %v", out, err)
	}
	for id, code := range map[string]connect.Code{"nobody": connect.CodeNotFound, "try": connect.CodeNotFound} {
		m.TargetContainer = id
		if _, err := s.Try(t, Refusable(m)); connect.CodeOf(err) != code {
			t.Errorf("target %s: %v", id, err)
		}
	}
}

// images: a part of an image is mounted as files that nobody writes or executes.
func images(t *testing.T, s *Subject) {
	slot := int32(0)
	m := Sh(`cat /etc-of/passwd; echo x > /image/x; /image/bin/busybox true; exit 0`)
	m.Mounts = []*agentv1.Mount{{ImageSlot: &slot, Target: s.At("image")}, {ImageSlot: &slot, SubPath: "etc", Target: s.At("etc-of"), RecursiveReadOnly: true}}
	r, err := s.Try(t, m)
	if !s.Features.Security {
		if connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("an image is mounted: %v", err)
		}
		return
	}
	if err != nil || !strings.HasPrefix(r.Out, "root:") || !strings.Contains(r.Out+r.Err, "Read-only file system") || !strings.Contains(r.Err, "Permission denied") {
		t.Errorf("%q %q %v", r.Out, r.Err, err)
	}
	m = Sh(`exit 0`)
	m.Mounts = []*agentv1.Mount{{ImageSlot: &slot, SubPath: "no/such", Target: s.At("image")}}
	if _, err := s.Try(t, m); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a path that the image does not have: %v", err)
	}
	put(t, s, &agentv1.PutVolumeRequest{Name: "deep"})
	m = Sh(`echo x > /deep/x`)
	m.Mounts = []*agentv1.Mount{{Volume: "deep", Target: s.At("deep"), ReadOnly: true, RecursiveReadOnly: true}}
	if r, err := s.Try(t, m); err != nil || !strings.Contains(r.Err, "Read-only file system") {
		t.Errorf("recursive read-only: %q %v", r.Err, err)
	}
}

// updates: limits change while a container runs, all of them or none.
func updates(t *testing.T, s *Subject) {
	s.Run(t, "limited", Sh(`echo ready; exec sleep 1000`))
	s.firstLine(t, "limited")
	update := func(id string, r *agentv1.Resources) error {
		_, err := s.Containers.UpdateContainer(t.Context(), connect.NewRequest(&agentv1.UpdateContainerRequest{Id: id, Resources: r}))
		return err
	}
	if err := update("nobody", nil); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("an unknown container: %v", err)
	}
	if err := update("limited", &agentv1.Resources{CpuWeight: -1}); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "resources.cpu_weight") {
		t.Errorf("a limit that cannot be: %v", err)
	}
	all := &agentv1.Resources{MemoryMaxBytes: 64 << 20, CpuQuotaUs: 50000, CpuWeight: 7, PidsMax: 77, OomScoreAdj: 5}
	if !s.Features.Limits {
		if err := update("limited", all); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("limits: %v", err)
		}
		return
	}
	limits := func() string {
		t.Helper()
		out, _, err := s.Exec(t, "limited", shell(`cd /sys/fs/cgroup && cat memory.max cpu.max cpu.weight pids.max | tr '\n' ' '`))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	const want = "67108864 50000 100000 7 77 "
	if err := update("limited", all); err != nil || limits() != want {
		t.Errorf("limits %q, want %q: %v", limits(), want, err)
	}
	if err := update("limited", &agentv1.Resources{MemoryMaxBytes: 4096, CpuQuotaUs: 1000}); connect.CodeOf(err) != connect.CodeFailedPrecondition || limits() != want {
		t.Errorf("less memory than is used: limits %q, want %q: %v", limits(), want, err)
	}
	if err := update("limited", nil); err != nil || limits() != "max max 100000 100 max " {
		t.Errorf("no limits: %q %v", limits(), err)
	}
	if _, err := s.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: "limited", Signal: 9})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exit(t, "limited"); err != nil {
		t.Fatal(err)
	}
	if err := update("limited", all); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a container that has exited: %v", err)
	}
}
