// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// TestLayers: a layer keeps what one container wrote for those that have it below.
func TestLayers(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	setup(t, c)
	add := func(id, writable string, lower ...string) error {
		_, err := c.Containers.CreateContainer(t.Context(), connect.NewRequest(&agentv1.CreateContainerRequest{
			Id: id, Args: []string{"do", "write /greeting hello", "cat /greeting"}, WritableLayer: writable, LowerLayers: lower,
		}))
		return err
	}
	remove := func(id string) {
		t.Helper()
		if _, err := c.Containers.RemoveContainer(t.Context(), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: id})); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, err error, code connect.Code) {
		t.Helper()
		if connect.CodeOf(err) != code {
			t.Errorf("%s: %v, want %v", what, err, code)
		}
	}
	want("an unknown layer below", add("c", "", "template"), connect.CodeNotFound)
	if err := add("writer", "template"); err != nil {
		t.Fatal(err)
	}
	start(t, c, "writer")
	awaitExit(t, c, "writer")
	want("a second writer", add("c", "template"), connect.CodeFailedPrecondition)
	want("below while it is written", add("c", "", "template"), connect.CodeFailedPrecondition)
	remove("writer")
	if err := add("reader", "", "template"); err != nil {
		t.Fatal(err)
	}
	start(t, c, "reader")
	if got, _ := output(t, c, "reader", 0); got != "hello\n" {
		t.Errorf("output %q", got)
	}
	awaitExit(t, c, "reader")
	want("a writer of what lies below another", add("c", "template"), connect.CodeFailedPrecondition)
	if err := add("second", "", "template"); err != nil {
		t.Errorf("a second reader: %v", err)
	}
	remove("reader")
	remove("second")
	// What could not be created keeps nothing.
	create(t, c, &agentv1.CreateContainerRequest{Id: "start-error", Args: []string{"no-such-program"}, WritableLayer: "template"})
	remove("start-error")
	if err := add("again", "template"); err != nil {
		t.Errorf("a writer after all are gone: %v", err)
	}
	remove("again")
	for _, bad := range []*agentv1.CreateContainerRequest{
		{Id: "c", Args: []string{"env"}, WritableLayer: ".."},
		{Id: "c", Args: []string{"env"}, WritableLayer: "a/b"},
		{Id: "c", Args: []string{"env"}, LowerLayers: []string{""}},
		{Id: "c", Args: []string{"env"}, LowerLayers: []string{"template", "template"}},
		{Id: "c", Args: []string{"env"}, WritableLayer: "template", LowerLayers: []string{"template"}},
		{Id: "c", Args: []string{"env"}, LowerLayers: strings.Split("a b c d e f g h i", " ")},
	} {
		_, err := c.Containers.CreateContainer(t.Context(), connect.NewRequest(bad))
		want(bad.String(), err, connect.CodeInvalidArgument)
	}

	// A restored machine has the layers.
	clone := a.Clone(guesttest.Options{})
	defer func() { _ = clone.Close() }()
	cc := dial(t, clone)
	setup(t, cc)
	create(t, cc, &agentv1.CreateContainerRequest{Id: "pod", Args: []string{"cat", "/greeting"}, LowerLayers: []string{"template"}})
	start(t, cc, "pod")
	if got, _ := output(t, cc, "pod", 0); got != "hello\n" {
		t.Errorf("output in the clone %q", got)
	}
}

// TestSetupPodBesideTemplate: the pod of a restored machine is not the template's.
func TestSetupPodBesideTemplate(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	set := func(hostname string) error {
		_, err := c.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: hostname}))
		return err
	}
	if err := set("template"); err != nil {
		t.Fatal(err)
	}
	create(t, c, &agentv1.CreateContainerRequest{Id: "template.start", Args: []string{"hang"}})
	if err := set("pod"); err != nil {
		t.Errorf("beside a template's container: %v", err)
	}
	create(t, c, &agentv1.CreateContainerRequest{Id: "pod", Args: []string{"hang"}})
	if err := set("other"); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("beside a pod's container: %v", err)
	}
}

func TestProbe(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/redirect":
			http.Redirect(w, r, "/bad", http.StatusFound)
		case r.URL.Path == "/slow":
			<-r.Context().Done()
		case r.URL.Path != "/good" || r.URL.RawQuery != "q=1" || r.Host != "name" || r.Header.Get("X-A") != "b":
			http.Error(w, strings.Repeat("no", 1<<20), http.StatusTeapot)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	port := func(a net.Addr) int32 { return int32(a.(*net.TCPAddr).Port) }
	get := func(a net.Addr, path string, tls bool) *agentv1.ProbeRequest {
		return &agentv1.ProbeRequest{TimeoutNano: int64(time.Second), Kind: &agentv1.ProbeRequest_Http{Http: &agentv1.HTTPProbe{
			Port: port(a), Path: path, Tls: tls, Host: "name", Headers: []*agentv1.HTTPHeader{{Name: "X-A", Value: "b"}},
		}}}
	}
	tcp := func(port int32) *agentv1.ProbeRequest {
		return &agentv1.ProbeRequest{TimeoutNano: int64(time.Second), Kind: &agentv1.ProbeRequest_Tcp{Tcp: &agentv1.TCPProbe{Port: port}}}
	}
	slow := get(plain.Listener.Addr(), "/slow", false)
	slow.TimeoutNano = int64(50 * time.Millisecond)
	for _, test := range []struct {
		name    string
		req     *agentv1.ProbeRequest
		success bool
		status  int32
		message string
	}{
		{"tcp", tcp(port(plain.Listener.Addr())), true, 0, ""},
		{"tcp closed", tcp(port(closed.Addr())), false, 0, "refused"},
		{"http", get(plain.Listener.Addr(), "/good?q=1", false), true, 200, ""},
		{"https", get(secure.Listener.Addr(), "/good?q=1", true), true, 200, ""},
		{"redirect", get(plain.Listener.Addr(), "/redirect", false), true, 302, ""},
		{"bad status", get(plain.Listener.Addr(), "/bad", false), false, 418, "status 418"},
		{"http closed", get(closed.Addr(), "/", false), false, 0, "refused"},
		{"not http", get(secure.Listener.Addr(), "/", false), false, 400, "status 400"},
		{"slow", slow, false, 0, "deadline"},
	} {
		resp, err := c.Agent.Probe(t.Context(), connect.NewRequest(test.req))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		m := resp.Msg
		if m.GetSuccess() != test.success || m.GetHttpStatus() != test.status || !strings.Contains(m.GetMessage(), test.message) || (m.GetMessage() == "") != test.success {
			t.Errorf("%s: %v", test.name, m)
		}
	}
	bad := get(plain.Listener.Addr(), "/", false)
	bad.GetHttp().Headers[0].Value = "a\r\nb: c"
	for name, req := range map[string]*agentv1.ProbeRequest{
		"no timeout": {Kind: tcp(80).Kind}, "no kind": {TimeoutNano: 1e9}, "long timeout": {TimeoutNano: 1e12, Kind: tcp(80).Kind},
		"port 0": tcp(0), "port 65536": tcp(65536), "path": get(plain.Listener.Addr(), "good", false), "header": bad,
		"absolute": get(plain.Listener.Addr(), "http://elsewhere/", false),
	} {
		if _, err := c.Agent.Probe(t.Context(), connect.NewRequest(req)); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
