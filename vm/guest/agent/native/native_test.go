// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/darwin"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/native"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/runtimetest"
)

// mac is a macOS guest as far as Linux can be one: the server, the runtime and the system
// are the real ones; the kernel and the commands of macOS are not.
type mac struct {
	*guest.Client
	dir     string // the scratch directory is in it
	runtime *native.Runtime
	system  *darwin.System

	mu       sync.Mutex
	hostname string // guarded by mu, like all below
	clock    time.Time
}

func (m *mac) SetClock(t time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock = t
	return nil
}

func (m *mac) Hostname() (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hostname, nil
}

func (m *mac) Release() (string, error)                        { return "24.0.0", nil }
func (m *mac) MemoryBytes() (int64, error)                     { return 4 << 30, nil }
func (m *mac) DiskUsage(string) (total, used int64, err error) { return 60 << 30, 20 << 30, nil }
func (m *mac) BootSession() (string, error)                    { return "boot", nil }
func (m *mac) Sync() error                                     { return nil }

// run stands for the commands of macOS.
func (m *mac) run(_ context.Context, stdin, name string, args ...string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch filepath.Base(name) {
	case "hostname":
		m.hostname = args[0]
	case "scutil":
		return stdin, nil
	case "mount_tmpfs":
		return "", errors.New("no memory file systems here")
	case "vm_stat":
		return "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free: 10.\nPages inactive: 20.\nPages speculative: 30.\n", nil
	case "ps":
		return "1 1000 0:01.50\n", nil
	}
	return "", nil
}

// boot starts an agent on a unix socket and dials it as the host does.
func boot(t *testing.T) *mac {
	t.Helper()
	// Socket paths are short, t.TempDir's are not.
	dir, err := os.MkdirTemp("", "fn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { // containers of other users lead through it
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	m := &mac{dir: dir, hostname: "unnamed"}
	for _, name := range []string{"hosts", "random"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.system, err = darwin.New(t.Context(), darwin.Options{
		Run: m.run, Kernel: m, ScratchDir: filepath.Join(dir, "scratch"), EntropyFile: filepath.Join(dir, "random"), HostsFile: filepath.Join(dir, "hosts"),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.runtime = native.New(native.Options{Platform: m.system})
	server, err := agent.NewServer(agent.Options{System: m.system, Runtime: m.runtime, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "vsock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-served, server.Close()); err != nil {
			t.Errorf("end of the agent: %v", err)
		}
	})
	stream, err := net.Dial("unix", filepath.Join(dir, "vsock"))
	if err != nil {
		t.Fatal(err)
	}
	if m.Client, err = guest.Dial(t.Context(), stream, guest.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Client.Close() })
	if _, err := m.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{
		Hostname: "the-pod", Hosts: []byte("127.0.0.1 localhost the-pod\n"), ResolvConf: []byte("nameserver 10.0.2.3\n"),
	})); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *mac) subject(t *testing.T) *runtimetest.Subject {
	dir := filepath.Join(m.dir, "work")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &runtimetest.Subject{Client: m.Client, Dir: dir, Features: runtimetest.Features{Users: os.Geteuid() == 0}}
}

