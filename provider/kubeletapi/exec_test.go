// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/kubeletapi"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// runPod makes ns/p/c a container that runs, or hangs, in a guest in memory.
func (s *server) runPod(t *testing.T, args ...string) *guest.Client {
	t.Helper()
	vm := guesttest.New(guesttest.Options{})
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := vm.Dial(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx := t.Context()
	_, err1 := c.Containers.SetupPod(ctx, connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "p"}))
	if len(args) == 0 {
		args = []string{"hang"}
	}
	_, err2 := c.Containers.CreateContainer(ctx, connect.NewRequest(&agentv1.CreateContainerRequest{Id: "c-0", Args: args, Stdin: true}))
	_, err3 := c.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: "c-0"}))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	s.node.targets["ns/p/c"] = provider.Target{
		ContainerRef: provider.ContainerRef{PodUID: "u", Namespace: "ns", Pod: "p", Container: "c", ID: "c-0"},
		State:        corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, Running: true,
		Dial: func(context.Context) (*provider.Guest, error) {
			return &provider.Guest{Agent: c.Agent, Containers: c.Containers, Process: c.Process, Done: c.Done()}, nil
		},
	}
	return c
}

// transports are the two ways a client can speak the remote command protocol.
var transports = []string{"SPDY", "WebSocket"}

func (s *server) executor(t *testing.T, transport string, opts corev1.PodExecOptions) remotecommand.Executor {
	t.Helper()
	return s.streamer(t, transport, "/exec/ns/p/c", opts)
}

// streamer speaks the remote command protocol to a path of the server.
func (s *server) streamer(t *testing.T, transport, path string, opts corev1.PodExecOptions) remotecommand.Executor {
	t.Helper()
	q, err := scheme.ParameterCodec.EncodeParameters(&opts, corev1.SchemeGroupVersion)
	if err != nil {
		t.Fatal(err)
	}
	// The API server renames what it passes on to the kubelet.
	for from, to := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error"} {
		if q.Get(from) == "true" {
			q.Set(to, "1")
		}
		q.Del(from)
	}
	if q.Get("tty") == "true" {
		q.Set("tty", "1")
	}
	u, err := url.Parse(s.url + path + "?" + q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	var e remotecommand.Executor
	if transport == "SPDY" {
		e, err = remotecommand.NewSPDYExecutor(s.config(t, "api", ""), "POST", u)
	} else {
		e, err = remotecommand.NewWebSocketExecutor(s.config(t, "api", ""), "GET", u.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func exec(t *testing.T, s *server, transport, stdin string, command ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errOut bytes.Buffer
	opts := corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true, Stdin: stdin != ""}
	streams := remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}
	if stdin != "" {
		streams.Stdin = strings.NewReader(stdin)
	}
	err = s.executor(t, transport, opts).StreamWithContext(ctx, streams)
	return out.String(), errOut.String(), err
}

func TestExec(t *testing.T) {
	s := newServer(t)
	s.runPod(t)
	long := strings.Repeat("0123456789abcdef\n", 20000) // more than any buffer on the way
	for _, transport := range transports {
		for name, c := range map[string]struct {
			stdin          string
			command        []string
			stdout, stderr string
			code           int
			message        string
		}{
			"output":             {"", []string{"echo", "a  b", "c"}, "a  b c\n", "", 0, ""},
			"both streams":       {"", []string{"do", "echo x", "warn y"}, "x\n", "y\n", 0, ""},
			"exit code":          {"", []string{"exit", "37"}, "", "", 37, ""},
			"output, then code":  {"", []string{"do", "echo last words", "exit 3"}, "last words\n", "", 3, ""},
			"ended by a signal":  {"", []string{"oom"}, "", "", 137, ""},
			"input to its end":   {"hello", []string{"cat"}, "hello", "", 0, ""},
			"much in, much out":  {long, []string{"cat"}, long, "", 0, ""},
			"input nobody reads": {long, []string{"echo", "bye"}, "bye\n", "", 0, ""},
			"no input is wanted": {"", []string{"cat"}, "", "", 0, ""},
			"no such program":    {"", []string{"nonsense"}, "", "", 0, "executable file not found"},
		} {
			t.Run(transport+"/"+name, func(t *testing.T) {
				t.Parallel()
				stdout, stderr, err := exec(t, s, transport, c.stdin, c.command...)
				if stdout != c.stdout || stderr != c.stderr {
					t.Errorf("stdout %.200q (%d bytes), stderr %.200q", stdout, len(stdout), stderr)
				}
				var exit utilexec.CodeExitError
				switch {
				case c.message != "":
					if err == nil || errors.As(err, &exit) || !strings.Contains(err.Error(), c.message) {
						t.Errorf("error is %v", err)
					}
				case c.code == 0:
					if err != nil {
						t.Error(err)
					}
				case !errors.As(err, &exit) || exit.Code != c.code:
					t.Errorf("error is %v, want exit code %d", err, c.code)
				}
			})
		}
	}
}

func TestExecInStoppedContainer(t *testing.T) {
	s := newServer(t)
	s.runPod(t)
	stopped := s.node.targets["ns/p/c"]
	stopped.Running = false
	s.node.targets["ns/p/c"] = stopped
	for _, transport := range transports {
		if _, _, err := exec(t, s, transport, "", "echo"); err == nil || !strings.Contains(err.Error(), "is not running") && transport == "SPDY" {
			t.Errorf("%s: %v", transport, err)
		}
	}
}

// sizes is a terminal whose size the test changes.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

// lines passes on what is written to it, line by line.
type lines struct {
	rest []byte
	ch   chan string
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.ch <- strings.TrimRight(string(line), "\r")
		l.rest = rest
	}
}

