// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	kuberecord "k8s.io/client-go/tools/record"

	"github.com/vk-firkin/vk-firkin/provider/probe"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process/processconnect"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// newTarget is a container that runs in a simulated guest.
func newTarget(t *testing.T) (*environment, *kuberecord.FakeRecorder, handlerTarget) {
	t.Helper()
	agent := guesttest.New(guesttest.Options{Dir: t.TempDir()})
	t.Cleanup(func() { _ = agent.Close() })
	client, err := agent.Dial(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if _, err := client.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "h"})); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Containers.CreateContainer(t.Context(), connect.NewRequest(&agentv1.CreateContainerRequest{Id: "run", Args: []string{"hang"}})); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Containers.StartContainer(t.Context(), connect.NewRequest(&agentv1.StartContainerRequest{Id: "run"})); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Env: []corev1.EnvVar{{Name: "WORD", Value: "hello"}}}}}}
	recorder := kuberecord.NewFakeRecorder(10)
	env := &environment{events: events{recorder}, nodeIP: "192.0.2.1", userAgent: "1.2.3"}
	return env, recorder, handlerTarget{pod: pod, container: &pod.Spec.Containers[0], id: "run", hold: &machineHold{lease: guestLease{guest: &Guest{Agent: client.Agent, Containers: client.Containers, Volumes: client.Volumes, Process: client.Process, Done: client.Done()}}}}
}

func exec(words ...string) *corev1.ExecAction { return &corev1.ExecAction{Command: words} }

func portOf(a net.Addr) intstr.IntOrString { return intstr.FromInt(a.(*net.TCPAddr).Port) }

func TestProbeHandlers(t *testing.T) {
	env, _, target := newTarget(t)
	seen := make(chan *http.Request, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case seen <- r:
		default:
		}
		switch r.URL.Path {
		case "/bad":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/away":
			http.Redirect(w, r, "http://0.0.0.0/", http.StatusFound)
		}
	}))
	defer server.Close()
	port := portOf(server.Listener.Addr())
	target.container.Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: port.IntVal}}
	get := func(path string, port intstr.IntOrString) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port}}
	}
	for _, test := range []struct {
		name    string
		h       corev1.ProbeHandler
		want    probe.Result
		message string
	}{
		{"exec", corev1.ProbeHandler{Exec: exec("echo", "$(WORD)", "$(OTHER)")}, probe.Success, "hello $(OTHER)"},
		{"exec fails with output", corev1.ProbeHandler{Exec: exec("do", "warn oh no", "exit 3")}, probe.Failure, "oh no"},
		{"exec fails without", corev1.ProbeHandler{Exec: exec("exit", "3")}, probe.Failure, "exit code 3"},
		{"exec takes too long", corev1.ProbeHandler{Exec: exec("do", "echo wait", "hang")}, probe.Failure, "timed out after 300ms: wait"},
		{"exec is not there", corev1.ProbeHandler{Exec: exec("nothing")}, probe.Unknown, "executable file not found"},
		{"exec of nothing", corev1.ProbeHandler{Exec: exec()}, probe.Unknown, "no command"},
		{"http", get("/", port), probe.Success, ""},
		{"http by name", get("/?a=b#c", intstr.FromString("web")), probe.Success, ""},
		{"http bad", get("/bad", port), probe.Failure, "statuscode: 503"},
		{"http redirected", get("/away", port), probe.Warning, "Probe terminated redirects, Response body: <a href="},
		{"http unknown port", get("/", intstr.FromString("other")), probe.Unknown, `no port "other"`},
		{"http nobody", get("/", intstr.FromInt(1)), probe.Failure, "refused"},
		{"tcp", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}, probe.Success, ""},
		{"tcp at the host", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port, Host: "127.0.0.1"}}, probe.Success, ""},
		{"tcp nobody", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(1)}}, probe.Failure, "refused"},
		{"grpc of http", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port.IntVal, Service: new(string)}}, probe.Failure, "gRPC health"},
		{"nothing", corev1.ProbeHandler{}, probe.Unknown, "no handler"},
	} {
		got := env.runProbe(t.Context(), target, &test.h, 300*time.Millisecond)
		if got.Result != test.want || !strings.Contains(got.Message, test.message) {
			t.Errorf("%s: %d %q, want %d", test.name, got.Result, got.Message, test.want)
		}
	}
	r := <-seen
	if r.Host != "192.0.2.1:"+port.String() || r.Header.Get("User-Agent") != "kube-probe/1.2.3" || r.Header.Get("Accept") != "*/*" {
		t.Errorf("request to %q with %v", r.Host, r.Header)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if got := env.runProbe(ctx, target, &corev1.ProbeHandler{Exec: exec("hang")}, time.Minute); got.Result != probe.Unknown {
		t.Errorf("cancelled: %v", got)
	}
}

