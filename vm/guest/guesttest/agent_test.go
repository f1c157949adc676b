// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// boot starts a guest and dials it.
func boot(t *testing.T, o guesttest.Options) (*guesttest.Agent, *guest.Client) {
	t.Helper()
	a := guesttest.New(o)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close guest: %v", err)
		}
	})
	return a, dial(t, a)
}

func dial(t *testing.T, a *guesttest.Agent) *guest.Client {
	t.Helper()
	c, err := a.Dial(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func setup(t *testing.T, c *guest.Client) {
	t.Helper()
	_, err := c.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "pod", Hosts: []byte("127.0.0.1 localhost\n")}))
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, c *guest.Client, m *agentv1.CreateContainerRequest) {
	t.Helper()
	if _, err := c.Containers.CreateContainer(t.Context(), connect.NewRequest(m)); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, c *guest.Client, id string) *agentv1.ContainerStatus {
	t.Helper()
	resp, err := c.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: id}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg.GetStatus()
}

func runContainer(t *testing.T, c *guest.Client, id string, args ...string) {
	t.Helper()
	create(t, c, &agentv1.CreateContainerRequest{Id: id, Args: args})
	start(t, c, id)
}

// awaitExit watches until the container has exited.
func awaitExit(t *testing.T, c *guest.Client, id string) *agentv1.ContainerStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w, err := c.Containers.WatchContainers(ctx, connect.NewRequest(&agentv1.WatchContainersRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	for w.Receive() {
		if st := w.Msg().GetStatus(); st.GetId() == id && st.GetState() == agentv1.ContainerState_CONTAINER_STATE_EXITED {
			return st
		}
	}
	t.Fatalf("watch ended: %v", w.Err())
	return nil
}

// output reads what there is after a sequence number until the container ends.
func output(t *testing.T, c *guest.Client, id string, after uint64) (text string, last uint64) {
	t.Helper()
	s, err := c.Containers.ReadOutput(t.Context(), connect.NewRequest(&agentv1.ReadOutputRequest{Id: id, AfterSeq: after, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var b strings.Builder
	last = after
	for s.Receive() {
		for _, r := range s.Msg().GetRecords() {
			if r.GetSeq() != last+1 {
				t.Fatalf("record %d follows %d", r.GetSeq(), last)
			}
			last = r.GetSeq()
			b.Write(r.GetData())
			if !r.GetPartial() {
				b.WriteByte('\n')
			}
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String(), last
}

func TestContainerLife(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "c1", Args: []string{"do", "print 3", "printn rest", "exit 4"}})
	list, err := c.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if got := list.Msg.GetContainers(); len(got) != 1 || got[0].GetState() != agentv1.ContainerState_CONTAINER_STATE_CREATED || got[0].GetPid() == 0 {
		t.Fatalf("after create: %v", got)
	}
	start(t, c, "c1")
	if got, _ := output(t, c, "c1", 0); got != "line 1\nline 2\nline 3\nrest" {
		t.Errorf("output %q", got)
	}
	st := awaitExit(t, c, "c1")
	if st.GetExitCode() != 4 || st.GetReason() != "Error" || st.GetFinishedUnixNano() < st.GetStartedUnixNano() || st.GetLastOutputSeq() != 4 {
		t.Errorf("exit %v", st)
	}
	if again := start(t, c, "c1"); again.GetState() != agentv1.ContainerState_CONTAINER_STATE_EXITED {
		t.Errorf("a second start changed the state: %v", again)
	}
	for range 2 {
		if _, err := c.Containers.RemoveContainer(t.Context(), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: "c1"})); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.MountedImages(); n != 1 {
		t.Errorf("%d images are mounted, want the one that was used", n)
	}
	if _, err := c.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: "c1"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("start of a removed container: %v", err)
	}
}

func TestExitReasons(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	for _, test := range []struct {
		args   []string
		signal int32
		code   int32
		reason string
	}{
		{args: []string{"exit", "0"}, code: 0, reason: "Completed"},
		{args: []string{"exit", "7"}, code: 7, reason: "Error"},
		{args: []string{"oom"}, code: 137, reason: "OOMKilled"},
		{args: []string{"no-such-program"}, code: 128, reason: "StartError"},
		{args: []string{"sleep", "1000"}, signal: 15, code: 143, reason: "Error"},
		{args: []string{"graceful", "3"}, signal: 15, code: 3, reason: "Error"},
		{args: []string{"hang"}, signal: 9, code: 137, reason: "Error"},
	} {
		t.Run(strings.Join(test.args, "_"), func(t *testing.T) {
			runContainer(t, c, "c", test.args...)
			defer func() {
				if _, err := c.Containers.RemoveContainer(t.Context(), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: "c"})); err != nil {
					t.Fatal(err)
				}
			}()
			if test.signal != 0 {
				// The program has to come as far as its handler.
				time.Sleep(20 * time.Millisecond)
				if _, err := c.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: "c", Signal: test.signal})); err != nil {
					t.Fatal(err)
				}
			}
			st := awaitExit(t, c, "c")
			if st.GetExitCode() != test.code || st.GetReason() != test.reason {
				t.Errorf("exit %d %s, want %d %s", st.GetExitCode(), st.GetReason(), test.code, test.reason)
			}
		})
	}
}

