// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package simulator_test

import (
	"bufio"
	"context"
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

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
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
		MAC:         net.HardwareAddr{0x52, 0x54, 0, 0xf1, 0x4b, 1},
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

func wantAnswer(t *testing.T, m framework.Machine, console string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := agent(ctx, m)
	if err != nil {
		t.Fatalf("%v\nstate %s, console: %q", err, m.State(), text(console))
	}
	if err := errors.Join(c.Ping(ctx), c.Close()); err != nil {
		t.Errorf("ping: %v", err)
	}
}

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
			m := newMachine(t, f, cfg)
			if err := m.SaveRestoreSupport(); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			must(t, m.Start())
			wantAnswer(t, m, console)
			t.Logf("boot to answer: %s", time.Since(begin))

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
			// It goes on after a save.
			must(t, m.Resume())
			wantAnswer(t, m, console)
			must(t, m.Pause())
			must(t, m.Save(filepath.Join(t.TempDir(), "third")))
			must(t, m.Stop())
			must(t, m.Close())

			again, console := withScratch(t, k, clone)
			again.MachineIdentifier = cfg.MachineIdentifier
			r := newMachine(t, f, again)
			begin = time.Now()
			must(t, r.Restore(saved))
			t.Logf("restore: %s", time.Since(begin))
			wantState(t, r, framework.StatePaused)
			must(t, r.Resume())
			wantAnswer(t, r, console)
			t.Logf("restore to answer: %s", time.Since(begin))

			// The power button reaches the agent, and its end is seen.
			must(t, r.RequestStop())
			waitState(t, r, framework.StateStopped)
			t.Logf("console: %q", text(console))
		})
	}
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
	select {}
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
