// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// startExec starts a command and returns its stream after the start event.
func startExec(t *testing.T, c *guest.Client, m *process.StartRequest, header ...string) (*connect.ServerStreamForClient[process.StartResponse], *process.ProcessSelector) {
	t.Helper()
	req := connect.NewRequest(m)
	req.Header().Set(guest.HeaderContainer, "c")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header().Set(header[i], header[i+1])
	}
	s, err := c.Process.Start(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Receive() || s.Msg().GetEvent().GetStart() == nil {
		t.Fatalf("no start event: %v, %v", s.Msg(), s.Err())
	}
	return s, &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: s.Msg().GetEvent().GetStart().GetPid()}}
}

func cmd(name string, args ...string) *process.StartRequest {
	return &process.StartRequest{Process: &process.ProcessConfig{Cmd: name, Args: args}}
}

// running lists the processes.
func running(t *testing.T, c *guest.Client) int {
	t.Helper()
	l, err := c.Process.List(t.Context(), connect.NewRequest(&process.ListRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return len(l.Msg.GetProcesses())
}

// eventually waits for what happens in the guest at its own pace.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not %s in 10 s", what)
		}
	}
}

func TestExecInput(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	s, sel := startExec(t, c, cmd("cat"))
	input := func(text string) *process.ProcessInput {
		return &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(text)}}
	}
	if _, err := c.Process.SendInput(t.Context(), connect.NewRequest(&process.SendInputRequest{Process: sel, Input: input("one ")})); err != nil {
		t.Fatal(err)
	}
	in := c.Process.StreamInput(t.Context())
	_ = in.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: &process.StreamInputRequest_StartEvent{Process: sel}}})
	_ = in.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Keepalive{}})
	_ = in.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: &process.StreamInputRequest_DataEvent{Input: input("two")}}})
	if _, err := in.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.Process.CloseStdin(t.Context(), connect.NewRequest(&process.CloseStdinRequest{Process: sel})); err != nil {
			t.Fatal(err)
		}
	}
	var out []byte
	for s.Receive() {
		out = append(out, s.Msg().GetEvent().GetData().GetStdout()...)
	}
	if err := s.Err(); err != nil || string(out) != "one two" {
		t.Errorf("output %q, %v", out, err)
	}
	_ = s.Close()
	// Its end is kept for a while, and it runs no more.
	late, err := c.Process.Connect(t.Context(), connect.NewRequest(&process.ConnectRequest{Process: sel}))
	if err != nil || !late.Receive() || late.Msg().GetEvent().GetStart() == nil || !late.Receive() || late.Msg().GetEvent().GetEnd() == nil {
		t.Errorf("late connect: %v, %v", late.Msg(), late.Err())
	}
	_ = late.Close()
	if n := running(t, c); n != 0 {
		t.Errorf("%d processes run", n)
	}
}

func TestExecSignals(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	s, sel := startExec(t, c, cmd("hang"))
	for _, signal := range []process.Signal{process.Signal_SIGNAL_SIGTERM, process.Signal_SIGNAL_SIGKILL} {
		if _, err := c.Process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: sel, Signal: signal})); err != nil {
			t.Fatal(err)
		}
	}
	if !s.Receive() {
		t.Fatal(s.Err())
	}
	if end := s.Msg().GetEvent().GetEnd(); end.GetExitCode() != -1 || end.GetExited() || end.GetStatus() != "signal: killed" || end.GetError() != "signal: killed" {
		t.Errorf("end %v", end)
	}
	_ = s.Close()
	nobody := &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: 1}}
	if _, err := c.Process.SendSignal(t.Context(), connect.NewRequest(&process.SendSignalRequest{Process: nobody, Signal: process.Signal_SIGNAL_SIGKILL})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("unknown pid: %v", err)
	}
}

