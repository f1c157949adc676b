// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

func terminal(t *testing.T, s *Subject) {
	m := Sh(`tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; echo "$TERM"; echo done`)
	m.Tty = true
	r, err := s.Try(t, m)
	if err != nil || !strings.HasPrefix(r.Out, "/dev/") || !strings.Contains(r.Out, "all\r\nxterm\r\ndone\r\n") || r.GetExitCode() != 0 {
		t.Errorf("%q %v %v", r.Out, r.ContainerStatus, err)
	}
}

func execs(t *testing.T, s *Subject) {
	main := Sh(`sleep 1000`)
	main.Env, main.WorkingDir = []string{"FOO=bar", "BAZ=old"}, s.At("data")
	s.Run(t, "main", main)
	m := shell(`echo $FOO $BAR $BAZ; pwd; echo oops >&2; exit 3`)
	m.Process.Envs = map[string]string{"BAR": "baz", "BAZ": "new"}
	out, end, err := s.Exec(t, "main", m)
	// Nothing orders the two streams.
	if err != nil || strings.Replace(out, "oops\n", "", 1) != "bar baz new\n"+s.At("data")+"\n" || !strings.Contains(out, "oops\n") || end.GetExitCode() != 3 {
		t.Errorf("%q %v %v", out, end, err)
	}
	m = shell(`pwd`)
	dir := "/"
	m.Process.Cwd = &dir
	if out, end, err = s.Exec(t, "main", m); err != nil || out != "/\n" {
		t.Errorf("%q %v %v", out, end, err)
	}
	if out, end, err = s.Exec(t, "main", shell("kill -9 $$")); err != nil || end.GetExitCode() != -1 || end.GetStatus() != "signal: killed" {
		t.Errorf("%q %v %v", out, end, err)
	}
	// More than the pipes and windows on the way hold.
	if out, end, err = s.Exec(t, "main", shell("i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890123456789012345678; i=$((i+1)); done")); err != nil || len(out) != 1000000 {
		t.Errorf("%d bytes %v %v", len(out), end, err)
	}
	if _, err := s.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: "main", Signal: 9, All: true})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exit(t, "main"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Exec(t, "main", shell("exit 0")); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("exec in an exited container: %v", err)
	}
}

func execInput(t *testing.T, s *Subject) {
	s.Run(t, "main", Sh(`sleep 1000`))
	stream, sel, err := s.begin(t, "main", &process.StartRequest{Process: &process.ProcessConfig{Cmd: "cat"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one ", "two"} {
		if _, err := s.Process.SendInput(t.Context(), connect.NewRequest(&process.SendInputRequest{
			Process: sel, Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(text)}},
		})); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Process.CloseStdin(t.Context(), connect.NewRequest(&process.CloseStdinRequest{Process: sel})); err != nil {
		t.Fatal(err)
	}
	if out, end, err := finish(stream); err != nil || out != "one two" || end.GetExitCode() != 0 {
		t.Errorf("%q %v %v", out, end, err)
	}
	no := false
	m := &process.StartRequest{Process: &process.ProcessConfig{Cmd: "cat"}, Stdin: &no}
	if out, end, err := s.Exec(t, "main", m); err != nil || out != "" || end.GetExitCode() != 0 {
		t.Errorf("without input: %q %v %v", out, end, err)
	}
}

func execSignals(t *testing.T, s *Subject) {
	s.Run(t, "main", Sh(`sleep 1000`))
	for signal, want := range map[process.Signal]string{process.Signal_SIGNAL_SIGTERM: "exit status 4", process.Signal_SIGNAL_SIGKILL: "signal: killed"} {
		stream, sel, err := s.begin(t, "main", shell(`trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done`))
		if err != nil || !stream.Receive() {
			t.Fatal(err, stream.Err())
		}
		if _, err := s.Process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: sel, Signal: signal})); err != nil {
			t.Fatal(err)
		}
		if _, end, err := finish(stream); err != nil || end.GetStatus() != want {
			t.Errorf("%v: %v %v", signal, end, err)
		}
	}
}

func execTerminal(t *testing.T, s *Subject) {
	s.Run(t, "main", Sh(`sleep 1000`))
	m := shell(`tty; stty size; read line; echo "got $line"; stty size`)
	m.Pty = &process.PTY{Size: &process.PTY_Size{Cols: 91, Rows: 17}}
	stream, sel, err := s.begin(t, "main", m)
	if err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for !strings.Contains(seen.String(), "17 91") && stream.Receive() {
		seen.Write(stream.Msg().GetEvent().GetData().GetPty())
	}
	if !strings.Contains(seen.String(), "/dev/") || !strings.Contains(seen.String(), "17 91") {
		t.Fatalf("%q %v", seen.String(), stream.Err())
	}
	if _, err := s.Process.Update(t.Context(), connect.NewRequest(&process.UpdateRequest{Process: sel, Pty: &process.PTY{Size: &process.PTY_Size{Cols: 40, Rows: 9}}})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Process.SendInput(t.Context(), connect.NewRequest(&process.SendInputRequest{
		Process: sel, Input: &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: []byte("word\n")}},
	})); err != nil {
		t.Fatal(err)
	}
	if out, end, err := finish(stream); err != nil || !strings.Contains(out, "got word") || !strings.Contains(out, "9 40") || end.GetExitCode() != 0 {
		t.Errorf("%q %v %v", out, end, err)
	}
}

// signalAll: a signal to all reaches what the first process started, and what came by exec.
func signalAll(t *testing.T, s *Subject) {
	const loop = `echo ready; while :; do sleep 0.05; done`
	s.Run(t, "main", Sh(`trap : TERM; sh -c "trap 'echo child; exit 0' TERM; `+loop+`"; echo parent; exit 6`))
	s.firstLine(t, "main")
	stream, _, err := s.begin(t, "main", shell(`trap 'exit 5' TERM; `+loop))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	if _, err := s.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: "main", Signal: 15, All: true})); err != nil {
		t.Fatal(err)
	}
	// The end of the first process may come before the trap of the other ran.
	if _, end, err := finish(stream); err != nil || end.GetExitCode() != 5 && end.GetStatus() != "signal: killed" {
		t.Errorf("exec: %v %v", end, err)
	}
	r, err := s.output(t.Context(), "main")
	if err != nil || r.Out != "ready\nchild\nparent\n" {
		t.Errorf("%q %v", r.Out, err)
	}
	if st, err := s.Exit(t, "main"); err != nil || st.GetExitCode() != 6 {
		t.Errorf("%v %v", st, err)
	}
}
