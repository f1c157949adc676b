// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package linux_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux/layout"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

var architectures = []string{"amd64", "arm64"}

// TestInGuest runs runInGuest inside a machine of each kit: an archive that replaces the
// agent by this test's binary is appended to the kit's initramfs.
func TestInGuest(t *testing.T) {
	if inGuest != nil {
		runInGuest(t)
		return
	}
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) {
			k := loadKit(t, arch)
			m := startMachine(t, k, machineOptions{
				initramfs: testInitramfs(t, arch, k.Initramfs),
				images:    []string{imageFile(t, map[string]string{"pattern": pattern}), emptyImage(t)},
			})
			for i := range 2 {
				c := m.dial(t, "agent")
				m.awaitEcho(t, c)
				m.awaitConsole(t, fmt.Sprintf("conversation %d idle", i))
				c.Close()
				// A port does not tell one host from the next when they follow at once: the
				// greeting is there for that.
				m.awaitConsole(t, fmt.Sprintf("conversation %d ended", i))
			}
			m.awaitExit(t)
			b, err := os.ReadFile(m.console)
			if err != nil || !strings.Contains(string(b), guestPassed) {
				t.Errorf("the tests in the guest did not pass: %v", err)
			}
		})
	}
}

// TestAgentDies: the agent is the guest's first process, so that the kernel ends with it, and the
// host sees a machine that died. Nothing of a pod goes on without its agent.
func TestAgentDies(t *testing.T) {
	k := loadKit(t, "amd64")
	k.Cmdline += " " + diesVariable + "=1"
	m := startMachine(t, k, machineOptions{initramfs: testInitramfs(t, "amd64", k.Initramfs), images: []string{emptyImage(t)}})
	m.awaitConsole(t, "panic: the agent dies")
	m.awaitExit(t)
	b, err := os.ReadFile(m.console)
	if err != nil || !strings.Contains(string(b), "Kernel panic - not syncing: Attempted to kill init!") {
		t.Errorf("the kernel did not end for the agent's sake: %v", err)
	}
}

// awaitEcho says hello, again and again since the guest may not listen yet, until the
// guest says it too.
func (m *machine) awaitEcho(t *testing.T, c net.Conn) {
	t.Helper()
	echo := make([]byte, len("hello"))
	for deadline := time.Now().Add(patience); ; {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, echo); err == nil && string(echo) == "hello" {
			return
		}
		m.pause(t, deadline, "echo of hello")
	}
}

func testInitramfs(t *testing.T, arch, initramfs string) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "machines", "-ldflags", "-s -w", "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test for the guest: %v\n%s", err, out)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "initramfs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	appendFile(t, w, initramfs)
	rw := cpio.Newc.Writer(w)
	if err := rw.WriteRecord(cpio.StaticRecord(content, cpio.Info{Name: layout.Agent, Mode: cpio.S_IFREG | 0o755, NLink: 1})); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(rw); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBoot boots the real agent of each kit and ends the machine by its power key.
func TestBoot(t *testing.T) {
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) {
			k := loadKit(t, arch)
			start := time.Now()
			m := startMachine(t, k, machineOptions{images: []string{emptyImage(t)}})
			m.awaitConsole(t, "firkin-agent: ready")
			t.Logf("boot to ready: %s", time.Since(start).Round(10*time.Millisecond))
			client := m.client(t)
			info := clientInfo(t, client)
			if info.GetProtocolVersion() != guest.ProtocolVersion || info.GetAgentVersion() == "" || info.GetKernelRelease() == "" ||
				info.GetMemoryTotalBytes() < 128<<20 || info.GetMachineId() != "" || len(info.GetRandom()) != 16 {
				t.Errorf("info of a fresh machine: %v", info)
			}
			refreshMachine(t, client, "11111111111111111111111111111111", "first")
			if info := clientInfo(t, client); info.GetHostname() != "first" || info.GetMachineId() != "11111111111111111111111111111111" {
				t.Errorf("info after refresh: %v", info)
			}
			m.command(t, "system_powerdown", nil)
			m.awaitExit(t)
		})
	}
}

// TestRestore saves a machine and restores it in another QEMU: the agent goes on and
// answers a new host, and it reads an image that came after it was saved.
func TestRestore(t *testing.T) {
	k := loadKit(t, "amd64")
	slot := emptyImage(t)
	first := startMachine(t, k, machineOptions{images: []string{slot}})
	first.awaitConsole(t, "firkin-agent: ready")
	client := first.client(t)
	refreshMachine(t, client, "11111111111111111111111111111111", "first")
	before := clientInfo(t, client)
	state := filepath.Join(t.TempDir(), "state")
	first.save(t, state)
	scratch := filepath.Join(t.TempDir(), "scratch")
	run(t, "cp", "--sparse=always", first.scratch, scratch)
	first.command(t, "quit", nil)
	first.awaitExit(t)

	start := time.Now()
	second := startMachine(t, k, machineOptions{images: []string{slot}, restore: state, scratch: scratch})
	second.awaitStatus(t, "query-status", "paused")
	second.command(t, "cont", nil)
	client = second.client(t)
	refreshMachine(t, client, "22222222222222222222222222222222", "second")
	after := clientInfo(t, client)
	t.Logf("restore to refreshed: %s", time.Since(start).Round(10*time.Millisecond))
	if after.GetUptimeNano() <= before.GetUptimeNano() {
		t.Errorf("uptime %d after %d: this is another boot", after.GetUptimeNano(), before.GetUptimeNano())
	}
	if after.GetHostname() != "second" || after.GetMachineId() != "22222222222222222222222222222222" {
		t.Errorf("info after refresh: %v", after)
	}
	if b, err := os.ReadFile(second.console); err != nil || strings.Contains(string(b), "ready") {
		t.Errorf("the restored machine booted: %s %v", b, err)
	}

	// It stands still, as with a host that sleeps, and nothing in the guest notices.
	const asleep = 4 * time.Second
	second.command(t, "stop", nil)
	time.Sleep(asleep)
	second.command(t, "cont", nil)
	var keeper guest.ClockKeeper
	if err := keeper.Ask(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if off, err := keeper.Set(t.Context(), client); err != nil || off > -asleep/2 || off < -asleep-patience {
		t.Errorf("after a pause of %s the clock was off by %s, %v", asleep, off, err)
	}
	if err := keeper.Ask(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if off, err := keeper.Set(t.Context(), client); err != nil || off.Abs() > asleep/2 {
		t.Errorf("after it was set the clock was off by %s, %v", off, err)
	}
}

func clientInfo(t *testing.T, c agentv1connect.AgentServiceClient) *agentv1.InfoResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	info, err := c.Info(ctx, connect.NewRequest(&agentv1.InfoRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return info.Msg
}

func refreshMachine(t *testing.T, c agentv1connect.AgentServiceClient, id, hostname string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := refresh()
	_, err := c.Refresh(ctx, connect.NewRequest(&agentv1.RefreshRequest{
		TimeUnixNano: time.Now().UnixNano(), Entropy: r.Entropy, MachineId: id, Hostname: hostname, Challenge: r.Entropy,
		Network: &agentv1.Network{Address: r.Network.Address, Gateway: r.Network.Gateway, Nameservers: r.Network.Nameservers, Mtu: int32(r.Network.MTU)},
	}))
	if err != nil {
		t.Fatal(err)
	}
}

// client dials the agent as the host does.
func (m *machine) client(t *testing.T) agentv1connect.AgentServiceClient {
	t.Helper()
	c, err := guest.Dial(t.Context(), m.dial(t, "agent"), guest.Options{DialTimeout: patience, CallTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.Agent
}
