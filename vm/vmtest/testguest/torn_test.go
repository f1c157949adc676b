// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package testguest

import (
	"context"
	"net"
	"testing"
	"time"
)

// A host that was cut off in the middle of a request does not keep the next one
// from being heard.
func TestTornRequest(t *testing.T) {
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(guest, nil) }()
	if _, err := host.Write([]byte(`{"Do":"in`)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := Dial(ctx, host)
	if err != nil {
		t.Fatalf("greet after a torn request: %v", err)
	}
	_ = c.Close()
	<-served
}
