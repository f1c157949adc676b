// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"k8s.io/client-go/rest"
)

// apiServerDialer makes what connects pods to the API server that config names, on the way that this host
// takes. It is an error where TLS of a pod's own does not arrive there as it would at the server's Service.
func apiServerDialer(config *rest.Config, proxy func(*http.Request) (*url.URL, error)) (func(context.Context) (net.Conn, error), error) {
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	switch {
	case server.Scheme != "https":
		return nil, fmt.Errorf("this node speaks %s to the API server %s, and pods speak TLS", server.Scheme, server.Host)
	case server.Path != "" && server.Path != "/":
		return nil, fmt.Errorf("the API server is below the path %s of %s, and pods ask for paths of their own", server.Path, server.Host)
	}
	if config.Proxy != nil {
		proxy = config.Proxy
	}
	through, err := proxy(&http.Request{Method: http.MethodGet, URL: server})
	if err != nil {
		return nil, fmt.Errorf("proxy for the API server: %w", err)
	}
	if through != nil {
		return nil, fmt.Errorf("this node reaches the API server through the proxy %s, and pods know of none", through.Redacted())
	}
	port := server.Port()
	if port == "" {
		port = "443"
	}
	address := net.JoinHostPort(server.Hostname(), port)
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}, nil
}
