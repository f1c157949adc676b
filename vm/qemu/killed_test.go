// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/vmtest"
	"github.com/vk-firkin/vk-firkin/vm/vmtest/testguest"
)

// childEnv makes the test binary a node that is about to be killed: it creates the
// machines that the value describes, and then does nothing.
const childEnv = "FIRKIN_TEST_NODE"

type childTask struct {
	StateDir string
	Kit      vm.Kit
	IDs      []string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := child(text); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(text string) error {
	var task childTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return err
	}
	ctx := context.Background()
	d, err := qemu.Open(ctx, qemu.Options{StateDir: task.StateDir, Arch: task.Kit.Arch, Accelerator: "tcg"})
	if err != nil {
		return err
	}
	for _, id := range task.IDs {
		fmt.Println("creating", id)
		if _, err := d.Create(ctx, id, vm.Config{Shape: testShape, Kit: task.Kit}); err != nil {
			return err
		}
	}
	fmt.Println("created")
	<-time.After(time.Hour) // not for ever: that would be a deadlock to the runtime
	return nil
}

var testShape = vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}

// node runs a child until it has printed line, and returns how to kill it.
func node(t *testing.T, task childTask, line string) (kill func()) {
	t.Helper()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill() // SIGKILL: nothing is closed in order
			_, _ = cmd.Process.Wait()
		}
	}
	t.Cleanup(kill)
	for in := bufio.NewScanner(out); in.Scan(); {
		switch {
		case in.Text() == line:
			return kill
		case strings.HasPrefix(in.Text(), "error"):
			t.Fatal(in.Text())
		}
	}
	t.Fatalf("the child ended before it said %q", line)
	return nil
}

// TestSurvivesKill kills the process that made a machine, which runs on, also
// without that process's end of its standard error, and is found again.
func TestSurvivesKill(t *testing.T) {
	h := harness(vmtest.TestKit(t, guestKit(t, "amd64")), 1)
	stateDir := t.TempDir()
	kill := node(t, childTask{stateDir, h.Kit, []string{"survivor"}}, "created")
	kill()
	ctx, cancel := context.WithTimeout(t.Context(), h.BootTimeout)
	defer cancel()
	d := h.Open(t, stateDir)
	defer d.Close()
	m, err := d.Load(ctx, "survivor")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Delete(context.WithoutCancel(ctx))
	if state, err := m.State(ctx); err != nil || state != vm.StateRunning {
		t.Fatalf("state is %q, %v, want running", state, err)
	}
	conn, err := m.DialGuest(ctx, vm.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	g, err := testguest.Dial(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	_ = g.PowerOff(ctx)
	if exit, err := m.Wait(ctx); err != nil || exit.Reason != vm.ExitGuest {
		t.Errorf("exit is %+v, %v, want that of a guest", exit, err)
	}
	if err := m.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if left := h.Leftovers(t, stateDir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestKilledWhileCreating kills the process at many points of a creation. What is
// found then is a machine or refuse, and either can be deleted without a rest.
func TestKilledWhileCreating(t *testing.T) {
	k := guestKit(t, "amd64")
	h := harness(k, 1)
	stateDir := t.TempDir()
	found := map[vm.State]int{}
	for _, after := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 8 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond, 160 * time.Millisecond} {
		kill := node(t, childTask{stateDir, k, []string{"half"}}, "creating half")
		time.Sleep(after) // the moment of death is the point
		kill()
		ctx, cancel := context.WithTimeout(t.Context(), h.Timeout)
		d := h.Open(t, stateDir)
		ids, err := d.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			m, err := d.Load(ctx, id)
			if err != nil {
				t.Fatalf("after %s: load: %v", after, err)
			}
			state, err := m.State(ctx)
			if err != nil {
				t.Fatalf("after %s: state: %v", after, err)
			}
			found[state]++
			if err := m.Delete(ctx); err != nil {
				t.Fatalf("after %s: delete: %v", after, err)
			}
		}
		if left := h.Leftovers(t, stateDir); len(left) > 0 {
			t.Errorf("after %s left: %q", after, left)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		cancel()
	}
	t.Logf("found %v", found)
}

// TestBootsKits boots both kits with their real agent, and adopts none of the
// suite's guest.
func TestBootsKits(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			k := guestKit(t, arch)
			h := harness(k, 1)
			d := h.Open(t, t.TempDir())
			defer d.Close()
			ctx, cancel := context.WithTimeout(t.Context(), h.BootTimeout)
			defer cancel()
			m, err := d.Create(ctx, "kit", vm.Config{Shape: testShape, Kit: k, Saveable: true})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Delete(context.WithoutCancel(ctx))
			answers(t, ctx, m)
			if err := m.(vm.Pauser).Pause(ctx); err != nil {
				t.Fatal(err)
			}
			snapshot := filepath.Join(t.TempDir(), "snapshot")
			if err := os.Mkdir(snapshot, 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := m.(vm.Saver).Save(ctx, snapshot); err != nil {
				t.Fatal(err)
			}
			r, err := d.Restore(ctx, "restored", snapshot, vm.Config{Shape: testShape, Kit: k})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Delete(context.WithoutCancel(ctx))
			if err := r.Resume(ctx); err != nil {
				t.Fatal(err)
			}
			answers(t, ctx, r)
			// The power button reaches the real agent.
			if err := r.Stop(ctx, h.Timeout); err != nil {
				t.Fatal(err)
			}
			if exit, err := r.Wait(ctx); err != nil || exit.Reason != vm.ExitStopped || exit.Detail == "ended by force" {
				t.Errorf("exit is %+v, %v, want a power-off when asked", exit, err)
			}
		})
	}
}

func answers(t *testing.T, ctx context.Context, m vm.Machine) {
	t.Helper()
	conn, err := m.DialGuest(ctx, vm.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Dial(ctx, conn, guest.Options{DialTimeout: 3 * time.Minute})
	if err != nil {
		text, cerr := m.(vm.Consoler).Console(context.WithoutCancel(ctx))
		t.Fatalf("%v\nconsole: %q %v", err, text, cerr)
	}
	if err := errors.Join(c.Ping(ctx), c.Close()); err != nil {
		t.Errorf("ping: %v", err)
	}
}