// TestExecOutlivesItsCaller: a process goes on when its caller leaves, unless the
// caller wants it otherwise, and ends by the caller's deadline all the same.
func TestExecOutlivesItsCaller(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")

	other := dial(t, a)
	_, stays := startExec(t, other, cmd("cat"))
	_, dies := startExec(t, other, cmd("hang"), guest.HeaderKillOnDisconnect, "true")
	if n := running(t, c); n != 2 {
		t.Fatalf("%d processes run", n)
	}
	_ = other.Close()
	eventually(t, "killed", func() bool { return running(t, c) == 1 })

	s, err := c.Process.Connect(t.Context(), connect.NewRequest(&process.ConnectRequest{Process: stays}))
	if err != nil || !s.Receive() {
		t.Fatal(err, s.Err())
	}
	if _, err := c.Process.SendInput(t.Context(), connect.NewRequest(&process.SendInputRequest{Process: stays, Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte("alive")}}})); err != nil {
		t.Fatal(err)
	}
	if !s.Receive() || string(s.Msg().GetEvent().GetData().GetStdout()) != "alive" {
		t.Errorf("%v %v", s.Msg(), s.Err())
	}
	_ = s.Close()
	if _, err := c.Process.Connect(t.Context(), connect.NewRequest(&process.ConnectRequest{Process: dies})); err != nil {
		t.Errorf("the end of the killed process: %v", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	req := connect.NewRequest(cmd("hang"))
	req.Header().Set(guest.HeaderContainer, "c")
	if timed, err := c.Process.Start(ctx, req); err == nil {
		for timed.Receive() {
		}
		if errors.Is(timed.Err(), vm.ErrUnavailable) {
			t.Errorf("the caller's own deadline is not the guest's fault: %v", timed.Err())
		}
		_ = timed.Close()
	}
	eventually(t, "ended by the deadline", func() bool { return running(t, c) == 1 })
}

// TestExecManyAtOnce runs execs side by side; their output does not mix.
func TestExecManyAtOnce(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	var work sync.WaitGroup
	for i := range 20 {
		work.Go(func() {
			word := string(rune('a' + i))
			out, end := exec(t, c, "c", "do", "echo "+word, "exit "+word[:0]+"2")
			if out != word+"\n" || end.GetExitCode() != 2 {
				t.Errorf("%s: %q %v", word, out, end)
			}
		})
	}
	work.Wait()
}

// TestExecVolume: 100 MB flow through an exec without being kept anywhere, and
// a slow reader holds the process instead of memory.
func TestExecVolume(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, _ := startExec(t, c, cmd("spam", "100000000"))
	defer func() { _ = s.Close() }()
	total, peak := 0, uint64(0)
	for n := 0; s.Receive(); n++ {
		total += len(s.Msg().GetEvent().GetData().GetStdout())
		if n%1000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
	}
	if err := s.Err(); err != nil || total != 100_000_000 {
		t.Errorf("%d bytes, %v", total, err)
	}
	if peak > before.HeapAlloc+16<<20 {
		t.Errorf("the heap grew by %d MiB", (peak-before.HeapAlloc)>>20)
	}
}

// TestOutputAcrossHosts: hosts that come and go see every line of a container once.
func TestOutputAcrossHosts(t *testing.T) {
	a, c := boot(t, guesttest.Options{SpoolBytes: 64 << 10})
	setup(t, c)
	const n = 5000
	runContainer(t, c, "c", "print", "5000", "a line of output with number ")
	_ = c.Close()
	var durable uint64
	for hosts := 0; durable < n; hosts++ {
		c := dial(t, a)
		s, err := c.Containers.ReadOutput(t.Context(), connect.NewRequest(&agentv1.ReadOutputRequest{Id: "c", AfterSeq: durable, Follow: true}))
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + hosts%3 {
			if !s.Receive() {
				break
			}
			for _, r := range s.Msg().GetRecords() {
				if r.GetSeq() != durable+1 {
					t.Fatalf("host %d: record %d after %d", hosts, r.GetSeq(), durable)
				}
				durable = r.GetSeq()
			}
			if hosts%2 == 0 {
				if _, err := c.Containers.AckOutput(t.Context(), connect.NewRequest(&agentv1.AckOutputRequest{Id: "c", ThroughSeq: durable})); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = c.Close() // without a word
	}
	c = dial(t, a)
	if st := awaitExit(t, c, "c"); st.GetLastOutputSeq() != n || st.GetExitCode() != 0 {
		t.Errorf("exit %v", st)
	}
}

func TestFaults(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	a.Hang()
	if err := c.Ping(ctx); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("a guest that hangs: %v", err)
	}
	if _, err := a.Dial(ctx, guest.Options{}); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("dialling a guest that hangs: %v", err)
	}
	a.Babble()
	if _, err := a.Dial(t.Context(), guest.Options{DialTimeout: 200 * time.Millisecond}); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("dialling a guest that babbles: %v", err)
	}
	a.Heal()
	again := dial(t, a)
	list, err := again.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil || len(list.Msg.GetContainers()) != 1 || list.Msg.GetContainers()[0].GetState() != agentv1.ContainerState_CONTAINER_STATE_RUNNING {
		t.Errorf("after all that: %v %v", list, err)
	}
	a.Die()
	<-again.Done()
	if err := again.Ping(t.Context()); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("a dead guest: %v", err)
	}
	if _, err := a.Dial(t.Context(), guest.Options{}); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("dialling a dead guest: %v", err)
	}
}