// slowStart is a guest that is busy: its processes begin late.
type slowStart struct {
	processconnect.ProcessClient
	by time.Duration
}

func (c slowStart) Start(ctx context.Context, req *connect.Request[process.StartRequest]) (*connect.ServerStreamForClient[process.StartResponse], error) {
	<-time.After(c.by)
	return c.ProcessClient.Start(ctx, req)
}

// TestProbeOfABusyGuest: the time in which a command is made is no part of the probe's.
func TestProbeOfABusyGuest(t *testing.T) {
	env, _, target := newTarget(t)
	lease, ok := target.hold.lease.(guestLease)
	if !ok {
		t.Fatalf("the lease is a %T", target.hold.lease)
	}
	lease.guest.Process = slowStart{lease.guest.Process, 1200 * time.Millisecond}
	if got := env.runProbe(t.Context(), target, &corev1.ProbeHandler{Exec: exec("echo", "here")}, time.Second); got.Result != probe.Success {
		t.Errorf("%d %q", got.Result, got.Message)
	}
}

// TestCommandOutputIsBounded: what is too much is dropped, and the command ends all the same.
func TestCommandOutputIsBounded(t *testing.T) {
	_, _, target := newTarget(t)
	output, end, err := runCommand(t.Context(), target, []string{"do", "spam 1000000", "exit 4"}, nil)
	if len(output) != maxHandlerOutput || end != "exit code 4" || err != nil {
		t.Errorf("%d bytes, %q, %v", len(output), end, err)
	}
}

func TestHTTPGet(t *testing.T) {
	env := &environment{nodeIP: "192.0.2.1,2001:db8::1", userAgent: "1"}
	target := handlerTarget{container: &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}, {Name: "8080", ContainerPort: 81}}}}
	headers := func(pairs ...string) (hs []corev1.HTTPHeader) {
		for i := 0; i < len(pairs); i += 2 {
			hs = append(hs, corev1.HTTPHeader{Name: pairs[i], Value: pairs[i+1]})
		}
		return hs
	}
	for _, test := range []struct {
		name string
		in   corev1.HTTPGetAction
		want string
	}{
		{"plain", corev1.HTTPGetAction{Port: intstr.FromInt(1)}, "192.0.2.1:1 http 1 / [User-Agent=kube-probe/1 Accept=*/*]"},
		{"named", corev1.HTTPGetAction{Port: intstr.FromString("web"), Path: "a?b=c%20d#e"}, "192.0.2.1:80 http 80 /a?b=c%20d [User-Agent=kube-probe/1 Accept=*/*]"},
		{"a name that looks like a number", corev1.HTTPGetAction{Port: intstr.FromString("8080")}, "192.0.2.1:81 http 81 / [User-Agent=kube-probe/1 Accept=*/*]"},
		{"a number as text", corev1.HTTPGetAction{Port: intstr.FromString("82")}, "192.0.2.1:82 http 82 / [User-Agent=kube-probe/1 Accept=*/*]"},
		{"not an URL", corev1.HTTPGetAction{Port: intstr.FromInt(1), Path: "/%zz"}, "192.0.2.1:1 http 1 /%25zz [User-Agent=kube-probe/1 Accept=*/*]"},
		{"https elsewhere", corev1.HTTPGetAction{Port: intstr.FromInt(1), Scheme: corev1.URISchemeHTTPS, Host: "10.0.0.1"}, "10.0.0.1:1 https 10.0.0.1 1 / [User-Agent=kube-probe/1 Accept=*/*]"},
		{"headers", corev1.HTTPGetAction{Port: intstr.FromInt(1), HTTPHeaders: headers("host", "h", "user-agent", "", "accept", "", "X", "1", "X", "2")},
			"h http 1 / [user-agent= X=1 X=2]"},
	} {
		p, err := env.httpGet(target, &test.in, "kube-probe")
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got := []string{p.GetHost(), "http"}
		if p.GetTls() {
			got[1] = "https"
		}
		if p.GetConnectHost() != "" {
			got = append(got, p.GetConnectHost())
		}
		var hs []string
		for _, h := range p.GetHeaders() {
			hs = append(hs, h.GetName()+"="+h.GetValue())
		}
		port := intstr.FromInt32(p.GetPort())
		got = append(got, port.String(), p.GetPath(), "["+strings.Join(hs, " ")+"]")
		if text := strings.Join(got, " "); text != test.want {
			t.Errorf("%s: %s, want %s", test.name, text, test.want)
		}
	}
	for _, port := range []intstr.IntOrString{intstr.FromInt(0), intstr.FromInt(65536), intstr.FromString("none"), intstr.FromString("")} {
		if p, err := env.httpGet(target, &corev1.HTTPGetAction{Port: port}, "kube-probe"); err == nil {
			t.Errorf("port %v: %v", port, p)
		}
	}
}

