// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package simulator_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// qemuEnv makes the test binary a process that runs one machine of the kit of that
// architecture until it is killed.
const qemuEnv = "FIRKIN_TEST_QEMU_ARCH"

// patience is for a boot in emulation on a shared host, which takes 4 to 20 seconds
// alone.
const patience = 3 * time.Minute

// guestKit is the kit that make guest has built.
func guestKit(t testing.TB, arch string) vm.Kit {
	t.Helper()
	dir := os.Getenv("FIRKIN_KIT_DIR")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "bin", "guest")
	}
	k, err := kit.Load(filepath.Join(dir, arch))
	if err != nil {
		t.Fatalf("%v (make guest builds it)", err)
	}
	return k
}

// kitConfiguration is what a driver would make of the kit, with a scratch disk and a
// console file of its own.
func kitConfiguration(t testing.TB, k vm.Kit) (framework.Configuration, string) {
	t.Helper()
	scratch := filepath.Join(t.TempDir(), "scratch")
	if out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", k.Scratch, scratch).CombinedOutput(); err != nil {
		t.Fatalf("copy scratch: %v: %s", err, out)
	}
	return withScratch(t, k, scratch)
}

func withScratch(t testing.TB, k vm.Kit, scratch string) (framework.Configuration, string) {
	t.Helper()
	console, err := os.Create(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { console.Close() })
	return framework.Configuration{
		GuestOS:     framework.Linux,
		CPUs:        1,
		MemoryBytes: 256 << 20,
		Kernel:      k.Kernel,
		Initramfs:   k.Initramfs,
		CommandLine: "console=hvc0 quiet panic=-1 oops=panic random.trust_cpu=on",
		Disks:       []framework.Disk{{Path: scratch, Serial: "scratch"}},
		MAC:         mac,
		Network:     datagrams(t),
		ConsoleOut:  console,
	}, console.Name()
}

// agent dials the agent until it listens, as a driver does.
func agent(ctx context.Context, m framework.Machine) (*guest.Client, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := m.Connect(vm.AgentPort)
		if err == nil {
			return guest.Dial(ctx, conn, guest.Options{DialTimeout: patience})
		}
		if !errors.Is(err, framework.ErrNoListener) {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// wantAnswer has the agent answer and leaves the stream to it open.
func wantAnswer(t *testing.T, m framework.Machine, console string) *guest.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := agent(ctx, m)
	if err != nil {
		t.Fatalf("%v\nstate %s, console: %q", err, m.State(), text(console))
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	return c
}

var (
	sealKey   = bytes.Repeat([]byte{7}, 32)
	challenge = bytes.Repeat([]byte{9}, 32)
)

// refresh gives the guest its network and has it prove that it was sealed: a machine that
// was booted and not restored cannot.
func refresh(t *testing.T, c *guest.Client, other *os.File) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := c.Agent.Refresh(ctx, connect.NewRequest(&agentv1.RefreshRequest{
		TimeUnixNano: time.Now().UnixNano(), Entropy: sealKey, MachineId: strings.Repeat("0a", 16), Hostname: "simulated",
		Network:   &agentv1.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2"},
		Challenge: challenge,
	}))
	must(t, err)
	want := hmac.New(sha256.New, sealKey)
	want.Write(challenge)
	if !bytes.Equal(r.Msg.GetProof(), want.Sum(nil)) {
		t.Error("the guest does not prove that it was sealed")
	}
	// Who has 10.0.2.15? Frames go in, and frames come out.
	request := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0xfe, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0xfe, 10, 0, 2, 2, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15,
	}
	_, err = other.Write(request)
	must(t, err)
	must(t, other.SetReadDeadline(time.Now().Add(time.Minute)))
	for frame := make([]byte, 2048); ; {
		n, err := other.Read(frame)
		if err != nil {
			t.Fatalf("no answer from the guest's network: %v", err)
		}
		if f := frame[:n]; n >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 2 { // an ARP reply
			if !bytes.Equal(f[6:12], mac) || !bytes.Equal(f[22:28], mac) {
				t.Errorf("the guest's MAC address is %x, want %x", f[6:12], []byte(mac))
			}
			return
		}
	}
}