// TestProcessJSON drives the process service as envd's other clients do: Connect's
// JSON codec by hand, see section 10 of the notes on E2B.
func TestProcessJSON(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	setup(t, c)
	runContainer(t, c, "c", "hang")
	conn, err := guest.Greet(t.Context(), a.Pipe())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client, err := (&http2.Transport{AllowHTTP: true, DisableCompression: true}).NewClientConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	do := func(method, kind, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://guest/process.Process/"+method, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		req.Header.Set("Connect-Protocol-Version", "1")
		req.Header.Set("Connect-Timeout-Ms", "60000")
		req.Header.Set("Keepalive-Ping-Interval", "50")
		req.Header.Set("Firkin-Container", "c")
		resp, err := client.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	body := `{"process":{"cmd":"do","args":["echo hi","exit 3"]},"stdin":false}`
	resp := do("Start", "application/connect+json", string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))))+body)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/connect+json" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	var stdout []byte
	var last string
	for flags := byte(0); flags == 0; {
		var prefix [5]byte
		if _, err := io.ReadFull(resp.Body, prefix[:]); err != nil {
			t.Fatal(err)
		}
		flags = prefix[0]
		message := make([]byte, binary.BigEndian.Uint32(prefix[1:]))
		if _, err := io.ReadFull(resp.Body, message); err != nil {
			t.Fatal(err)
		}
		if flags != 0 {
			if flags != 2 || string(message) != "{}" {
				t.Errorf("end of stream %d %s", flags, message)
			}
			break
		}
		var m struct {
			Event struct {
				Data struct{ Stdout string }
			}
		}
		if err := json.Unmarshal(message, &m); err != nil {
			t.Fatalf("%s: %v", message, err)
		}
		data, err := base64.StdEncoding.DecodeString(m.Event.Data.Stdout)
		if err != nil {
			t.Fatal(err)
		}
		stdout = append(stdout, data...)
		last = string(message)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(last)); err != nil {
		t.Fatal(err)
	}
	if string(stdout) != "hi\n" || compact.String() != `{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}}}` {
		t.Errorf("stdout %q, last event %s", stdout, compact.String())
	}
	unary := do("SendSignal", "application/json", `{"process":{"pid":99999},"signal":"SIGNAL_SIGKILL"}`)
	defer func() { _ = unary.Body.Close() }()
	answer, err := io.ReadAll(unary.Body)
	if err != nil || unary.StatusCode != http.StatusNotFound || !bytes.Contains(answer, []byte(`"code":"not_found"`)) {
		t.Errorf("%s %s %v", unary.Status, answer, err)
	}
}
