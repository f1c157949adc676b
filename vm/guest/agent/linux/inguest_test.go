// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package linux_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux"
)

// What the guest's half says to the host's half of the tests on the console.
const (
	guestPassed = "firkin-test: passed"
	guestFailed = "firkin-test: failed"
)

// diesVariable, on the kernel's command line, has the agent die once it has booted.
const diesVariable = "FIRKIN_TEST_AGENT_DIES"

// inGuest is the machine that the tests run in, nil on the host.
var inGuest *linux.System

// TestMain also runs inside the guest, where this very binary is the agent of a kit: see
// TestInGuest.
func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	os.Args = []string{os.Args[0], "-test.run=^TestInGuest$", "-test.v"}
	var err error
	if inGuest, err = linux.Boot(); err != nil {
		fmt.Println("boot:", err)
		fmt.Println(guestFailed)
		return // and so end the machine
	}
	if os.Getenv(diesVariable) != "" {
		panic("the agent dies")
	}
	if m.Run() == 0 {
		fmt.Println(guestPassed)
	} else {
		fmt.Println(guestFailed)
	}
	fmt.Println(inGuest.PowerOff())
}

// runInGuest is the guest's half of TestInGuest.
func runInGuest(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *linux.System)
	}{
		{"Root", guestRoot},
		{"Images", guestImages},
		{"Refresh", guestRefresh},
		{"RefreshRefused", guestRefreshRefused},
		{"Stats", guestStats},
		{"Quiesce", guestQuiesce},
		{"Reaper", guestReaper},
		{"Listeners", guestListeners},
		{"Interfaces", guestInterfaces},
		{"Addresses", guestAddresses},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, inGuest) })
	}
}

// pattern is in the image that slot 0 gets; slot 1 is empty.
const pattern = "content of the image in slot 0"

func guestImages(t *testing.T, s *linux.System) {
	ctx := t.Context()
	dir, err := s.MountImage(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.MountImage(ctx, 0)
	if err != nil || again != dir {
		t.Fatalf("second mount: %q, %v", again, err)
	}
	read := func() error {
		b, err := os.ReadFile(filepath.Join(dir, "pattern"))
		if err == nil && string(b) != pattern {
			err = fmt.Errorf("the image holds %q", b)
		}
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err == nil {
		t.Error("the image can be written to")
	}
	if _, err := s.MountImage(ctx, 1); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("mount of the empty slot: %v", err)
	}
	if _, err := s.MountImage(ctx, 2); err == nil || !strings.Contains(err.Error(), "no image slot") {
		t.Errorf("mount of a slot that is not there: %v", err)
	}
}

// guestRoot: the root is not the initramfs itself, and the disks and cgroups are ready.
func guestRoot(t *testing.T, s *linux.System) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mounts), " / / ") {
		t.Errorf("no mount on the root that one could pivot away from:\n%s", mounts)
	}
	entries, err := os.ReadDir(s.ScratchDir())
	if err != nil || len(entries) != 0 {
		t.Errorf("scratch disk at first boot: %v, %v", entries, err)
	}
	all, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	enabled, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cpu", "memory", "pids", "io"} {
		if !strings.Contains(string(enabled), want) {
			t.Errorf("controllers for children: %q of %q, want %s", enabled, all, want)
		}
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(filesystems), "\toverlay\n") {
		t.Errorf("no overlay file system: %v", err)
	}
	if exe, err := os.Readlink("/proc/self/exe"); err != nil || exe != "/agent/firkin-agent" {
		t.Errorf("the agent's own binary: %q, %v", exe, err)
	}
}

func refresh() agent.Refresh {
	entropy := make([]byte, 32)
	_, _ = rand.Read(entropy)
	return agent.Refresh{
		Time: time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC), Entropy: entropy,
		MachineID: "0123456789abcdef0123456789abcdef", Hostname: "pod-a",
		Network: &agent.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3"}, MTU: 1400},
	}
}

