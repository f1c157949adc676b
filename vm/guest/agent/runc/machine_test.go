// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package runc_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/runtimetest"
)

// TestRuntimeInMachine: a container is what its request says, whether it was made for it
// or taken from those that waited.
func TestRuntimeInMachine(t *testing.T) {
	t.Run("Made", func(t *testing.T) { testRuntime(t, bootPod(t)) })
	t.Run("Prepared", func(t *testing.T) {
		p := bootPod(t)
		p.prepared = true
		testRuntime(t, p)
	})
}

// testRuntime is the suite of all runtimes and what only this one has.
func testRuntime(t *testing.T, p *pod) {
	i64 := func(n int64) *int64 { return &n }
	s := p.subject()

	t.Run("Suite", func(t *testing.T) { runtimetest.Run(t, s) })

	t.Run("Defaults", func(t *testing.T) {
		r, err := p.try(t, runtimetest.Sh(`id; pwd; hostname; cat /etc/hosts /etc/hostname /etc/resolv.conf; echo $$ $HOME $PATH
echo err >&2; ls /dev; ls /dev/shm; cat /proc/self/cgroup; grep Cap /proc/self/status; touch /proc/sys/x /sys/x; cat /proc/kcore | wc -c; exit 5`))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s%s%v", r.Out, r.Err, r.ContainerStatus)
		for _, want := range []string{
			"uid=0(root) gid=0(root)", "\n/\nthe-pod\n", "10.0.2.15 the-pod\n", "nameserver 10.0.2.3\n", "\n1 /root /usr/local/sbin:",
			"0::/\n", "CapEff:\t00000000a80425fb", "null", "ptmx", "urandom",
		} {
			if !strings.Contains(r.Out, want) {
				t.Errorf("output lacks %q", want)
			}
		}
		if !strings.HasPrefix(r.Err, "err\n") || !strings.Contains(r.Err, "Read-only file system") {
			t.Errorf("standard error %q", r.Err)
		}
		if r.GetExitCode() != 5 || r.GetReason() != "Error" {
			t.Errorf("exit %v", r.ContainerStatus)
		}
	})

	t.Run("Users", func(t *testing.T) {
		for _, test := range []struct {
			user *agentv1.User
			want string
		}{
			{user: &agentv1.User{ImageUser: "app"}, want: "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)"},
			{user: &agentv1.User{ImageUser: "app:extra"}, want: "uid=1000(app) gid=2000(extra) groups=2000(extra)"},
			{user: &agentv1.User{ImageUser: "app", Uid: i64(7), SupplementalGroups: []int64{55}}, want: "uid=7 gid=0(root) groups=0(root),55"},
			{user: &agentv1.User{ImageUser: "app", SupplementalGroups: []int64{55}, StrictGroups: true}, want: "uid=1000(app) gid=1001(app) groups=55,1001(app)\n"},
			{user: &agentv1.User{Uid: i64(1000), RequireNonRoot: true}, want: "uid=1000(app) gid=1001(app)"},
		} {
			r, err := p.try(t, &agentv1.CreateContainerRequest{Args: []string{"id"}, User: test.user})
			if err != nil || !strings.Contains(r.Out, test.want) {
				t.Errorf("%v: %q %v %v", test.user, r.Out, r.ContainerStatus, err)
			}
		}
	})

	t.Run("Isolation", func(t *testing.T) {
		r, err := p.try(t, runtimetest.Sh(`mknod /tmp/vda b 254 0 && head -c 1 /tmp/vda; mount -t tmpfs x /tmp; ls /scratch /run/firkin; readlink /proc/1/exe`))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(r.Err, "not permitted") < 1 || strings.Contains(r.Out, "containers") {
			t.Errorf("%q %q", r.Out, r.Err)
		}
		t.Logf("%s%s", r.Out, r.Err)
	})

	t.Run("Volumes", func(t *testing.T) {
		for _, v := range []*agentv1.PutVolumeRequest{{Name: "disk", FsGroup: i64(3000)}, {Name: "mem", Memory: true, SizeLimitBytes: 1 << 20}, {Name: "cfg"}} {
			if _, err := p.Volumes.PutVolume(t.Context(), connect.NewRequest(v)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.Volumes.WriteFiles(t.Context(), connect.NewRequest(&agentv1.WriteFilesRequest{Volume: "cfg", Files: []*agentv1.File{
			{Path: "a", Data: []byte("alpha"), Mode: 0o644}, {Path: "dir/b", Data: []byte("beta"), Mode: 0o400},
		}})); err != nil {
			t.Fatal(err)
		}
		m := runtimetest.Sh(`echo x > /disk/x; ls -ln /disk; dd if=/dev/zero of=/mem/big bs=1M count=2; cat /cfg/a /cfg/dir/b; echo y > /cfg/a; cat /one; echo in > /sub/in; ls -d /disk/deep/er; ln -s / /disk/out; grep ' /mem ' /proc/mounts`)
		m.Args[2] = strings.Replace(m.Args[2], "ln -s", "busybox ln -s", 1)
		m.Mounts = []*agentv1.Mount{
			{Volume: "disk", Target: "/disk"}, {Volume: "mem", Target: "/mem"}, {Volume: "cfg", Target: "/cfg", ReadOnly: true},
			{Volume: "cfg", SubPath: "a", Target: "/one", ReadOnly: true}, {Volume: "disk", SubPath: "deep/er", Target: "/sub"},
		}
		r, err := p.try(t, m)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s%s", r.Out, r.Err)
		for _, want := range []string{"3000", "alphabetaalpha", "/disk/deep/er\n", "tmpfs /mem "} {
			if !strings.Contains(r.Out, want) {
				t.Errorf("output lacks %q", want)
			}
		}
		for _, want := range []string{"No space left", "Read-only file system"} {
			if !strings.Contains(r.Err, want) {
				t.Errorf("standard error lacks %q", want)
			}
		}
		// The link out of the volume leads to the volume's own root.
		m = runtimetest.Sh(`ls /esc`)
		m.Mounts = []*agentv1.Mount{{Volume: "disk", SubPath: "out", Target: "/esc"}}
		if r, err = p.try(t, m); err != nil || strings.Contains(r.Out, "scratch") || !strings.Contains(r.Out, "deep") {
			t.Errorf("a sub_path that leads out: %q %v", r.Out, err)
		}
		for _, v := range []string{"disk", "mem", "cfg"} {
			if _, err := p.Volumes.RemoveVolume(t.Context(), connect.NewRequest(&agentv1.RemoveVolumeRequest{Name: v})); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("Layers", func(t *testing.T) { testLayers(t, p) })

	t.Run("SharedProcessNamespace", func(t *testing.T) {
		if _, err := p.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "shared", ShareProcessNamespace: true})); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"one", "two"} {
			if err := s.Create(t.Context(), &agentv1.CreateContainerRequest{Id: id, Args: []string{"sleep", "77" + id[:0]}}); err != nil {
				t.Fatal(err)
			}
			defer s.Remove(t, id)
			if _, err := p.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: id})); err != nil {
				t.Fatal(err)
			}
		}
		r, err := p.try(t, &agentv1.CreateContainerRequest{Args: []string{"ps"}})
		if err != nil || strings.Count(r.Out, "sleep 77") != 2 || !strings.Contains(r.Out, "hold-pids") {
			t.Errorf("%q %v", r.Out, err)
		}
	})

	// Two that each stay within the machine, and together are more than the pod may have.
	t.Run("PodLimits", func(t *testing.T) {
		limit := func(r *agentv1.Resources) {
			if _, err := p.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "limited", Resources: r})); err != nil {
				t.Fatal(err)
			}
		}
		hungry := runtimetest.Sh(`dd if=/dev/zero of=/dev/null bs=48M count=1 && echo survived`)
		limit(&agentv1.Resources{MemoryMaxBytes: 24 << 20, CpuQuotaUs: 50000})
		if r, err := p.try(t, hungry); err != nil || r.GetExitCode() != 137 || r.GetReason() != "OOMKilled" {
			t.Errorf("beyond the pod's limit: %q %v %v", r.Out, r.ContainerStatus, err)
		}
		limit(nil)
		if r, err := p.try(t, hungry); err != nil || r.Out != "survived\n" {
			t.Errorf("without a limit: %q %v %v", r.Out, r.ContainerStatus, err)
		}
	})

	t.Run("Sysctls", func(t *testing.T) {
		setup := func(all ...*agentv1.Sysctl) error {
			_, err := p.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "sysctls", Sysctls: all}))
			return err
		}
		if err := setup(&agentv1.Sysctl{Name: "net.ipv4.ip_local_port_range", Value: "1111 2222"}, &agentv1.Sysctl{Name: "kernel.shm_rmid_forced", Value: "1"}); err != nil {
			t.Fatal(err)
		}
		r, err := p.try(t, runtimetest.Sh(`cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced`))
		if err != nil || r.Out != "1111\t2222\n1\n" {
			t.Errorf("%q %v", r.Out, err)
		}
		for name, value := range map[string]string{"kernel.no_such": "1", "net.ipv4.ip_local_port_range": "x", "kernel.modprobe": "/x"} {
			if err := setup(&agentv1.Sysctl{Name: name, Value: value}); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), name) {
				t.Errorf("%s=%s: %v", name, value, err)
			}
		}
	})

	t.Run("HowLong", func(t *testing.T) {
		if _, err := p.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "the-pod"})); err != nil {
			t.Fatal(err)
		}
		var creates, starts, execs []time.Duration
		for range 5 {
			m := &agentv1.CreateContainerRequest{Id: "main", Args: []string{"sleep", "100"}}
			if s.BeforeCreate != nil {
				if err := s.BeforeCreate(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			before := time.Now()
			if _, err := p.Containers.CreateContainer(t.Context(), connect.NewRequest(m)); err != nil {
				t.Fatal(err)
			}
			created := time.Now()
			if _, err := p.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: "main"})); err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			if _, _, err := s.Exec(t, "main", &process.StartRequest{Process: &process.ProcessConfig{Cmd: "true"}}); err != nil {
				t.Fatal(err)
			}
			creates, starts, execs = append(creates, created.Sub(before)), append(starts, started.Sub(created)), append(execs, time.Since(started))
			s.Remove(t, "main")
		}
		for _, d := range [][]time.Duration{creates, starts, execs} {
			slices.Sort(d)
		}
		t.Logf("median: create %v, start %v, exec %v", creates[2], starts[2], execs[2])
	})

	t.Run("Alike", func(t *testing.T) { alike(t, p) })

	t.Run("NothingLeft", func(t *testing.T) {
		// A container sees the machine's mounts and cgroups only through the agent, so
		// ask for what the agent holds: removal would have failed otherwise.
		list, err := p.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
		if err != nil || len(list.Msg.GetContainers()) != 0 {
			t.Errorf("%v %v", list, err)
		}
		if _, err := p.Agent.PowerOff(t.Context(), connect.NewRequest(&agentv1.PowerOffRequest{})); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if exit, err := p.machine.Wait(ctx); err != nil || exit.Reason != vm.ExitGuest {
			t.Errorf("exit %v %v", exit, err)
		}
	})
}

