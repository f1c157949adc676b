// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	found, err := Find(p.identity)
	if err != nil {
		t.Fatalf("find by its identity: %v", err)
	}
	found.Close()
	for what, change := range map[string]func(*Identity){
		"another start":   func(i *Identity) { i.StartTicks++ },
		"another boot":    func(i *Identity) { i.Boot = "other" },
		"another program": func(i *Identity) { i.Executable = "/usr/bin/other" },
	} {
		other := p.identity
		change(&other)
		if _, err := Find(other); !errors.Is(err, ErrGone) {
			t.Errorf("%s: error is %v, want %v", what, err, ErrGone)
		}
	}
	replaced := p.identity
	replaced.Executable += " (deleted)"
	if found, err := Find(replaced); err != nil {
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
	if _, err := Find(p.identity); !errors.Is(err, ErrGone) {
		t.Errorf("of a zombie: error is %v, want %v", err, ErrGone)
	}
	if status, ok := p.Reap(); !ok || status == "" {
		t.Errorf("reap: %q, %v", status, ok)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill of an ended process: %v", err)
	}
	if _, err := Find(p.identity); !errors.Is(err, ErrGone) {
		t.Errorf("after reaping: error is %v, want %v", err, ErrGone)
	}
}

func TestWaitEndsWithClose(t *testing.T) {
	cmd, _ := sleeper(t, t.TempDir())
	p, err := Open(cmd.Process.Pid)
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
	found, err := In(dir, program)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		defer p.Close()
	}
	if len(found) != 1 || found[0].identity.PID != cmd.Process.Pid {
		t.Errorf("found %d processes, want the one that works there", len(found))
	}
	if found, err := In(dir, "/usr/bin/other"); err != nil || len(found) != 0 {
		t.Errorf("of another program: %v, %v", found, err)
	}
}

func TestMeasure(t *testing.T) {
	bytes, cpu, err := Measure(os.Getpid())
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
	if err == nil || errors.Is(err, ErrGone) {
		t.Errorf("error is %v, want one that does not say that the process has ended", err)
	}
}