func FuzzHTTPGet(f *testing.F) {
	f.Add("/a?b#c", "h", "web", "Accept", "x")
	f.Add("//a", "[::1]", "80", "hOST", "x y")
	f.Add("mailto:a", "", "-1", "", "\n")
	f.Fuzz(func(t *testing.T, path, host, port, name, value string) {
		env := &environment{userAgent: "1"}
		p, err := env.httpGet(handlerTarget{container: &corev1.Container{}}, &corev1.HTTPGetAction{
			Path: path, Host: host, Port: intstr.FromString(port), HTTPHeaders: []corev1.HTTPHeader{{Name: name, Value: value}},
		}, "kube-probe")
		if err == nil && (p.GetPort() < 1 || !strings.HasPrefix(p.GetPath(), "/") || len(p.GetHeaders()) > 3) {
			t.Errorf("%v", p)
		}
	})
}

// FuzzLookOutcome: whatever a guest's agent answers becomes text that an event may have.
func FuzzLookOutcome(f *testing.F) {
	f.Add(true, "", int32(200), "exit status 1", int32(1), true)
	f.Add(true, strings.Repeat("x", 2000), int32(302), "signal: killed", int32(-1), false)
	f.Add(false, "\xff\x00", int32(-7), "", int32(0), false)
	f.Fuzz(func(t *testing.T, success bool, message string, status int32, end string, code int32, exited bool) {
		o := lookOutcome(&agentv1.ProbeResponse{Success: success, Message: message, HttpStatus: status}, nil)
		if (o.Result == probe.Failure) == success || len(o.Message) > maxEventMessage || !utf8.ValidString(o.Message) {
			t.Errorf("%+v", o)
		}
		if e := commandEnd(&process.ProcessEvent_EndEvent{Exited: exited, ExitCode: code, Status: end}); (e == "") != (exited && code == 0) || len(e) > 400 {
			t.Errorf("end %q", e)
		}
	})
}

func TestHooks(t *testing.T) {
	env, recorder, target := newTarget(t)
	seen := make(chan http.Header, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer server.Close()
	port := portOf(server.Listener.Addr())
	nobody := intstr.FromInt(1)
	auth := []corev1.HTTPHeader{{Name: "authorization", Value: "secret"}}
	for _, test := range []struct {
		name string
		h    corev1.LifecycleHandler
		want string // of the error
	}{
		{"exec", corev1.LifecycleHandler{Exec: exec("echo", "x")}, ""},
		{"exec fails", corev1.LifecycleHandler{Exec: exec("do", "echo no", "exit 2")}, "exec hook failed: command ended with exit code 2: no"},
		{"http, any answer", corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: port, HTTPHeaders: auth}}, ""},
		{"http nobody", corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: nobody}}, "httpGet hook failed: "},
		{"https that is http", corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: port, Scheme: corev1.URISchemeHTTPS, HTTPHeaders: auth}}, ""},
		{"https nobody", corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: nobody, Scheme: corev1.URISchemeHTTPS}}, "refused"},
		{"tcp", corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}, ""},
		{"tcp nobody", corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: nobody}}, "tcpSocket hook failed: "},
		{"sleep", corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 0}}, ""},
		{"nothing", corev1.LifecycleHandler{}, "no handler"},
	} {
		err := env.runHook(t.Context(), target, &test.h)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if first, second := <-seen, <-seen; first.Get("Authorization") != "secret" || first.Get("User-Agent") != "kube-lifecycle/1.2.3" || second.Get("Authorization") != "" {
		t.Errorf("requests with %v and %v", first, second)
	}
	if e := <-recorder.Events; !strings.Contains(e, "LifecycleHTTPFallback") {
		t.Errorf("event %q", e)
	}
	for name, h := range map[string]corev1.LifecycleHandler{
		"sleep": {Sleep: &corev1.SleepAction{Seconds: 60}}, "exec": {Exec: exec("hang")},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := env.runHook(ctx, target, &h); err == nil {
			t.Errorf("%s: does not end with its context", name)
		}
		cancel()
	}
}
