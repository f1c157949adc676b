// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// healthServer speaks enough of gRPC, byte by byte as its specification has it
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), to be asked for health.
func healthServer(t *testing.T) net.Addr {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request := make([]byte, 5+64)
		n, _ := r.Body.Read(request)
		service := ""
		if n > 5+2 { // the frame's head, the field's
			service = string(request[7:n])
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		code, message := "0", ""
		answer := map[string][]byte{"": {8, 1}, "fine": {16, 5, 8, 1}, "ill": {8, 2}, "strange": {8, 77}, "garbage": {255}}[service]
		switch {
		case r.URL.Path != "/grpc.health.v1.Health/Check" || r.Header.Get("Te") != "trailers":
			code = "12"
		case service == "silent":
			<-r.Context().Done()
		case answer == nil:
			code, message = "5", "no such service"
		default:
			_, _ = w.Write(append([]byte{0, 0, 0, 0, byte(len(answer))}, answer...))
		}
		w.Header().Set("Grpc-Status", code)
		w.Header().Set("Grpc-Message", message)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr()
}

func TestProbe(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/redirect":
			http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
		case r.URL.Path == "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case r.URL.Path == "/cut":
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("cut"))
		case r.URL.Path == "/big":
			_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
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
	to := func(target string) *agentv1.ProbeRequest {
		return get(plain.Listener.Addr(), "/redirect?to="+url.QueryEscape(target), false)
	}
	grpc := func(a net.Addr, service string) *agentv1.ProbeRequest {
		return &agentv1.ProbeRequest{TimeoutNano: int64(time.Second), Kind: &agentv1.ProbeRequest_Grpc{Grpc: &agentv1.GRPCProbe{Port: port(a), Service: service}}}
	}
	health := healthServer(t)
	far, host := tcp(port(plain.Listener.Addr())), get(plain.Listener.Addr(), "/good?q=1", false)
	far.GetTcp().ConnectHost, host.GetHttp().ConnectHost = "192.0.2.1", "localhost"
	far.TimeoutNano = int64(50 * time.Millisecond)
	silent := grpc(health, "silent")
	silent.TimeoutNano = int64(100 * time.Millisecond)
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
		{"redirect", to("/bad"), false, 418, "status 418"},
		{"redirect to the connected host", to("http://" + plain.Listener.Addr().String() + "/good?q=1"), false, 418, "status 418"}, // the Host header is another then
		{"redirect to the named host", to("http://name:" + strconv.Itoa(int(port(plain.Listener.Addr()))) + "/bad"), false, 418, "status 418"},
		{"redirect to the named host over TLS", to("https://name:" + strconv.Itoa(int(port(secure.Listener.Addr()))) + "/bad"), false, 418, "status 418"},
		{"redirect elsewhere", to("http://0.0.0.0/"), true, 302, "Probe terminated redirects, Response body: <a href=\"http://0.0.0.0/\">Found</a>."},
		{"redirect for ever", get(plain.Listener.Addr(), "/loop", false), false, 302, "10 redirects"},
		{"long answer", get(plain.Listener.Addr(), "/big", false), true, 200, ""},
		{"answer cut off", get(plain.Listener.Addr(), "/cut", false), false, 0, "EOF"},
		{"plain for https", get(plain.Listener.Addr(), "/", true), false, 0, guest.ProbePlainHTTP},
		{"connect host", host, true, 200, ""},
		{"unreachable host", far, false, 0, ""},
		{"grpc", grpc(health, ""), true, 0, ""},
		{"grpc service", grpc(health, "fine"), true, 0, ""},
		{"grpc not serving", grpc(health, "ill"), false, 0, "NOT_SERVING"},
		{"grpc unknown", grpc(health, "other"), false, 0, "no such service"},
		{"grpc strange", grpc(health, "strange"), false, 0, "status 77"},
		{"grpc garbage", grpc(health, "garbage"), false, 0, "not a message"},
		{"grpc silent", silent, false, 0, "deadline"},
		{"grpc of http", grpc(plain.Listener.Addr(), ""), false, 0, ""},
		{"grpc closed", grpc(closed.Addr(), ""), false, 0, "refused"},
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
		if m.GetSuccess() != test.success || m.GetHttpStatus() != test.status || !strings.Contains(m.GetMessage(), test.message) || test.message == "" && test.success && m.GetMessage() != "" || m.GetMessage() == "" && !test.success {
			t.Errorf("%s: %v", test.name, m)
		}
	}
	bad := get(plain.Listener.Addr(), "/", false)
	bad.GetHttp().Headers[0].Value = "a\r\nb: c"
	longHost := tcp(80)
	longHost.GetTcp().ConnectHost = strings.Repeat("x", 300)
	for name, req := range map[string]*agentv1.ProbeRequest{
		"no timeout": {Kind: tcp(80).Kind}, "no kind": {TimeoutNano: 1e9}, "long timeout": {TimeoutNano: int64(time.Hour) + 1, Kind: tcp(80).Kind},
		"port 0": tcp(0), "port 65536": tcp(65536), "path": get(plain.Listener.Addr(), "good", false), "header": bad,
		"grpc port": grpc(&net.TCPAddr{}, ""), "grpc service": grpc(health, strings.Repeat("x", 5<<10)), "connect host": longHost,
		"absolute": get(plain.Listener.Addr(), "http://elsewhere/", false),
	} {
		if _, err := c.Agent.Probe(t.Context(), connect.NewRequest(req)); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