func guestRefresh(t *testing.T, s *linux.System) {
	r := refresh()
	for range 2 { // any number of times
		if err := s.Refresh(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	r.Hostname, r.Network = "pod-b", &agent.Network{Address: "10.0.2.16/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.4"}}
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(r.Time); d < 0 || d > time.Minute {
		t.Errorf("the clock is %s away from what was set", d)
	}
	before := time.Now().Add(-time.Hour)
	if err := s.SetClock(before); err != nil {
		t.Error(err)
	}
	if d := s.Now().Round(0).Sub(before.Round(0)); d < 0 || d > time.Minute {
		t.Errorf("the clock is %s away from what it was set back to", d)
	}
	id, err := s.Identity()
	if err != nil || id.MachineID != r.MachineID || id.Hostname != "pod-b" || id.KernelRelease == "" {
		t.Errorf("identity %+v, %v", id, err)
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().MTU != 1400 {
		t.Errorf("MTU %d, want the last one that was set", link.Attrs().MTU)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "10.0.2.16/24" {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil || len(routes) != 2 {
		t.Errorf("routes %v, %v, want one to the network and one to its gateway", routes, err)
	}
	if b, err := os.ReadFile("/etc/resolv.conf"); err != nil || string(b) != "nameserver 10.0.2.4\n" {
		t.Errorf("resolv.conf: %q, %v", b, err)
	}
	r.Network = nil
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if routes, err := netlink.RouteList(nil, netlink.FAMILY_V4); err != nil || len(routes) != 0 {
		t.Errorf("routes of a machine without network: %v, %v", routes, err)
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Errorf("no loopback: %v", err)
	} else {
		l.Close()
	}
}

func guestRefreshRefused(t *testing.T, s *linux.System) {
	before, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*agent.Refresh){
		"machine-id": func(r *agent.Refresh) { r.MachineID = "XYZ" },
		"hostname":   func(r *agent.Refresh) { r.Hostname = "" },
		"entropy":    func(r *agent.Refresh) { r.Entropy = nil },
		"time":       func(r *agent.Refresh) { r.Time = time.Time{} },
		"address":    func(r *agent.Refresh) { r.Network.Address = "10.0.2.15" },
	} {
		r := refresh()
		change(&r)
		if err := s.Refresh(t.Context(), r); err == nil {
			t.Errorf("refresh with a bad %s is no error", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Refresh(ctx, refresh()); !errors.Is(err, context.Canceled) {
		t.Errorf("refresh with a cancelled context: %v", err)
	}
	if after, err := s.Identity(); err != nil || after != before {
		t.Errorf("identity %+v, %v after refused refreshes, want %+v", after, err, before)
	}
}

func guestStats(t *testing.T, s *linux.System) {
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.MemoryTotalBytes < 128<<20 || st.MemoryTotalBytes > 256<<20 || st.MemoryAvailableBytes <= 0 ||
		st.MemoryAvailableBytes >= st.MemoryTotalBytes || st.CPUTime <= 0 || st.ScratchTotalBytes < 15<<30 || st.ScratchUsedBytes > 1<<20 {
		t.Errorf("%+v", st)
	}
}

func guestQuiesce(t *testing.T, s *linux.System) {
	for _, keep := range []bool{true, false} {
		if err := s.Quiesce(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
	}
}

// guestListeners: this machine has a port and no vsock.
func guestListeners(t *testing.T, _ *linux.System) {
	if _, err := linux.ListenVsock(vm.AgentPort); !errors.Is(err, linux.ErrNoVsock) {
		t.Errorf("vsock: %v", err)
	}
	device, ok := linux.FindPort(10 * time.Second)
	if !ok {
		t.Fatal("no port")
	}
	l := linux.ListenPort(device)
	// The host's half says hello until it is echoed, waits for us to be idle, and hangs up;
	// and that twice.
	for i := range 2 {
		buf := make([]byte, 64)
		var c net.Conn
		for {
			var err error
			if c, err = l.Accept(); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(buf)
			if err == nil && strings.HasPrefix(string(buf[:n]), "h") {
				break
			}
			if errors.Is(err, io.EOF) {
				// A host that is away all the time would keep the guest busy so.
				t.Errorf("conversation %d was accepted of nobody", i)
			}
			t.Logf("conversation %d began with %q, %v", i, buf[:n], err)
			c.Close()
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := drain(c); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read past the deadline: %v", err)
		}
		fmt.Printf("conversation %d idle\n", i)
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if err := drain(c); !errors.Is(err, io.EOF) {
			t.Errorf("after the host hung up: %v", err)
		}
		c.Close()
		fmt.Printf("conversation %d ended\n", i)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	l.Close()
	select {
	case err := <-accepted:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept on a closed listener: %v", err)
		}
	case <-time.After(patience):
		t.Error("close does not end a waiting accept")
	}
}

// A privileged container may make interfaces; none is there that nobody made.
func guestInterfaces(t *testing.T, _ *linux.System) {
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "dummy" {
			t.Errorf("interface %s is there already", l.Attrs().Name)
		}
	}
	made := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "made"}}
	if err := netlink.LinkAdd(made); err != nil {
		t.Fatalf("make an interface: %v", err)
	}
	if err := netlink.LinkDel(made); err != nil {
		t.Error(err)
	}
}

// guestAddresses: the machine answers for addresses that are not its own, and a program of the pod has the same
// port of all its own ones.
func guestAddresses(t *testing.T, s *linux.System) {
	r := refresh()
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"10.96.0.1:443", "10.96.0.1:444", "192.0.2.7:443"} {
		l, err := s.ListenAddress(t.Context(), netip.MustParseAddrPort(text))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		own, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "0.0.0.0:443")
		if err != nil {
			t.Fatalf("%s takes the port of the pod: %v", text, err)
		}
		answered := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, err = io.WriteString(conn, text)
				conn.Close()
			}
			answered <- err
		}()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", text)
		cancel()
		if err != nil {
			t.Fatalf("dial %s: %v", text, err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != text {
			t.Errorf("%s answers %q: %v", text, got, err)
		}
		if err := <-answered; err != nil {
			t.Error(err)
		}
		conn.Close()
		own.Close()
	}
	if stats, err := s.Stats(); err != nil || stats.Network.Interface != "eth0" {
		t.Errorf("the machine's traffic is %+v: %v", stats.Network, err)
	}
	if _, err := s.ListenAddress(t.Context(), netip.MustParseAddrPort("[2001:db8::1]:443")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an address of IPv6: %v", err)
	}
}

// drain reads until it cannot.
func drain(c net.Conn) error {
	buf := make([]byte, 64)
	for {
		if _, err := c.Read(buf); err != nil {
			return err
		}
	}
}
