// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

// Run runs the suite. The subject has no containers and no volumes after it.
func Run(t *testing.T, s *Subject) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *Subject)
	}{
		{"Life", life},
		{"Environment", environment},
		{"WorkingDir", workingDir},
		{"StartErrors", startErrors},
		{"Users", users},
		{"Exits", exits},
		{"LastWords", lastWords},
		{"Created", created},
		{"Together", together},
		{"Refused", refused},
		{"Terminal", terminal},
		{"Exec", execs},
		{"ExecInput", execInput},
		{"ExecSignals", execSignals},
		{"ExecTerminal", execTerminal},
		{"SignalAll", signalAll},
		{"Stats", stats},
		{"Volumes", volumes},
		{"SubPaths", subPaths},
		{"Layers", layers},
		{"Security", security},
		{"Privileged", privileged},
		{"Targets", targets},
		{"Images", images},
		{"Updates", updates},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, s) })
	}
	list, err := s.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil || len(list.Msg.GetContainers()) != 0 {
		t.Errorf("left: %v %v", list, err)
	}
}

// life: a container is created, running and exited, and its output is all there.
func life(t *testing.T, s *Subject) {
	m := Sh(`echo out; echo err >&2; printf rest; exit 5`)
	m.Id = "life"
	if err := s.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	defer s.Remove(t, m.GetId())
	list, err := s.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil || len(list.Msg.GetContainers()) != 1 || list.Msg.GetContainers()[0].GetState() != agentv1.ContainerState_CONTAINER_STATE_CREATED {
		t.Fatalf("after create: %v %v", list, err)
	}
	if _, err := s.Start(t.Context(), m.GetId()); err != nil {
		t.Fatal(err)
	}
	r, err := s.output(t.Context(), m.GetId())
	if err != nil || r.Out != "out\nrest" || r.Err != "err\n" {
		t.Errorf("output %q %q %v", r.Out, r.Err, err)
	}
	st, err := s.Exit(t, m.GetId())
	if err != nil || st.GetExitCode() != 5 || st.GetReason() != "Error" || st.GetLastOutputSeq() != 3 || st.GetFinishedUnixNano() < st.GetStartedUnixNano() {
		t.Errorf("exit %v %v", st, err)
	}
	if st, err := s.Start(t.Context(), m.GetId()); err != nil || st.GetState() != agentv1.ContainerState_CONTAINER_STATE_EXITED {
		t.Errorf("a second start: %v %v", st, err)
	}
}

func environment(t *testing.T, s *Subject) {
	m := Sh(`echo "$A|$B|${HOME:+home}|${PATH:+path}|${TERM-none}"; cat; echo "$#"`)
	m.Env = []string{"A=1", "B=x y", "A=2"}
	r, err := s.Try(t, m)
	if err != nil || r.Out != "2|x y|home|path|none\n0\n" || r.GetExitCode() != 0 || r.GetReason() != "Completed" {
		t.Errorf("%q %q %v %v", r.Out, r.Err, r.ContainerStatus, err)
	}
}

func workingDir(t *testing.T, s *Subject) {
	m := Sh(`pwd`)
	m.WorkingDir = s.At("made", "for", "this")
	if r, err := s.Try(t, m); err != nil || r.Out != m.GetWorkingDir()+"\n" {
		t.Errorf("%q %q %v", r.Out, r.Err, err)
	}
	if r, err := s.Try(t, Sh(`pwd`)); err != nil || r.Out != "/\n" {
		t.Errorf("without one: %q %q %v", r.Out, r.Err, err)
	}
}

