// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

const nullSignal = syscall.Signal(0)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// code is err's code of the framework, 0 for any other error.
func code(err error) framework.Code {
	var e *framework.Error
	if errors.As(err, &e) && e.Domain == framework.Domain {
		return e.Code
	}
	return 0
}

// open opens a simulated Mac.
func open(t testing.TB, dir string, e simulator.Engine) framework.Framework {
	t.Helper()
	f, err := simulator.Open(simulator.Options{HostDir: dir, Engine: e, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	return f
}

// change changes the simulated Mac.
func change(t testing.TB, dir string, do func(*simulator.Host)) {
	t.Helper()
	must(t, simulator.ChangeHost(dir, do))
}

// newMachine makes a machine that ends with the test.
func newMachine(t testing.TB, f framework.Framework, cfg framework.Configuration) framework.Machine {
	t.Helper()
	m, err := f.New(cfg)
	must(t, err)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// datagrams is a network whose other end nobody reads.
func datagrams(t testing.TB) *os.File {
	t.Helper()
	ours, _ := network(t)
	return ours
}

// network makes a network device's attachment and its other end.
func network(t testing.TB) (ours, theirs *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	must(t, err)
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
		must(t, syscall.SetNonblock(fd, true)) // for deadlines
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "network"), os.NewFile(uintptr(fds[1]), "other end")
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// write makes a file of its own directory.
func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, content, 0o600))
	return path
}

// linux is a configuration that all rules allow.
func linux(t testing.TB) framework.Configuration {
	t.Helper()
	return framework.Configuration{
		GuestOS:           framework.Linux,
		CPUs:              2,
		MemoryBytes:       256 << 20,
		MachineIdentifier: simulator.Identifier(),
		Kernel:            write(t, "kernel", []byte("a kernel")),
		Initramfs:         write(t, "initramfs", []byte("an initramfs")),
		CommandLine:       "console=hvc0",
		Disks: []framework.Disk{
			{Path: write(t, "image", make([]byte, 4096)), ReadOnly: true, Serial: "slot0"},
			{Path: write(t, "scratch", make([]byte, 8192)), Serial: "scratch"},
		},
		MAC:     net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Network: datagrams(t),
	}
}

// macOS is the same for a macOS guest.
func macOS(t testing.TB) framework.Configuration {
	t.Helper()
	cfg := linux(t)
	cfg.GuestOS = framework.MacOS
	cfg.Kernel, cfg.Initramfs, cfg.CommandLine = "", "", ""
	cfg.HardwareModel = simulator.HardwareModel("VirtualMac2,1")
	cfg.AuxiliaryStorage = write(t, "aux", make([]byte, 512))
	cfg.Disks = cfg.Disks[1:]
	return cfg
}

func wantState(t testing.TB, m framework.Machine, want framework.State) {
	t.Helper()
	if got := m.State(); got != want {
		t.Fatalf("state is %s, want %s", got, want)
	}
}

// waitState reads changes until the machine is in a state.
func waitState(t testing.TB, m framework.Machine, want framework.State) {
	t.Helper()
	timeout := time.After(time.Minute)
	for m.State() != want {
		select {
		case <-m.Changes():
		case <-timeout:
			t.Fatalf("state is %s after a minute, want %s", m.State(), want)
		}
	}
}

// same compares files.
func same(t testing.TB, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	must(t, err)
	y, err := os.ReadFile(b)
	must(t, err)
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ", a, b)
	}
}

// stream talks to Echo.
type stream struct {
	t     testing.TB
	conn  net.Conn
	lines *bufio.Scanner
	// nonce and memory are the greeting's.
	nonce, memory string
}

func dial(t testing.TB, m framework.Machine) *stream {
	t.Helper()
	conn, err := m.Connect(vm.AgentPort)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	s := &stream{t: t, conn: conn, lines: bufio.NewScanner(conn)}
	if !s.lines.Scan() {
		t.Fatalf("no greeting: %v", s.lines.Err())
	}
	if _, err := fmt.Sscanf(s.lines.Text(), "nonce %q memory %q", &s.nonce, &s.memory); err != nil {
		t.Fatalf("greeting %q: %v", s.lines.Text(), err)
	}
	return s
}

// send is for lines that are not answered.
func (s *stream) send(line string) { _, _ = fmt.Fprintln(s.conn, line) }

func (s *stream) ask(line string) string {
	s.t.Helper()
	s.send(line)
	if !s.lines.Scan() {
		s.t.Fatalf("no answer to %q: %v", line, s.lines.Err())
	}
	return s.lines.Text()
}

// savedMachine runs a machine that has "saved" in its memory, and saves it.
func savedMachine(t testing.TB, f framework.Framework, cfg framework.Configuration) string {
	t.Helper()
	m, err := f.New(cfg)
	must(t, err)
	defer m.Close()
	must(t, m.Start())
	dial(t, m).ask("memory saved")
	must(t, m.Pause())
	path := filepath.Join(t.TempDir(), "saved")
	must(t, m.Save(path))
	return path
}
