// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// exitedMachine is a machine without a process, on a driver without QEMU.
func exitedMachine(t *testing.T) *machine {
	t.Helper()
	stateDir := t.TempDir()
	d := &Driver{
		opts: Options{StateDir: stateDir}, log: slog.New(slog.DiscardHandler), binary: "/no/such/program",
		machines: machinedir.NewRegistry[*machine](filepath.Join(stateDir, "machines")),
	}
	m := newMachine(d, record{ID: "m"})
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.machines.Add("m", m, nil); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDeleteBesideDelete has a Delete wait for another one while a new machine gets
// the id.
func TestDeleteBesideDelete(t *testing.T) {
	m := exitedMachine(t)
	close(m.exited)
	m.op <- struct{}{} // as the first Delete
	second := make(chan error)
	go func() { second <- m.delete(t.Context()) }()
	// The second one is past its first look as soon as it waits, and nothing tells when
	// that is; if it is late it finds the machine deleted, which is right as well.
	time.Sleep(50 * time.Millisecond)
	m.mu.Lock()
	m.deleted = true
	m.mu.Unlock()
	<-m.op // the directory is another machine's from here on
	if err := <-second; err != nil && !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if _, err := os.Stat(m.dir); err != nil {
		t.Errorf("the second delete removed the new machine: %v", err)
	}
}

// TestDialBesideClose dials while the driver is closed: no stream stays open.
func TestDialBesideClose(t *testing.T) {
	for range 200 {
		m := exitedMachine(t)
		socket, err := machinedir.ListenUnix(m.dir, agentSocket)
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_ = m.driver.Close()
		}()
		conn, err := m.DialGuest(t.Context(), vm.AgentPort)
		<-closed
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the stream outlives its driver")
			}
			_ = conn.Close()
		}
		_ = socket.Close()
	}
}

// TestStderrDoesNotBlock asks a program in QEMU's place how its standard error behaves:
// whoever writes there must not wait for a node that does not read.
func TestStderrDoesNotBlock(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("asks /proc, which is Linux's")
	}
	m := exitedMachine(t)
	m.driver.binary = filepath.Join(t.TempDir(), "qemu")
	const script = `#!/bin/sh
for i in 0 1 2 3 4 5 6 7 8 9; do
	grep -q '^flags:.*4001$' /proc/$$/fdinfo/2 && echo does not block >&2 && exit 1
	sleep 0.1
done
exit 1
`
	if err := os.WriteFile(m.driver.binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := m.driver.spawn(t.Context(), m, launch{arch: "amd64", accelerator: acceleratorTCG}, nil)
	if err == nil || !strings.Contains(err.Error(), "does not block") {
		t.Errorf("error is %v, want the program's own words", err)
	}
}