func startErrors(t *testing.T, s *Subject) {
	put(t, s, &agentv1.PutVolumeRequest{Name: "programs"}, &agentv1.File{Path: "noexec", Data: []byte("#!/bin/sh\n"), Mode: 0o644})
	mount := []*agentv1.Mount{{Volume: "programs", Target: s.At("programs")}}
	for _, args := range [][]string{{"/no/such/program"}, {"no-such-program"}, {s.At("programs", "noexec")}, {s.At("programs")}} {
		r, err := s.Try(t, &agentv1.CreateContainerRequest{Args: args, Mounts: mount})
		if err != nil || r.GetExitCode() != 128 || r.GetReason() != "StartError" || r.GetMessage() == "" {
			t.Errorf("%v: %v %v", args, r.ContainerStatus, err)
		}
	}
	s.Run(t, "main", Sh(`sleep 1000`))
	if _, _, err := s.Exec(t, "main", &process.StartRequest{Process: &process.ProcessConfig{Cmd: "nope"}}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("unknown program: %v", err)
	}
}

// user is somebody by numbers.
func user(uid, gid int64) *agentv1.User { return &agentv1.User{Uid: &uid, Gid: &gid} }

func users(t *testing.T, s *Subject) {
	if s.Features.Users {
		m := Sh(`id -u; id -g; id -G`)
		m.User = user(12345, 54321)
		m.User.SupplementalGroups, m.User.RequireNonRoot = []int64{777}, true
		r, err := s.Try(t, m)
		if err != nil || !strings.HasPrefix(r.Out, "12345\n54321\n") || !strings.Contains(r.Out, "777") {
			t.Errorf("%q %q %v", r.Out, r.Err, err)
		}
	}
	for _, u := range []*agentv1.User{{ImageUser: "nobody-is-called-this"}, {ImageUser: "root", RequireNonRoot: true}} {
		if _, err := s.Try(t, &agentv1.CreateContainerRequest{Args: []string{"id"}, User: u}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("%v: %v", u, err)
		}
	}
}

func exits(t *testing.T, s *Subject) {
	for _, test := range []struct {
		script string
		signal int32
		code   int32
		by     int32
		reason string
	}{
		{"exit 0", 0, 0, 0, "Completed"},
		{"exit 77", 0, 77, 0, "Error"},
		{"trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", 15, 9, 0, "Error"},
		{"trap 'exit 8' USR1; echo ready; while :; do sleep 0.05; done", 10, 8, 0, "Error"},
		{"echo ready; while :; do sleep 0.05; done", 9, 137, 9, "Error"},
	} {
		t.Run(fmt.Sprintf("%d_%d", test.signal, test.code), func(t *testing.T) {
			s.Run(t, "exits", Sh(test.script))
			if test.signal != 0 {
				s.firstLine(t, "exits")
				if _, err := s.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: "exits", Signal: test.signal})); err != nil {
					t.Fatal(err)
				}
			}
			st, err := s.Exit(t, "exits")
			if err != nil || st.GetExitCode() != test.code || st.GetSignal() != test.by || st.GetReason() != test.reason {
				t.Errorf("%v %v", st, err)
			}
		})
	}
}

// created: a container that was never started can be killed, and removed.
func created(t *testing.T, s *Subject) {
	for _, all := range []bool{false, true} {
		m := Sh(`exit 0`)
		m.Id = "created"
		if err := s.Create(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: m.GetId(), Signal: 9, All: all})); err != nil {
			t.Error(err)
		}
		if st, err := s.Exit(t, m.GetId()); err != nil || st.GetExitCode() != 137 || st.GetSignal() != 9 {
			t.Errorf("killed: %v %v", st, err)
		}
		s.Remove(t, m.GetId())
	}
	m := Sh(`exit 0`)
	m.Id = "created"
	if err := s.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	s.Remove(t, m.GetId())
	s.Remove(t, m.GetId())
}

