// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm"
)

// sleeper starts a child that works in dir.
func sleeper(t *testing.T, dir string) (*exec.Cmd, string) {
	t.Helper()
	program, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "1000")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
	})
	return cmd, program
}

func TestFindProcess(t *testing.T) {
	cmd, _ := sleeper(t, t.TempDir())
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	found, err := findProcess(p.identity)
	if err != nil {
		t.Fatalf("find by its identity: %v", err)
	}
	found.Close()
	for what, change := range map[string]func(*identity){
		"another start":   func(i *identity) { i.StartTicks++ },
		"another boot":    func(i *identity) { i.Boot = "other" },
		"another program": func(i *identity) { i.Executable = "/usr/bin/other" },
	} {
		other := p.identity
		change(&other)
		if _, err := findProcess(other); !errors.Is(err, errProcessGone) {
			t.Errorf("%s: error is %v, want %v", what, err, errProcessGone)
		}
	}
	replaced := p.identity
	replaced.Executable += " (deleted)"
	if found, err := findProcess(replaced); err != nil {
		t.Errorf("a program that was upgraded is taken for another: %v", err)
	} else {
		found.Close()
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if !p.Wait() {
		t.Error("wait did not see the end")
	}
	// Dead and not reaped is gone; reaped as well.
	if _, err := findProcess(p.identity); !errors.Is(err, errProcessGone) {
		t.Errorf("of a zombie: error is %v, want %v", err, errProcessGone)
	}
	if status, ok := p.Reap(); !ok || status == "" {
		t.Errorf("reap: %q, %v", status, ok)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill of an ended process: %v", err)
	}
	if _, err := findProcess(p.identity); !errors.Is(err, errProcessGone) {
		t.Errorf("after reaping: error is %v, want %v", err, errProcessGone)
	}
}

func TestWaitEndsWithClose(t *testing.T) {
	cmd, _ := sleeper(t, t.TempDir())
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	go func() { done <- p.Wait() }()
	p.Close()
	if <-done {
		t.Error("wait says that a living process has ended")
	}
}

func TestProcessesIn(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	cmd, program := sleeper(t, dir)
	sleeper(t, other)
	found, err := processesIn(dir, program)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		defer p.Close()
	}
	if len(found) != 1 || found[0].identity.PID != cmd.Process.Pid {
		t.Errorf("found %d processes, want the one that works there", len(found))
	}
	if found, err := processesIn(dir, "/usr/bin/other"); err != nil || len(found) != 0 {
		t.Errorf("of another program: %v, %v", found, err)
	}
}

func TestMeasure(t *testing.T) {
	bytes, cpu, err := measure(os.Getpid())
	if err != nil || bytes <= 0 || cpu < 0 {
		t.Errorf("measure says %d, %s, %v", bytes, cpu, err)
	}
	const rollup = "55-7f ---p 00000000 00:00 0 [rollup]\nRss:  100 kB\nAnonymous:   24 kB\nSwap:   2 kB\n"
	if n, err := rollupBytes([]byte(rollup), "Anonymous:", "Swap:"); err != nil || n != 26<<10 {
		t.Errorf("rollup says %d, %v, want 26 KiB", n, err)
	}
}

// TestIdentifyWithoutDescriptors does not take a process for ended because the host
// cannot look.
func TestIdentifyWithoutDescriptors(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 1
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err := identify(os.Getpid())
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); rerr != nil {
		t.Fatal(rerr)
	}
	if err == nil || errors.Is(err, errProcessGone) {
		t.Errorf("error is %v, want one that does not say that the process has ended", err)
	}
}

// TestSweepProbes ends the machine of a trial whose process was killed, and leaves one
// alone that may be under way.
func TestSweepProbes(t *testing.T) {
	d := &Driver{opts: Options{CacheDir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	old, young := filepath.Join(d.opts.CacheDir, probePrefix+"1"), filepath.Join(d.opts.CacheDir, probePrefix+"2")
	for _, dir := range []string{old, young} {
		if err := os.MkdirAll(filepath.Join(dir, "machines", probeID), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd, program := sleeper(t, filepath.Join(old, "machines", probeID))
	d.binary = program
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	now := time.Now()
	if err := os.Chtimes(old, now, now.Add(-2*probeOld)); err != nil {
		t.Fatal(err)
	}
	d.sweepProbes(now)
	if _, err := findProcess(p.identity); !errors.Is(err, errProcessGone) {
		t.Errorf("the process of the old trial: error is %v, want %v", err, errProcessGone)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old trial's directory: error is %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the young trial's directory: %v", err)
	}
}

// TestFloodOfEvents has a guest power off among more events than are kept.
func TestFloodOfEvents(t *testing.T) {
	m := exitedMachine(t)
	cmd, _ := sleeper(t, m.dir)
	var err error
	if m.process, err = openProcess(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	defer m.process.Close()
	looks := 0
	q, err := newQMP(t.Context(), hypervisor(t, func(conn net.Conn, id uint64, command string) {
		if command != "query-status" {
			agreeable(conn, id, command)
			return
		}
		looks++
		if looks > 1 {
			fmt.Fprintf(conn, `{"return": {"status": "shutdown"}, "id": %d}`+"\n", id)
			return
		}
		for range 2 * maxQMPEvents {
			fmt.Fprintln(conn, `{"event": "RTC_CHANGE", "data": {}}`)
		}
		fmt.Fprintln(conn, `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`)
		fmt.Fprintf(conn, `{"return": {"status": "running"}, "id": %d}`+"\n", id)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	go func() {
		defer cancel()
		m.process.Wait()
	}()
	m.listen(ctx, q)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ending || m.exit.Reason != vm.ExitGuest {
		t.Errorf("the end was missed: ending %v, exit %+v", m.ending, m.exit)
	}
}
