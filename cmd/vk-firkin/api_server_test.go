// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

func TestAPIServerDialer(t *testing.T) {
	none := func(*http.Request) (*url.URL, error) { return nil, nil }
	proxy := func(*http.Request) (*url.URL, error) { return url.Parse("http://user:secret@proxy.example:3128") }
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	dial, err := apiServerDialer(&rest.Config{Host: "https://" + l.Addr().String() + "/"}, none)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dial(t.Context())
	if err != nil || conn.RemoteAddr().String() != l.Addr().String() {
		t.Fatalf("dialled %v: %v", conn, err)
	}
	_ = conn.Close()
	if dial, err := apiServerDialer(&rest.Config{Host: "https://api.example.test"}, none); err != nil || dial == nil {
		t.Errorf("a server without a port: %v", err)
	}
	for says, config := range map[string]*rest.Config{
		"speaks http":            {Host: "http://127.0.0.1:8080"},
		"below the path /k8s/c1": {Host: "https://rancher.example/k8s/c1"},
		"address of the API":     {Host: "https://%"},
		"proxy.example:3128":     {Host: "https://api.example", Proxy: proxy},
	} {
		if dial, err := apiServerDialer(config, none); err == nil || dial != nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", config.Host, err, says)
		}
	}
	if _, err := apiServerDialer(&rest.Config{Host: "https://api.example"}, proxy); err == nil {
		t.Error("a proxy of the environment is passed by")
	}
}