// together: all processes of a container end with its first one, and with its removal.
func together(t *testing.T, s *Subject) {
	put(t, s, &agentv1.PutVolumeRequest{Name: "beats"})
	at := s.At("beats")
	// Whoever lives writes; nobody does when two looks find the same.
	const quiet = `old=x; for i in 1 2 3 4 5 6 7 8 9 10; do new=$(cat f); [ "$old" = "$new" ] && exit 0; old=$new; sleep 0.3; done; exit 1`
	const beat = `( while :; do echo "$i" > f; i=$((i+1)); sleep 0.05; done ) & `
	look := func() {
		t.Helper()
		m := Sh(quiet)
		m.WorkingDir, m.Mounts = at, []*agentv1.Mount{{Volume: "beats", Target: at}}
		if r, err := s.Try(t, m); err != nil || r.GetExitCode() != 0 {
			t.Errorf("something still writes: %q %v %v", r.Err, r.ContainerStatus, err)
		}
	}
	first := Sh(`i=0; ` + beat + `while [ ! -s f ]; do sleep 0.05; done; exit 3`)
	first.WorkingDir, first.Mounts = at, []*agentv1.Mount{{Volume: "beats", Target: at}}
	if r, err := s.Try(t, first); err != nil || r.GetExitCode() != 3 {
		t.Fatalf("%v %v", r.ContainerStatus, err)
	}
	look()
	second := Sh(`sleep 1000`)
	second.WorkingDir, second.Mounts = at, []*agentv1.Mount{{Volume: "beats", Target: at}}
	second.Id = "together"
	if err := s.Create(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(t.Context(), second.GetId()); err != nil {
		t.Fatal(err)
	}
	// A process in the background does not keep the end of its command away.
	if out, end, err := s.Exec(t, second.GetId(), shell(`i=1000; `+beat+`echo started`)); err != nil || out != "started\n" || end.GetExitCode() != 0 {
		t.Errorf("%q %v %v", out, end, err)
	}
	s.Remove(t, second.GetId())
	look()
}

// refused: what the runtime does not have is no container's silent loss.
func refused(t *testing.T, s *Subject) {
	m := Sh(`echo x > /firkin-read-only`)
	m.ReadOnlyRoot = true
	r, err := s.Try(t, m)
	switch {
	case s.Features.ReadOnly:
		if err != nil || r.GetExitCode() == 0 || !strings.Contains(r.Err, "Read-only") {
			t.Errorf("read-only root: %q %v %v", r.Err, r.ContainerStatus, err)
		}
	case connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "read-only root"):
		t.Errorf("read-only root: %v", err)
	}
	m = Sh(`dd if=/dev/zero of=/dev/null bs=64M count=1; echo survived`)
	m.Resources = &agentv1.Resources{MemoryMaxBytes: 16 << 20, CpuQuotaUs: 100000, CpuWeight: 50}
	r, err = s.Try(t, m)
	switch {
	case s.Features.Limits:
		if err != nil || r.GetExitCode() != 137 || r.GetReason() != "OOMKilled" {
			t.Errorf("limits: %q %q %v %v", r.Out, r.Err, r.ContainerStatus, err)
		}
	case connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "memory limit") || !strings.Contains(err.Error(), "CPU limit"):
		t.Errorf("limits: %v", err)
	}
	m = Sh(`exit 0`)
	m.Resources = &agentv1.Resources{CpuWeight: 50}
	if r, err := s.Try(t, m); err != nil || r.GetExitCode() != 0 {
		t.Errorf("a weight: %v %v", r.ContainerStatus, err)
	}
}

func stats(t *testing.T, s *Subject) {
	s.Run(t, "stats", Sh(`sleep 1000 & echo ready; wait`))
	s.firstLine(t, "stats")
	st, err := s.Agent.Stats(t.Context(), connect.NewRequest(&agentv1.StatsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Msg.GetContainers()) != 1 {
		t.Fatalf("stats %v", st.Msg)
	}
	if c := st.Msg.GetContainers()[0]; c.GetMemoryBytes() <= 0 || c.GetMemoryWorkingSetBytes() <= 0 || c.GetPids() != 2 {
		t.Errorf("stats %v", c)
	}
}
