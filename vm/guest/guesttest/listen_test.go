// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

var service = netip.MustParseAddrPort("10.96.0.1:443")

func listenAt(t *testing.T, c *guest.Client) *guest.PortListener {
	t.Helper()
	l, err := guest.ListenAddress(t.Context(), c.Agent, service)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func connectFrom(t *testing.T, a *guesttest.Agent) net.Conn {
	t.Helper()
	conn, err := a.DialAddress(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestListenAddress: what a program of the machine says to an address of others arrives at the host, and the answer there, each way to its end.
func TestListenAddress(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	l := listenAt(t, c)
	inside := connectFrom(t, a)
	outside, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	within(t, "a question and its answer", func() {
		if _, err := inside.Write([]byte("question")); err != nil {
			t.Error(err)
		}
		if err := inside.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(outside); err != nil || string(got) != "question" {
			t.Errorf("the host reads %q: %v", got, err)
		}
		if _, err := outside.Write([]byte("answer")); err != nil {
			t.Error(err)
		}
		if err := outside.(*guest.PortConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(inside); err != nil || string(got) != "answer" {
			t.Errorf("the program reads %q: %v", got, err)
		}
	})
}

// TestListenAddressGoesOn: a connection that comes while no host waits is given to the next one that does, one of another connection too.
func TestListenAddressGoesOn(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	// Nobody waits once the one who did has a connection: who gives up may still be given one, which is lost.
	first := listenAt(t, c)
	connectFrom(t, a)
	if _, err := first.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	var early [3]net.Conn
	for i := range early {
		early[i] = connectFrom(t, a)
		if _, err := early[i].Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	again := dial(t, a)
	seen := map[byte]bool{}
	within(t, "accepting what waited", func() {
		for range early {
			conn, err := listenAt(t, again).Accept(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			var b [1]byte
			if _, err := io.ReadFull(conn, b[:]); err != nil {
				t.Error(err)
			}
			seen[b[0]] = true
			_ = conn.Close()
		}
	})
	if len(seen) != len(early) {
		t.Errorf("only %v arrived", seen)
	}
}

// TestListenAddressEnds: who waits can give up, and the end of the machine ends who waits.
func TestListenAddressEnds(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := listenAt(t, c).Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("accept of who gave up: %v", err)
	}
	l := listenAt(t, c)
	a.Die()
	within(t, "the end", func() {
		if _, err := l.Accept(t.Context()); !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("accept of a dead machine: %v", err)
		}
	})
}

func TestListenAddressRefused(t *testing.T) {
	_, c := boot(t, guesttest.Options{OwnAddressOnly: true})
	if _, err := guest.ListenAddress(t.Context(), c.Agent, service); !errors.Is(err, vm.ErrNotSupported) {
		t.Errorf("a machine that cannot says %v", err)
	}
	_, c = boot(t, guesttest.Options{})
	for _, start := range []*agentv1.ForwardStart{
		{Port: 443, Address: "example"}, {Port: 443, Address: "0.0.0.0"}, {Port: 443, Address: "127.0.0.1"}, {Port: 443, Address: "224.0.0.1"}, {Port: 0, Address: "10.96.0.1"},
		{Port: 443, Address: "10.96.0.1", Udp: true}, {Port: 443, Address: "fe80::1%eth0"},
	} {
		stream := c.Agent.Forward(t.Context())
		if err := stream.Send(&agentv1.ForwardRequest{Event: &agentv1.ForwardRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v: %v", start, err)
		}
		_ = stream.CloseResponse()
	}
	for i := range 9 {
		_, err := guest.ListenAddress(t.Context(), c.Agent, netip.AddrPortFrom(service.Addr(), uint16(1000+i)))
		if want := i == 8; errors.Is(err, guest.ErrTooManyForwards) != want {
			t.Errorf("address %d: %v", i, err)
		}
	}
}