// alike compares what a program finds in a container that was made for it and in one that
// had waited.
func alike(t *testing.T, p *pod) {
	const look = `umask; ulimit -a; env | sort; ls -l /proc/self/fd | sed 's/.* \([0-9]* -> [^:]*\).*/\1/; s/^l.* \([0-9]*\)$/\1/'; cat /proc/1/comm /proc/1/oom_score_adj
cut -d' ' -f4- /proc/self/mountinfo | sed 's/upperdir=.*//; s/[^ ]*prepared-[0-9]*//g' | grep -v ' / / ' | sort
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign))' /proc/self/status; ls -la / /dev | awk '{print $1,$3,$4,$NF}'; echo $$; cat /proc/self/cgroup; pwd`
	for _, v := range []string{"disk", "cfg"} {
		if _, err := p.Volumes.PutVolume(t.Context(), connect.NewRequest(&agentv1.PutVolumeRequest{Name: v})); err != nil {
			t.Fatal(err)
		}
	}
	for name, m := range map[string]*agentv1.CreateContainerRequest{
		"root": {Env: []string{"A=1", "A=2"}, WorkingDir: "/made/here"},
		"user": {User: &agentv1.User{ImageUser: "app", SupplementalGroups: []int64{77}}, Stdin: true},
		"restricted": {User: &agentv1.User{ImageUser: "app"}, Resources: &agentv1.Resources{OomScoreAdj: 500, MemoryMaxBytes: 32 << 20, PidsMax: 50}, TerminationMessagePath: "/dev/termination-log",
			Security: &agentv1.Security{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}, NoNewPrivileges: true, Seccomp: &agentv1.Seccomp{Type: agentv1.SeccompType_SECCOMP_TYPE_RUNTIME_DEFAULT}}},
		"volumes": {Mounts: []*agentv1.Mount{{Volume: "disk", Target: "/a/b"}, {Volume: "cfg", Target: "/a/b/c", ReadOnly: true}}},
	} {
		m.Args = []string{"/bin/sh", "-c", look}
		made := *p
		made.prepared = false
		waited := *p
		waited.prepared = true
		x, err := made.try(t, m)
		if err != nil {
			t.Fatal(err)
		}
		y, err := waited.try(t, m)
		if err != nil {
			t.Fatal(err)
		}
		if x.Out != y.Out || x.Err != y.Err || x.GetExitCode() != y.GetExitCode() {
			t.Errorf("%s: made:\n%s%s\nwaited:\n%s%s", name, x.Out, x.Err, y.Out, y.Err)
		}
	}
}
