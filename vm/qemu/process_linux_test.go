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

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/process"
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
	p, err := process.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	now := time.Now()
	if err := os.Chtimes(old, now, now.Add(-2*probeOld)); err != nil {
		t.Fatal(err)
	}
	d.sweepProbes(now)
	if _, err := process.Find(p.Identity()); !errors.Is(err, process.ErrGone) {
		t.Errorf("the process of the old trial: error is %v, want %v", err, process.ErrGone)
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
	if m.process, err = process.Open(cmd.Process.Pid); err != nil {
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
