// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package runc_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
)

// patience is for an emulated machine on a busy host.
const patience = 2 * time.Minute

// pod is a machine with the real agent and a busybox image in slot 0.
type pod struct {
	t *testing.T
	*guest.Client
	machine vm.Machine
}

func bootPod(t *testing.T) *pod {
	t.Helper()
	root := os.Getenv("FIRKIN_KIT_DIR")
	if root == "" {
		t.Fatal("FIRKIN_KIT_DIR is not set: run make guest, then set it to bin/guest")
	}
	k, err := kit.Load(filepath.Join(root, runtime.GOARCH))
	if err != nil {
		t.Fatal(err)
	}
	// Socket paths are short, t.TempDir's are not.
	state, err := os.MkdirTemp("", "fk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	d, err := qemu.Open(t.Context(), qemu.Options{StateDir: state, Kit: k})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	m, err := d.Create(t.Context(), "pod", vm.Config{
		Shape: vm.Shape{VCPUs: 2, MemoryBytes: 256 << 20}, Kit: k, Images: []string{busyboxImage(t, state, d.Features().SlotBytes)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c, ok := m.(vm.Consoler); ok && t.Failed() {
			b, err := c.Console(context.WithoutCancel(t.Context()))
			t.Logf("console (%v):\n%s", err, b)
		}
		_ = m.Delete(context.WithoutCancel(t.Context()))
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := m.DialGuest(ctx, vm.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Dial(ctx, conn, guest.Options{DialTimeout: patience, CallTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	p := &pod{t: t, Client: c, machine: m}
	if _, err := c.Agent.Refresh(t.Context(), connect.NewRequest(&agentv1.RefreshRequest{
		TimeUnixNano: time.Now().UnixNano(), Entropy: make([]byte, 32), MachineId: strings.Repeat("ab", 16), Hostname: "machine", Challenge: make([]byte, 32),
		Network: &agentv1.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3"}},
	})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{
		Hostname: "the-pod", Hosts: []byte("127.0.0.1 localhost\n10.0.2.15 the-pod\n"), ResolvConf: []byte("nameserver 10.0.2.3\n"),
	})); err != nil {
		t.Fatal(err)
	}
	return p
}

// busyboxImage is a disk as vm/image makes them, with users and a link out of the image.
func busyboxImage(t *testing.T, dir string, size int64) string {
	t.Helper()
	root := filepath.Join(dir, "image")
	for _, d := range []string{"bin", "etc", "tmp", "root", "data"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox is missing: install the Debian package busybox-static: %v", err)
	}
	run(t, "cp", busybox, filepath.Join(root, "bin/busybox"))
	for _, name := range strings.Fields("sh cat echo id ls mount env pwd sleep true false dd hostname readlink mknod touch wc stty tty ps kill tail head grep yes chmod mkdir nslookup") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/data:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1001:\nextra:x:2000:app\n",
		"bin/broken": "this is no program\n",
		"bin/noexec": "#!/bin/sh\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "bin/broken"), 0o755); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "image.ext4")
	run(t, "mkfs.ext4", "-q", "-d", root, disk, "32M")
	if err := os.Truncate(disk, size); err != nil {
		t.Fatal(err)
	}
	return disk
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// result is how a container ended.
type result struct {
	out, err string
	*agentv1.ContainerStatus
}

// try runs a container to its end and removes it.
func (p *pod) try(t *testing.T, m *agentv1.CreateContainerRequest) (result, error) {
	t.Helper()
	m.Id = "try"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := p.Containers.CreateContainer(ctx, connect.NewRequest(m)); err != nil {
		return result{}, err
	}
	defer p.remove(t, "try")
	if _, err := p.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: m.Id})); err != nil {
		return result{}, err
	}
	var r result
	s, err := p.Containers.ReadOutput(ctx, connect.NewRequest(&agentv1.ReadOutputRequest{Id: m.Id, Follow: true}))
	if err != nil {
		return result{}, err
	}
	defer func() { _ = s.Close() }()
	for s.Receive() {
		for _, rec := range s.Msg().GetRecords() {
			text := string(rec.GetData())
			if !rec.GetPartial() {
				text += "\n"
			}
			if rec.GetStream() == agentv1.OutputStream_OUTPUT_STREAM_STDERR {
				r.err += text
			} else {
				r.out += text
			}
		}
	}
	if err := s.Err(); err != nil {
		return r, err
	}
	w, err := p.Containers.WatchContainers(ctx, connect.NewRequest(&agentv1.WatchContainersRequest{}))
	if err != nil {
		return r, err
	}
	defer func() { _ = w.Close() }()
	for w.Receive() {
		if st := w.Msg().GetStatus(); st.GetId() == m.Id && st.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED {
			r.ContainerStatus = st
			return r, nil
		}
	}
	return r, w.Err()
}

func (p *pod) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := p.Containers.RemoveContainer(context.WithoutCancel(t.Context()), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: id})); err != nil {
		t.Errorf("remove %s: %v", id, err)
	}
}