func TestSealAndClone(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	key := bytes.Repeat([]byte{7}, 32)
	seal := func(k []byte) error {
		_, err := c.Agent.Seal(t.Context(), connect.NewRequest(&agentv1.SealRequest{Key: k}))
		return err
	}
	setup(t, c)
	create(t, c, &agentv1.CreateContainerRequest{Id: "template.start", Args: []string{"hang"}})
	create(t, c, &agentv1.CreateContainerRequest{Id: "pod", Args: []string{"hang"}})
	if err := seal(key); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("seal of a machine with a pod's container: %v", err)
	}
	if _, err := c.Containers.RemoveContainer(t.Context(), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: "pod"})); err != nil {
		t.Fatal(err)
	}
	for _, k := range [][]byte{bytes.Repeat([]byte{6}, 32), key} {
		if err := seal(k); err != nil {
			t.Fatal(err)
		}
	}
	clone := a.Clone(guesttest.Options{})
	defer func() { _ = clone.Close() }()
	cold := guesttest.New(guesttest.Options{})
	defer func() { _ = cold.Close() }()
	challenge := bytes.Repeat([]byte{9}, 32)
	mac := hmac.New(sha256.New, key)
	mac.Write(challenge)
	for _, test := range []struct {
		name  string
		agent *guesttest.Agent
		proof []byte
	}{{"restored", clone, mac.Sum(nil)}, {"cold", cold, nil}} {
		c := dial(t, test.agent)
		resp, err := c.Agent.Refresh(t.Context(), connect.NewRequest(&agentv1.RefreshRequest{
			TimeUnixNano: time.Now().UnixNano(), Entropy: make([]byte, 32), MachineId: strings.Repeat("ab", 16), Hostname: "h", Challenge: challenge,
			Network: &agentv1.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3"}},
		}))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(resp.Msg.GetProof(), test.proof) {
			t.Errorf("%s: proof %x, want %x", test.name, resp.Msg.GetProof(), test.proof)
		}
		info, err := c.Agent.Info(t.Context(), connect.NewRequest(&agentv1.InfoRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		if info.Msg.GetMachineId() != strings.Repeat("ab", 16) || info.Msg.GetSealed() != (test.proof != nil) {
			t.Errorf("%s: info %v", test.name, info.Msg)
		}
	}
}

// exec runs a command and returns its output and end.
func exec(t *testing.T, c *guest.Client, id string, cmd ...string) (string, *process.ProcessEvent_EndEvent) {
	t.Helper()
	req := connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: cmd[0], Args: cmd[1:]}, Stdin: new(bool)})
	req.Header().Set(guest.HeaderContainer, id)
	s, err := c.Process.Start(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var out strings.Builder
	var end *process.ProcessEvent_EndEvent
	for n := 0; s.Receive(); n++ {
		e := s.Msg().GetEvent()
		if (n == 0) != (e.GetStart() != nil) || end != nil {
			t.Fatalf("event %d is %v", n, e)
		}
		out.Write(e.GetData().GetStdout())
		out.Write(e.GetData().GetStderr())
		end = e.GetEnd()
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return out.String(), end
}

func TestExec(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	out, end := exec(t, c, "c", "do", "echo hello", "warn trouble", "exit 3")
	if !strings.Contains(out, "hello\n") || !strings.Contains(out, "trouble\n") {
		t.Errorf("output %q", out)
	}
	if end.GetExitCode() != 3 || !end.GetExited() || end.GetError() != "exit status 3" {
		t.Errorf("end %v", end)
	}
	for _, test := range []struct {
		container, cmd string
		code           connect.Code
	}{
		{"c", "no-such-program", connect.CodeInvalidArgument},
		{"nobody", "echo", connect.CodeNotFound},
		{"", "echo", connect.CodeInvalidArgument},
	} {
		req := connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: test.cmd}})
		req.Header().Set(guest.HeaderContainer, test.container)
		s, err := c.Process.Start(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if s.Receive() {
			t.Errorf("%v: got %v", test, s.Msg())
		}
		if connect.CodeOf(s.Err()) != test.code {
			t.Errorf("%v: %v", test, s.Err())
		}
		_ = s.Close()
	}
}

func TestExecTerminal(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	req := connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "size"}, Pty: &process.PTY{Size: &process.PTY_Size{Cols: 80, Rows: 24}},
	})
	req.Header().Set(guest.HeaderContainer, "c")
	s, err := c.Process.Start(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	next := func() *process.ProcessEvent {
		t.Helper()
		if !s.Receive() {
			t.Fatal(s.Err())
		}
		return s.Msg().GetEvent()
	}
	sel := &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: next().GetStart().GetPid()}}
	if got := string(next().GetData().GetPty()); got != "80x24\n" {
		t.Errorf("first size %q", got)
	}
	for i := range 3 {
		size := &process.PTY_Size{Cols: uint32(100 + i), Rows: 50}
		if _, err := c.Process.Update(t.Context(), connect.NewRequest(&process.UpdateRequest{Process: sel, Pty: &process.PTY{Size: size}})); err != nil {
			t.Fatal(err)
		}
		if got, want := string(next().GetData().GetPty()), fmt.Sprintf("%dx50\n", 100+i); got != want {
			t.Errorf("size %q, want %q", got, want)
		}
	}
	in := c.Process.StreamInput(t.Context())
	for _, m := range []*process.StreamInputRequest{
		{Event: &process.StreamInputRequest_Start{Start: &process.StreamInputRequest_StartEvent{Process: sel}}},
		{Event: &process.StreamInputRequest_Data{Data: &process.StreamInputRequest_DataEvent{Input: &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: []byte{4}}}}}},
	} {
		if err := in.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	if end := next().GetEnd(); end == nil || end.GetExitCode() != 0 {
		t.Errorf("end %v", end)
	}
}