// left are the names of what is in a directory, "" for none.
func left(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestConformance(t *testing.T) {
	m := boot(t)
	s := m.subject(t)
	runtimetest.Run(t, s)
	// What stays is what the containers wrote: the directories that they worked in, and the
	// file of a layer.
	if got := left(t, s.Dir); got != "data left made" {
		t.Errorf("left behind: %s", got)
	}
	if got := left(t, filepath.Join(m.dir, "scratch", "volumes")) + left(t, filepath.Join(m.dir, "scratch", "output")) + left(t, filepath.Join(m.dir, "scratch", "messages")); got != "" {
		t.Errorf("left in the scratch directory: %s", got)
	}
	if hosts, err := os.ReadFile(filepath.Join(m.dir, "hosts")); err != nil || string(hosts) != "127.0.0.1 localhost the-pod\n" {
		t.Errorf("hosts %q %v", hosts, err)
	}
	if name, _ := m.Hostname(); name != "the-pod" {
		t.Errorf("hostname %q", name)
	}
}

func mounting(mounts ...*agentv1.Mount) *agentv1.CreateContainerRequest {
	m := runtimetest.Sh("sleep 1000")
	m.Mounts = mounts
	return m
}

// TestMountPaths: a link is put only where nothing is, and taken away with its last user.
func TestMountPaths(t *testing.T) {
	m := boot(t)
	s := m.subject(t)
	for _, name := range []string{"one", "two"} {
		if _, err := m.Volumes.PutVolume(t.Context(), connect.NewRequest(&agentv1.PutVolumeRequest{Name: name})); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.At("taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	create := func(id string, mounts ...*agentv1.Mount) error {
		r := mounting(mounts...)
		r.Id = id
		return s.Create(t.Context(), r)
	}
	refused := func(what string, err error, words string) {
		t.Helper()
		if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", what, err)
		}
	}
	at := s.At("a", "b", "volume")
	refused("a directory in the way", create("c", &agentv1.Mount{Volume: "one", Target: at}, &agentv1.Mount{Volume: "one", Target: s.At("taken")}), "not free")
	if got := left(t, s.Dir); got != "taken" {
		t.Errorf("a refused container left %s", got)
	}
	for _, id := range []string{"c1", "c2"} {
		if err := create(id, &agentv1.Mount{Volume: "one", Target: at}); err != nil {
			t.Fatal(err)
		}
	}
	refused("another volume on the path", create("c", &agentv1.Mount{Volume: "two", Target: at}), at)
	if err := os.WriteFile(filepath.Join(at, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a path through a file", create("c", &agentv1.Mount{Volume: "two", Target: filepath.Join(at, "file", "below")}), "")
	s.Remove(t, "c1")
	if _, err := os.Stat(filepath.Join(at, "file")); err != nil {
		t.Errorf("the other container's volume: %v", err)
	}
	s.Remove(t, "c2")
	if got := left(t, s.Dir); got != "taken" {
		t.Errorf("left behind: %s", got)
	}
	// What an agent that died has left is no obstacle, and what a container put in the
	// place of its link is not taken away.
	if err := os.Symlink(filepath.Join(m.dir, "scratch", "volumes", "gone"), s.At("stale")); err != nil {
		t.Fatal(err)
	}
	if err := create("c3", &agentv1.Mount{Volume: "one", Target: s.At("stale")}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(s.At("stale")), os.Mkdir(s.At("stale"), 0o755)); err != nil {
		t.Fatal(err)
	}
	s.Remove(t, "c3")
	if got := left(t, s.Dir); got != "stale taken" {
		t.Errorf("left behind: %s", got)
	}
}

// TestOneImage: the machine is its only image.
func TestOneImage(t *testing.T) {
	m := boot(t)
	s := m.subject(t)
	r := runtimetest.Sh("exit 0")
	r.ImageSlot = 1
	if _, err := s.Try(t, r); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "slot 1") {
		t.Errorf("slot 1: %v", err)
	}
	if _, err := m.Containers.PrepareContainer(t.Context(), connect.NewRequest(&agentv1.PrepareContainerRequest{})); err != nil {
		t.Errorf("prepare: %v", err)
	}
	_, err := m.runtime.Create(t.Context(), agent.ContainerSpec{ID: "c", Lower: "/other", ReadOnlyRoot: true, Args: []string{"true"}, WorkingDir: "/"})
	if !errors.Is(err, agent.ErrPrecondition) || !strings.Contains(err.Error(), "image") || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("everything at once: %v", err)
	}
}

// TestDescent: a process that makes a session of its own is still the container's, as long
// as its parents live.
func TestDescent(t *testing.T) {
	m := boot(t)
	s := m.subject(t)
	r := runtimetest.Sh(`"$SELF"; exit 1`)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.Id, r.Env = "c", []string{"SELF=" + self, leaveSession + "=1"}
	s.Run(t, "c", r)
	out, err := m.Containers.ReadOutput(t.Context(), connect.NewRequest(&agentv1.ReadOutputRequest{Id: "c", Follow: true}))
	if err != nil || !out.Receive() {
		t.Fatal(err, out.Err())
	}
	var pid int
	if _, err := fmt.Sscan(string(out.Msg().GetRecords()[0].GetData()), &pid); err != nil {
		t.Fatal(err)
	}
	if err := signal(pid, 0); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	s.Remove(t, "c")
	if err := signal(pid, 0); err == nil && !zombie(pid) {
		t.Errorf("process %d outlived its container", pid)
	}
	_ = out.Close()
}

// TestSealAndRefresh: what proves a restore works as in a Linux guest, and a refresh
// reaches the machine.
func TestSealAndRefresh(t *testing.T) {
	m := boot(t)
	now := time.Now().Add(time.Hour)
	refresh := func() []byte {
		t.Helper()
		resp, err := m.Agent.Refresh(t.Context(), connect.NewRequest(&agentv1.RefreshRequest{
			TimeUnixNano: now.UnixNano(), Entropy: make([]byte, 32), MachineId: strings.Repeat("ab", 16), Hostname: "machine", Challenge: make([]byte, 32),
			Network: &agentv1.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3"}},
		}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg.GetProof()
	}
	if proof := refresh(); len(proof) != 0 {
		t.Errorf("a machine that was never sealed proved %x", proof)
	}
	if _, err := m.Agent.Seal(t.Context(), connect.NewRequest(&agentv1.SealRequest{Key: make([]byte, 32)})); err != nil {
		t.Fatal(err)
	}
	if proof := refresh(); len(proof) != 32 {
		t.Errorf("proof %x", proof)
	}
	info, err := m.Agent.Info(t.Context(), connect.NewRequest(&agentv1.InfoRequest{}))
	if err != nil || info.Msg.GetMachineId() != strings.Repeat("ab", 16) || info.Msg.GetHostname() != "machine" || !info.Msg.GetSealed() || info.Msg.GetMemoryTotalBytes() != 4<<30 {
		t.Errorf("info %v %v", info, err)
	}
	if !m.clock.Equal(now) {
		t.Errorf("clock %s, want %s", m.clock, now)
	}
	if random, err := os.ReadFile(filepath.Join(m.dir, "random")); err != nil || len(random) < 32 {
		t.Errorf("%d bytes of entropy, %v", len(random), err)
	}
}
