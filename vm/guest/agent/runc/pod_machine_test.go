// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package runc_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/guest/runtimetest"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
)

// patience is for an emulated machine on a busy host.
const patience = 2 * time.Minute

// pod is a machine with the real agent and a busybox image in slot 0.
type pod struct {
	t *testing.T
	*guest.Client
	machine vm.Machine
	// prepared: every container is to find one that waits.
	prepared bool
}

// subject is the pod for the suite. Where a container is prepared before each, one that
// does not take it leaves one too many, and the agent soon refuses to prepare more.
func (p *pod) subject() *runtimetest.Subject {
	s := &runtimetest.Subject{
		Client: p.Client, Patience: patience,
		Features: runtimetest.Features{OwnRoot: true, ReadOnly: true, Limits: true, MemoryVolumes: true, Users: true, Security: true},
	}
	if p.prepared {
		s.BeforeCreate = func(ctx context.Context, m *agentv1.CreateContainerRequest) error {
			sec := m.GetSecurity()
			if m.GetTty() || m.GetReadOnlyRoot() || m.GetWritableLayer() != "" || m.GetTargetContainer() != "" || sec.GetPrivileged() || sec.GetUnmaskedProc() { // those take none
				return nil
			}
			_, err := p.Containers.PrepareContainer(ctx, connect.NewRequest(&agentv1.PrepareContainerRequest{ImageSlot: m.GetImageSlot(), LowerLayers: m.GetLowerLayers()}))
			return err
		}
	}
	return s
}

// try runs a container to its end and removes it.
func (p *pod) try(t *testing.T, m *agentv1.CreateContainerRequest) (runtimetest.Result, error) {
	t.Helper()
	return p.subject().Try(t, m)
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
	for _, name := range strings.Fields("sh cat echo id ls mount env pwd sleep true false dd hostname readlink mknod touch wc sort sed awk cut stty tty ps kill tail head grep yes chmod mkdir nslookup tr rm") {
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