func (l *lines) next(t *testing.T) string {
	t.Helper()
	select {
	case s := <-l.ch:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("waited in vain for a line")
		return ""
	}
}

func TestExecWithTerminal(t *testing.T) {
	s := newServer(t)
	s.runPod(t)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			window := make(sizes, 1)
			in, typed := io.Pipe()
			out := &lines{ch: make(chan string, 100)}
			window <- remotecommand.TerminalSize{Width: 100, Height: 30}
			done := make(chan error, 1)
			e := s.executor(t, transport, corev1.PodExecOptions{Command: []string{"size"}, Stdin: true, Stdout: true, TTY: true})
			go func() {
				done <- e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: true, TerminalSizeQueue: window})
			}()
			if got := out.next(t); got != "100x30" {
				t.Errorf("at first the terminal is %s", got)
			}
			for _, want := range []remotecommand.TerminalSize{{Width: 120, Height: 40}, {Width: 10, Height: 5}, {Width: 80, Height: 24}} {
				window <- want
				if got := out.next(t); got != (terminal{want}).String() {
					t.Errorf("resized to %v, got %s", want, got)
				}
			}
			close(window)
			typed.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

type terminal struct{ remotecommand.TerminalSize }

func (t terminal) String() string {
	return strings.Join([]string{itoa(t.Width), itoa(t.Height)}, "x")
}

func itoa(n uint16) string {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

func running(t *testing.T, c *guest.Client) int {
	t.Helper()
	list, err := c.Process.List(t.Context(), connect.NewRequest(&process.ListRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Msg.GetProcesses())
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestDisconnectKills: the command ends with the client that started it, whatever
// streams the client had asked for.
func TestDisconnectKills(t *testing.T) {
	s := newServer(t)
	c := s.runPod(t)
	for _, transport := range transports {
		for name, opts := range map[string]corev1.PodExecOptions{
			"output only": {Stdout: true, Stderr: true},
			"input":       {Stdin: true, Stdout: true, Stderr: true},
			"terminal":    {Stdin: true, Stdout: true, TTY: true},
		} {
			t.Run(transport+"/"+name, func(t *testing.T) {
				opts.Command = []string{"hang"}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				streams := remotecommand.StreamOptions{Stdout: io.Discard, Tty: opts.TTY}
				if opts.Stderr {
					streams.Stderr = io.Discard
				}
				if opts.Stdin {
					in, typed := io.Pipe()
					defer typed.Close()
					streams.Stdin = in
				}
				e := s.executor(t, transport, opts)
				done := make(chan error, 1)
				go func() { done <- e.StreamWithContext(ctx, streams) }()
				await(t, "the command to run", func() bool { return running(t, c) == 1 })
				cancel()
				<-done
				await(t, "the command to end", func() bool { return running(t, c) == 0 })
			})
		}
	}
}

// TestTwoAtOnce: two commands in one container do not wait for each other.
func TestTwoAtOnce(t *testing.T) {
	s := newServer(t)
	c := s.runPod(t)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	in, typed := io.Pipe()
	defer typed.Close()
	first := s.executor(t, "SPDY", corev1.PodExecOptions{Command: []string{"cat"}, Stdin: true, Stdout: true})
	wg.Go(func() { _ = first.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard}) })
	await(t, "the first command to run", func() bool { return running(t, c) == 1 })
	if out, _, err := exec(t, s, "WebSocket", "", "echo", "second"); err != nil || out != "second\n" {
		t.Errorf("second command: %q, %v", out, err)
	}
	if n := running(t, c); n != 1 {
		t.Errorf("%d commands run", n)
	}
	cancel()
	wg.Wait()
}

// TestShutdownEndsExec: newServer's cleanup fails when a command keeps the server
// from ending.
func TestShutdownEndsExec(t *testing.T) {
	s := newServer(t)
	c := s.runPod(t)
	e := s.executor(t, "SPDY", corev1.PodExecOptions{Command: []string{"hang"}, Stdout: true})
	go func() { _ = e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: io.Discard}) }()
	await(t, "the command to run", func() bool { return running(t, c) == 1 })
}

// TestClientThatOpensNoStreams: its connection is closed when the time for it is
// over, and no command is run.
func TestClientThatOpensNoStreams(t *testing.T) {
	s := newServer(t, func(o *kubeletapi.Options) { o.StreamCreationTimeout = 50 * time.Millisecond })
	c := s.runPod(t)
	config, err := rest.TLSConfigFor(s.config(t, "api", ""))
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /exec/ns/p/c?command=hang&output=1 HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n")
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
		t.Fatalf("%q, %v", answer, err)
	}
	if n := running(t, c); n != 0 {
		t.Errorf("%d commands run", n)
	}
}
