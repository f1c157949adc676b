// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// nodeTask is a node that is about to be killed: what it does, and where it says so.
type nodeTask struct {
	StateDir string
	Config   vm.Config
	// Steps are done in order: "create ID", "restore ID DIR", "resume ID", "pause ID",
	// "save ID DIR", "stop ID", "delete ID". Each is announced before and after.
	Steps []string
}

// run does the steps and then nothing, until it is killed.
func (n *nodeTask) run(s simulation) error {
	ctx := context.Background()
	d, err := s.driver(ctx, n.StateDir)
	if err != nil {
		return err
	}
	for _, step := range n.Steps {
		fmt.Println("begin", step)
		if err := n.step(ctx, d, strings.Fields(step)); err != nil {
			fmt.Println("failed", step+":", err)
			continue
		}
		fmt.Println("done", step)
	}
	fmt.Println("all done")
	<-time.After(time.Hour) // not for ever: that would be a deadlock to the runtime
	return nil
}

func (n *nodeTask) step(ctx context.Context, d vm.Driver, f []string) error {
	switch f[0] {
	case "create":
		_, err := d.Create(ctx, f[1], n.Config)
		return err
	case "restore":
		_, err := d.Restore(ctx, f[1], f[2], n.Config)
		return err
	}
	m, err := d.Load(ctx, f[1])
	if err != nil {
		return err
	}
	switch f[0] {
	case "resume":
		return m.Resume(ctx)
	case "pause":
		return m.(vm.Pauser).Pause(ctx)
	case "save":
		if err := os.MkdirAll(f[2], 0o700); err != nil {
			return err
		}
		_, err := m.(vm.Saver).Save(ctx, f[2])
		return err
	case "stop":
		return m.Stop(ctx, 0)
	case "delete":
		return m.Delete(ctx)
	}
	return fmt.Errorf("unknown step %q", f)
}

// launchNode starts a node; out gets what it says. kill ends it as a crash would.
func launchNode(s simulation, task nodeTask, out io.Writer) (kill func(), err error) {
	s.Node = &task
	command, err := s.command(roleNode)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // SIGKILL: nothing is closed in order
		_ = cmd.Wait()
	}), nil
}

// startNode runs a node until it has printed line (or, with an empty line, all it has to
// say), and returns how to kill it.
func startNode(t *testing.T, s simulation, task nodeTask, line string) (kill func(), said []string) {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	kill, err = launchNode(s, task, in)
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kill)
	if line == "" {
		line = "all done"
	}
	for in := bufio.NewScanner(out); in.Scan(); {
		said = append(said, in.Text())
		if in.Text() == line {
			return kill, said
		}
	}
	t.Fatalf("the node ended before it said %q; it said %q", line, said)
	return nil, nil
}

// remnants lists what the machines of a state directory still hold on the host: shims,
// hypervisors below them, and directories.
func remnants(t *testing.T, stateDir string) []string {
	t.Helper()
	machines := filepath.Join(stateDir, "machines")
	// What the simulator runs guests with is ended by the death of its shim, and is gone a
	// moment after it, as the framework's own processes are.
	var pids []int
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if pids = processesUnder(t, machines); len(pids) == 0 {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	var left []string
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	entries, err := os.ReadDir(machines)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	return left
}

// eventually tries until f says nothing, for what another process does by itself.
func eventually(t *testing.T, within time.Duration, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(within)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
	}
}
