// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// TestNoListener: a port that nothing listens on is refused at once.
func TestNoListener(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{Listens: func(_ *simulator.Guest, port uint32) bool { return port == 7 }}))
	m := newMachine(t, f, linux(t))
	must(t, m.Start())
	if _, err := m.Connect(vm.AgentPort); !errors.Is(err, framework.ErrNoListener) {
		t.Errorf("connect: %v, want ErrNoListener", err)
	}
	conn, err := m.Connect(7)
	must(t, err)
	conn.Close()
}

// TestConnectStates: there is no guest to connect to.
func TestConnectStates(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"new", "stopped", "error", "closed"} {
		t.Run(state, func(t *testing.T) {
			f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
			m := newMachine(t, f, linux(t))
			bring(t, m, state)
			if _, err := m.Connect(vm.AgentPort); code(err) != framework.CodeInvalidVirtualMachineState {
				t.Errorf("connect: %v, want code 3", err)
			}
		})
	}
}

// TestConnectWhilePaused: it blocks until the machine runs, or is no more.
func TestConnectWhilePaused(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]struct {
		do   func(framework.Machine) error
		want framework.Code
	}{
		"resume": {framework.Machine.Resume, 0},
		"stop":   {framework.Machine.Stop, framework.CodeInvalidVirtualMachineState},
		"close":  {framework.Machine.Close, framework.CodeInvalidVirtualMachineState},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := open(t, dir, simulator.NoGuest(simulator.Script{}))
			m := newMachine(t, f, linux(t))
			must(t, m.Start())
			must(t, m.Pause())
			// A fault that never strikes tells when the call has come.
			change(t, dir, func(h *simulator.Host) {
				h.Faults = []simulator.Fault{{Call: simulator.CallConnect, Nth: 1000, Kind: simulator.FaultFail}}
			})
			done := make(chan error, 1)
			go func() {
				conn, err := m.Connect(vm.AgentPort)
				if err == nil {
					conn.Close()
				}
				done <- err
			}()
			waitHost(t, dir, func(h simulator.Host) bool { return h.Faults[0].Seen == 1 })
			select {
			case err := <-done:
				t.Fatalf("a paused machine was connected to: %v", err)
			default:
			}
			must(t, end.do(m))
			if err := <-done; code(err) != end.want || end.want == 0 && err != nil {
				t.Errorf("connect: %v, want code %d", err, end.want)
			}
		})
	}
}

// TestConnectionsEnd: with the machine, however it ends; and not with a save.
func TestConnectionsEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, m framework.Machine, s *stream){
		"stop":                     func(t *testing.T, m framework.Machine, _ *stream) { must(t, m.Stop()) },
		"close":                    func(t *testing.T, m framework.Machine, _ *stream) { must(t, m.Close()) },
		"guest powers off":         func(_ *testing.T, _ framework.Machine, s *stream) { s.send("off") },
		"hypervisor fails":         func(_ *testing.T, _ framework.Machine, s *stream) { s.send("fail x") },
		"power button":             func(t *testing.T, m framework.Machine, _ *stream) { must(t, m.RequestStop()) },
		"stop of a paused machine": func(t *testing.T, m framework.Machine, _ *stream) { must(t, m.Pause()); must(t, m.Stop()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
			m := newMachine(t, f, linux(t))
			must(t, m.Start())
			s := dial(t, m)
			must(t, m.Pause())
			must(t, m.Save(filepath.Join(t.TempDir(), "saved")))
			must(t, m.Resume())
			if got := s.ask("saved"); got != "saved" {
				t.Errorf("answer is %q: a save ends no connection", got)
			}
			end(t, m, s)
			if _, err := s.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("read: %v, want the end", err)
			}
		})
	}
}

// TestRestoreEndsConnections: a stream of the saved machine is none of the restored
// one's, on neither side.
func TestRestoreEndsConnections(t *testing.T) {
	t.Parallel()
	served := make(chan *simulator.Guest, 10)
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{Serve: func(g *simulator.Guest, port uint32, conn net.Conn) {
		served <- g
		simulator.Echo(g, port, conn)
	}}))
	cfg := linux(t)
	m := newMachine(t, f, cfg)
	must(t, m.Start())
	s := dial(t, m)
	must(t, m.Pause())
	saved := filepath.Join(t.TempDir(), "saved")
	must(t, m.Save(saved))
	must(t, m.Close())
	first := <-served
	r := newMachine(t, f, cfg)
	must(t, r.Restore(saved))
	must(t, r.Resume())
	if _, err := s.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read from the saved machine: %v, want the end", err)
	}
	select {
	case <-served:
		t.Error("the restored guest has a stream that nobody has opened")
	default:
	}
	dial(t, r)
	if g := <-served; g == first || g.Nonce() != first.Nonce() {
		t.Error("the new stream leads to another guest than the restored one")
	}
}

// TestPausedGuestIsSilent: what is sent to a paused guest is answered when it runs.
func TestPausedGuestIsSilent(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	m := newMachine(t, f, linux(t))
	must(t, m.Start())
	s := dial(t, m)
	must(t, m.Pause())
	s.send("memory changed")
	saved := filepath.Join(t.TempDir(), "saved")
	must(t, m.Save(saved))
	must(t, m.Resume())
	if !s.lines.Scan() || s.lines.Text() != "ok" {
		t.Errorf("answer is %q, %v", s.lines.Text(), s.lines.Err())
	}
	if again := dial(t, m); again.memory != "changed" {
		t.Errorf("memory is %q", again.memory)
	}
}

// TestPausedGuestSendsNothing: not even what it had in hand.
func TestPausedGuestSendsNothing(t *testing.T) {
	t.Parallel()
	speak, spoken := make(chan struct{}), make(chan error, 1)
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{Serve: func(_ *simulator.Guest, _ uint32, conn net.Conn) {
		<-speak
		_, err := conn.Write([]byte("x"))
		spoken <- err
	}}))
	m := newMachine(t, f, linux(t))
	must(t, m.Start())
	conn, err := m.Connect(vm.AgentPort)
	must(t, err)
	defer conn.Close()
	must(t, m.Pause())
	close(speak)
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v, from a paused guest", n, err)
	}
	must(t, m.Resume())
	must(t, <-spoken)
	must(t, conn.SetReadDeadline(time.Time{}))
	_, err = conn.Read(make([]byte, 1))
	must(t, err)
}