func sh(script string) *agentv1.CreateContainerRequest {
	return &agentv1.CreateContainerRequest{Args: []string{"/bin/sh", "-c", script}}
}

func TestRuntimeInMachine(t *testing.T) {
	p := bootPod(t)
	i64 := func(n int64) *int64 { return &n }

	t.Run("Defaults", func(t *testing.T) {
		r, err := p.try(t, sh(`id; pwd; hostname; cat /etc/hosts /etc/hostname /etc/resolv.conf; echo $$ $HOME $PATH
echo err >&2; ls /dev; ls /dev/shm; cat /proc/self/cgroup; grep Cap /proc/self/status; touch /proc/sys/x /sys/x; cat /proc/kcore | wc -c; exit 5`))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s%s%v", r.out, r.err, r.ContainerStatus)
		for _, want := range []string{
			"uid=0(root) gid=0(root)", "\n/\nthe-pod\n", "10.0.2.15 the-pod\n", "nameserver 10.0.2.3\n", "\n1 /root /usr/local/sbin:",
			"0::/\n", "CapEff:\t00000000a80425fb", "null", "ptmx", "urandom",
		} {
			if !strings.Contains(r.out, want) {
				t.Errorf("output lacks %q", want)
			}
		}
		if !strings.HasPrefix(r.err, "err\n") || !strings.Contains(r.err, "Read-only file system") {
			t.Errorf("standard error %q", r.err)
		}
		if r.GetExitCode() != 5 || r.GetReason() != "Error" {
			t.Errorf("exit %v", r.ContainerStatus)
		}
	})

	t.Run("Users", func(t *testing.T) {
		for _, test := range []struct {
			user *agentv1.User
			want string
			code connect.Code
		}{
			{user: &agentv1.User{ImageUser: "app"}, want: "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)"},
			{user: &agentv1.User{ImageUser: "app:extra"}, want: "uid=1000(app) gid=2000(extra) groups=2000(extra)"},
			{user: &agentv1.User{ImageUser: "app", Uid: i64(7), SupplementalGroups: []int64{55}}, want: "uid=7 gid=0(root) groups=0(root),55"},
			{user: &agentv1.User{ImageUser: "nobody-there"}, code: connect.CodeFailedPrecondition},
			{user: &agentv1.User{ImageUser: "root", RequireNonRoot: true}, code: connect.CodeFailedPrecondition},
			{user: &agentv1.User{Uid: i64(1000), RequireNonRoot: true}, want: "uid=1000(app) gid=1001(app)"},
		} {
			r, err := p.try(t, &agentv1.CreateContainerRequest{Args: []string{"id"}, User: test.user})
			if test.code != 0 {
				if connect.CodeOf(err) != test.code {
					t.Errorf("%v: %v", test.user, err)
				}
				continue
			}
			if err != nil || !strings.Contains(r.out, test.want) {
				t.Errorf("%v: %q %v %v", test.user, r.out, r.ContainerStatus, err)
			}
		}
	})

	t.Run("StartErrors", func(t *testing.T) {
		for _, args := range [][]string{{"/no/such/program"}, {"no-such-program"}, {"/bin/noexec"}} {
			r, err := p.try(t, &agentv1.CreateContainerRequest{Args: args})
			if err != nil {
				t.Fatal(err)
			}
			if r.GetExitCode() != 128 || r.GetReason() != "StartError" || r.GetMessage() == "" {
				t.Errorf("%v: %v", args, r.ContainerStatus)
			}
			t.Log(r.GetMessage())
		}
	})

	t.Run("Isolation", func(t *testing.T) {
		r, err := p.try(t, sh(`mknod /tmp/vda b 254 0 && head -c 1 /tmp/vda; mount -t tmpfs x /tmp; ls /scratch /run/firkin; readlink /proc/1/exe`))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(r.err, "not permitted") < 1 || strings.Contains(r.out, "containers") {
			t.Errorf("%q %q", r.out, r.err)
		}
		t.Logf("%s%s", r.out, r.err)
	})

	t.Run("OOM", func(t *testing.T) {
		m := sh(`dd if=/dev/zero of=/dev/null bs=64M count=1; echo survived`)
		m.Resources = &agentv1.Resources{MemoryMaxBytes: 16 << 20, CpuQuotaUs: 100000, CpuWeight: 50}
		r, err := p.try(t, m)
		if err != nil {
			t.Fatal(err)
		}
		if r.GetExitCode() != 137 || r.GetReason() != "OOMKilled" {
			t.Errorf("%q %q %v", r.out, r.err, r.ContainerStatus)
		}
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
		m := sh(`echo x > /disk/x; ls -ln /disk; dd if=/dev/zero of=/mem/big bs=1M count=2; cat /cfg/a /cfg/dir/b; echo y > /cfg/a; cat /one; echo in > /sub/in; ls -d /disk/deep/er; ln -s / /disk/out; grep ' /mem ' /proc/mounts`)
		m.Args[2] = strings.Replace(m.Args[2], "ln -s", "busybox ln -s", 1)
		m.Mounts = []*agentv1.Mount{
			{Volume: "disk", Target: "/disk"}, {Volume: "mem", Target: "/mem"}, {Volume: "cfg", Target: "/cfg", ReadOnly: true},
			{Volume: "cfg", SubPath: "a", Target: "/one", ReadOnly: true}, {Volume: "disk", SubPath: "deep/er", Target: "/sub"},
		}
		r, err := p.try(t, m)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s%s", r.out, r.err)
		for _, want := range []string{"3000", "alphabetaalpha", "/disk/deep/er\n", "tmpfs /mem "} {
			if !strings.Contains(r.out, want) {
				t.Errorf("output lacks %q", want)
			}
		}
		for _, want := range []string{"No space left", "Read-only file system"} {
			if !strings.Contains(r.err, want) {
				t.Errorf("standard error lacks %q", want)
			}
		}
		// The link out of the volume leads to the volume's own root.
		m = sh(`ls /esc`)
		m.Mounts = []*agentv1.Mount{{Volume: "disk", SubPath: "out", Target: "/esc"}}
		if r, err = p.try(t, m); err != nil || strings.Contains(r.out, "scratch") || !strings.Contains(r.out, "deep") {
			t.Errorf("a sub_path that leads out: %q %v", r.out, err)
		}
		for _, v := range []string{"disk", "mem", "cfg"} {
			if _, err := p.Volumes.RemoveVolume(t.Context(), connect.NewRequest(&agentv1.RemoveVolumeRequest{Name: v})); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("Layers", func(t *testing.T) { testLayers(t, p) })

	t.Run("Terminal", func(t *testing.T) {
		m := sh(`tty; stty -a | head -1; echo done`)
		m.Tty = true
		r, err := p.try(t, m)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(r.out, "/dev/pts/0") && !strings.Contains(r.out, "/dev/console") || !strings.Contains(r.out, "done") {
			t.Errorf("%q", r.out)
		}
	})

	t.Run("WorkingDirAndReadOnlyRoot", func(t *testing.T) {
		m := sh(`pwd; touch /x`)
		m.WorkingDir, m.ReadOnlyRoot = "/made/for/this", true
		r, err := p.try(t, m)
		if err != nil || !strings.Contains(r.out, "/made/for/this") || !strings.Contains(r.err, "Read-only") {
			t.Errorf("%q %q %v", r.out, r.err, err)
		}
	})

	t.Run("Exec", func(t *testing.T) {
		create := &agentv1.CreateContainerRequest{Id: "main", Args: []string{"sleep", "1000"}, Env: []string{"FOO=bar"}, WorkingDir: "/data", User: &agentv1.User{ImageUser: "app"}}
		if _, err := p.Containers.CreateContainer(t.Context(), connect.NewRequest(create)); err != nil {
			t.Fatal(err)
		}
		defer p.remove(t, "main")
		if _, err := p.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: "main"})); err != nil {
			t.Fatal(err)
		}
		out, end, err := p.exec(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sh", Args: []string{"-c", "echo $FOO $BAR; pwd; id -u; echo oops >&2; exit 3"}, Envs: map[string]string{"BAR": "baz"}}})
		// Nothing orders the two streams.
		if err != nil || strings.Replace(out, "oops\n", "", 1) != "bar baz\n/data\n1000\n" || !strings.Contains(out, "oops\n") || end.GetExitCode() != 3 {
			t.Errorf("%q %v %v", out, end, err)
		}
		if _, _, err := p.exec(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "nope"}}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("unknown program: %v", err)
		}
		// A process in the background does not keep the end away.
		out, end, err = p.exec(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sh", Args: []string{"-c", "sleep 100 & echo started"}}})
		if err != nil || out != "started\n" || end.GetExitCode() != 0 {
			t.Errorf("%q %v %v", out, end, err)
		}
		out, end, err = p.exec(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sh", Args: []string{"-c", "kill -9 $$"}}})
		if err != nil || end.GetExitCode() != -1 || end.GetStatus() != "signal: killed" {
			t.Errorf("%q %v %v", out, end, err)
		}
		out, end, err = p.exec(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sh", Args: []string{"-c", "tty; stty size"}}, Pty: &process.PTY{Size: &process.PTY_Size{Cols: 91, Rows: 17}}})
		if err != nil || !strings.Contains(out, "/dev/pts/") || !strings.Contains(out, "17 91") {
			t.Errorf("%q %v %v", out, end, err)
		}
	})

	t.Run("SignalsAndStats", func(t *testing.T) {
		create := sh(`trap 'echo got; exit 9' TERM; echo ready; while true; do sleep 0.1; done`)
		create.Id = "sig"
		if _, err := p.Containers.CreateContainer(t.Context(), connect.NewRequest(create)); err != nil {
			t.Fatal(err)
		}
		defer p.remove(t, "sig")
		if _, err := p.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: "sig"})); err != nil {
			t.Fatal(err)
		}
		s, err := p.Containers.ReadOutput(t.Context(), connect.NewRequest(&agentv1.ReadOutputRequest{Id: "sig", Follow: true}))
		if err != nil || !s.Receive() {
			t.Fatal(err, s.Err())
		}
		st, err := p.Agent.Stats(t.Context(), connect.NewRequest(&agentv1.StatsRequest{}))
		if err != nil || len(st.Msg.GetContainers()) != 1 || st.Msg.GetContainers()[0].GetMemoryBytes() <= 0 || st.Msg.GetContainers()[0].GetPids() < 1 {
			t.Errorf("stats %v %v", st, err)
		}
		if _, err := p.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: "sig", Signal: 15})); err != nil {
			t.Fatal(err)
		}
		for s.Receive() {
		}
		list, err := p.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
		if err != nil || list.Msg.GetContainers()[0].GetExitCode() != 9 {
			t.Errorf("%v %v", list, err)
		}
	})

	t.Run("SharedProcessNamespace", func(t *testing.T) {
		if _, err := p.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "shared", ShareProcessNamespace: true})); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"one", "two"} {
			if _, err := p.Containers.CreateContainer(t.Context(), connect.NewRequest(&agentv1.CreateContainerRequest{Id: id, Args: []string{"sleep", "77" + id[:0]}})); err != nil {
				t.Fatal(err)
			}
			defer p.remove(t, id)
			if _, err := p.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: id})); err != nil {
				t.Fatal(err)
			}
		}
		r, err := p.try(t, &agentv1.CreateContainerRequest{Args: []string{"ps"}})
		if err != nil || strings.Count(r.out, "sleep 77") != 2 || !strings.Contains(r.out, "hold-pids") {
			t.Errorf("%q %v", r.out, err)
		}
	})

	t.Run("HowLong", func(t *testing.T) {
		if _, err := p.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "the-pod"})); err != nil {
			t.Fatal(err)
		}
		var creates, starts, execs []time.Duration
		for range 5 {
			before := time.Now()
			if _, err := p.Containers.CreateContainer(t.Context(), connect.NewRequest(&agentv1.CreateContainerRequest{Id: "main", Args: []string{"sleep", "100"}})); err != nil {
				t.Fatal(err)
			}
			created := time.Now()
			if _, err := p.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: "main"})); err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			if _, _, err := p.exec(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "true"}}); err != nil {
				t.Fatal(err)
			}
			creates, starts, execs = append(creates, created.Sub(before)), append(starts, started.Sub(created)), append(execs, time.Since(started))
			p.remove(t, "main")
		}
		for _, d := range [][]time.Duration{creates, starts, execs} {
			slices.Sort(d)
		}
		t.Logf("median: create %v, start %v, exec %v", creates[2], starts[2], execs[2])
	})

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

// exec runs a process in the container "main" and returns its output.
func (p *pod) exec(t *testing.T, m *process.StartRequest) (string, *process.ProcessEvent_EndEvent, error) {
	t.Helper()
	req := connect.NewRequest(m)
	req.Header().Set(guest.HeaderContainer, "main")
	s, err := p.Process.Start(t.Context(), req)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = s.Close() }()
	var out strings.Builder
	var end *process.ProcessEvent_EndEvent
	for s.Receive() {
		e := s.Msg().GetEvent()
		out.Write(e.GetData().GetStdout())
		out.Write(e.GetData().GetStderr())
		out.Write(e.GetData().GetPty())
		if e.GetEnd() != nil {
			end = e.GetEnd()
		}
	}
	if err := s.Err(); err != nil {
		return out.String(), end, err
	}
	if end == nil {
		return out.String(), nil, errors.New("no end event")
	}
	return out.String(), end, nil
}