var mac = net.HardwareAddr{0x52, 0x54, 0, 0xf1, 0x4b, 1}

// TestRunsKits boots each kit, saves it twice, goes on, restores it into another machine
// of another process's making, as far as it can tell, and presses its power button.
func TestRunsKits(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			k := guestKit(t, arch)
			host := t.TempDir()
			f := open(t, host, simulator.QEMU(simulator.QEMUOptions{Arch: arch}))
			cfg, console := kitConfiguration(t, k)
			cfg.MachineIdentifier = simulator.Identifier()
			var other *os.File
			cfg.Network, other = network(t)
			m := newMachine(t, f, cfg)
			if err := m.SaveRestoreSupport(); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			must(t, m.Start())
			c := wantAnswer(t, m, console)
			t.Logf("boot to answer: %s", time.Since(begin))
			_, err := c.Agent.Seal(t.Context(), connect.NewRequest(&agentv1.SealRequest{Key: sealKey}))
			must(t, err)
			refresh(t, c, other)
			if got := text(console); !strings.Contains(got, "firkin-agent: ready") {
				t.Errorf("console is %q, want the agent's word", got)
			}
			// One stream at a time.
			if _, err := m.Connect(vm.AgentPort); !errors.Is(err, framework.ErrNoListener) {
				t.Errorf("a second stream: %v, want ErrNoListener", err)
			}
			if _, err := m.Connect(vm.AgentPort + 1); !errors.Is(err, framework.ErrNoListener) {
				t.Errorf("another port: %v, want ErrNoListener", err)
			}
			must(t, m.Pause())
			saved := filepath.Join(t.TempDir(), "saved")
			begin = time.Now()
			must(t, m.Save(saved))
			info, err := os.Stat(saved)
			must(t, err)
			t.Logf("save: %s, %d MiB", time.Since(begin), info.Size()>>20)
			second := filepath.Join(t.TempDir(), "second")
			must(t, m.Save(second))
			same(t, saved, second)
			// The disk of this pause, as a driver clones it.
			clone := filepath.Join(t.TempDir(), "clone")
			if out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", cfg.Disks[0].Path, clone).CombinedOutput(); err != nil {
				t.Fatalf("clone: %v: %s", err, out)
			}
			// It goes on after a save, with its stream.
			must(t, m.Resume())
			must(t, c.Ping(t.Context()))
			must(t, c.Close())
			wantAnswer(t, m, console)
			must(t, m.Pause())
			must(t, m.Save(filepath.Join(t.TempDir(), "third")))
			must(t, m.Stop())
			must(t, m.Close())

			again, console := withScratch(t, k, clone)
			again.MachineIdentifier = cfg.MachineIdentifier
			again.Network, other = network(t)
			r := newMachine(t, f, again)
			begin = time.Now()
			must(t, r.Restore(saved))
			t.Logf("restore: %s", time.Since(begin))
			wantState(t, r, framework.StatePaused)
			must(t, r.Resume())
			c = wantAnswer(t, r, console)
			t.Logf("restore to answer: %s", time.Since(begin))
			refresh(t, c, other)

			// The power button reaches the agent, and its end is seen.
			must(t, r.RequestStop())
			waitState(t, r, framework.StateStopped)
			t.Logf("console: %q", text(console))
		})
	}
}

// TestNothingIsKeptOfQEMU restores one saved machine again and again. What was closed
// leaves no process, no descriptor and no file.
func TestNothingIsKeptOfQEMU(t *testing.T) {
	k := guestKit(t, "amd64")
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	f := open(t, t.TempDir(), simulator.QEMU(simulator.QEMUOptions{Arch: "amd64"}))
	cfg, _ := kitConfiguration(t, k)
	cfg.MachineIdentifier = simulator.Identifier()
	m := newMachine(t, f, cfg)
	must(t, m.Start())
	must(t, m.Pause())
	saved := filepath.Join(t.TempDir(), "saved")
	must(t, m.Save(saved))
	must(t, m.Close())
	use := func(n int) {
		for range n {
			m, err := f.New(cfg)
			must(t, err)
			must(t, m.Restore(saved))
			must(t, m.Resume())
			must(t, m.Close())
		}
	}
	use(1)
	settled := func(what string, want int, count func() int) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		timeout := time.After(time.Minute)
		for count() > want {
			select {
			case <-tick.C:
			case <-timeout:
				t.Errorf("%d %s, want %d", count(), what, want)
				return
			}
		}
	}
	processes := func() int { return len(children(t)) }
	settled("processes", 0, processes)
	before := descriptors(t)
	use(5)
	settled("processes", 0, processes)
	settled("descriptors", before, func() int { return descriptors(t) })
	left, err := os.ReadDir(temporary)
	must(t, err)
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "firkin-sim-") {
			t.Errorf("left: %s", e.Name())
		}
	}
}

// TestPanic: there is no panic device. A kernel that panics and reboots is a guest that
// has ended, and nothing tells why.
func TestPanic(t *testing.T) {
	k := guestKit(t, "amd64")
	f := open(t, t.TempDir(), simulator.QEMU(simulator.QEMUOptions{Arch: "amd64"}))
	cfg, _ := kitConfiguration(t, k)
	cfg.Initramfs = "" // no root to mount
	m := newMachine(t, f, cfg)
	must(t, m.Start())
	waitState(t, m, framework.StateStopped)
	must(t, m.Start()) // a stopped machine starts again
	must(t, m.Stop())
}

// TestHypervisorFails kills QEMU under a machine.
func TestHypervisorFails(t *testing.T) {
	k := guestKit(t, "amd64")
	f := open(t, t.TempDir(), simulator.QEMU(simulator.QEMUOptions{Arch: "amd64"}))
	cfg, _ := kitConfiguration(t, k)
	m := newMachine(t, f, cfg)
	before := children(t)
	must(t, m.Start())
	for pid := range children(t) {
		if !before[pid] {
			p, err := os.FindProcess(pid)
			must(t, err)
			must(t, p.Kill())
		}
	}
	waitState(t, m, framework.StateError)
	if err := m.Stop(); code(err) != framework.CodeInvalidVirtualMachineStateTransition {
		t.Errorf("stop in state error: %v, want code 4", err)
	}
}

// TestDiesWithItsProcess kills the process that runs a machine with kill -9.
func TestDiesWithItsProcess(t *testing.T) {
	guestKit(t, "amd64")
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), qemuEnv+"=amd64", "TMPDIR="+t.TempDir()) // it is killed and cleans nothing up
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Wait()
	var pid int
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if word, ok := strings.CutPrefix(lines.Text(), "hypervisor "); ok {
			pid, err = strconv.Atoi(word)
			must(t, err)
			break
		}
	}
	if pid == 0 {
		t.Fatal("the child has started no machine")
	}
	p, err := os.FindProcess(pid)
	must(t, err)
	must(t, p.Signal(nullSignal)) // it lives
	must(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, out)
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for gone := false; !gone; {
		// Its new parent may not reap it: a zombie has ended.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		gone = err != nil || strings.Contains(string(stat), ") Z ")
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the hypervisor outlived its process by a minute")
		}
	}
}

// TestChild is no test but the other process of TestDiesWithItsProcess.
func TestChild(t *testing.T) {
	arch := os.Getenv(qemuEnv)
	if arch == "" {
		t.Skip("it is the child of another test")
	}
	k := guestKit(t, arch)
	f := open(t, t.TempDir(), simulator.QEMU(simulator.QEMUOptions{Arch: arch}))
	cfg, _ := kitConfiguration(t, k)
	m := newMachine(t, f, cfg)
	must(t, m.Start())
	for pid := range children(t) {
		fmt.Println("hypervisor", pid)
	}
	<-time.After(time.Hour) // not for ever: that would be a deadlock to the runtime
}

// children are the processes that this one has started.
func children(t *testing.T) map[int]bool {
	t.Helper()
	found := map[int]bool{}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	for _, name := range tasks {
		for _, word := range strings.Fields(text(name)) {
			if pid, err := strconv.Atoi(word); err == nil {
				found[pid] = true
			}
		}
	}
	return found
}
