// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines && linux

package runc_test

import (
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/runtimetest"
)

// testLayers: what one container leaves in a named layer, the next finds in it or below.
func testLayers(t *testing.T, p *pod) {
	with := func(script, writable string, lower ...string) *agentv1.CreateContainerRequest {
		m := runtimetest.Sh(script)
		m.WritableLayer, m.LowerLayers = writable, lower
		return m
	}
	const bb = "/bin/busybox "
	for _, step := range []struct {
		name string
		m    *agentv1.CreateContainerRequest
		want string
		code int32
	}{
		{"write", with(bb+"rm -r /data /etc/group; mkdir /data; echo one > /data/one; echo dev:x:1234:1234::/:/bin/sh >> /etc/passwd", "a"), "", 0},
		{"write again", with("cat /data/one; echo two > /data/two", "a"), "one\n", 0},
		{"read below", with("ls /data /etc; echo gone > /data/one; echo $?", "", "a"), "/data:\none\ntwo\n\n/etc:\nhostname\nhosts\npasswd\nresolv.conf\n0\n", 0},
		{"another above", with("cat /data/one /data/two; echo three > /data/two; echo only > /data/three", "b", "a"), "one\ntwo\n", 0},
		{"both below", with("cat /data/one /data/two /data/three", "", "b", "a"), "one\nthree\nonly\n", 0},
		{"the other order", with("cat /data/two", "", "a", "b"), "two\n", 0},
		{"none", with("ls /data", ""), "", 0},
		{"a link out of it", with(bb+"rm /etc/passwd; "+bb+"ln -s /../../../../etc/machine-id /etc/passwd", "c"), "", 0},
	} {
		r, err := p.try(t, step.m)
		if err != nil || r.Out != step.want || r.GetExitCode() != step.code {
			t.Errorf("%s: %q %q %v %v", step.name, r.Out, r.Err, r.ContainerStatus, err)
		}
	}
	// Users are those of the layers.
	m := with("id", "", "a")
	m.User = &agentv1.User{ImageUser: "dev"}
	if r, err := p.try(t, m); err != nil || r.Out != "uid=1234(dev) gid=1234 groups=1234\n" {
		t.Errorf("user of a layer: %q %v", r.Out, err)
	}
	m = with("id", "", "c")
	m.User = &agentv1.User{ImageUser: "dev"}
	if _, err := p.try(t, m); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("user of a link out of the layer: %v", err)
	}
	if _, err := p.try(t, with("true", "", "unknown")); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("unknown layer: %v", err)
	}
	// A server of the machine is reached from inside.
	if resp, err := p.Agent.Probe(t.Context(), connect.NewRequest(&agentv1.ProbeRequest{
		TimeoutNano: 1e9, Kind: &agentv1.ProbeRequest_Tcp{Tcp: &agentv1.TCPProbe{Port: 1}},
	})); err != nil || resp.Msg.GetSuccess() {
		t.Errorf("probe of a port where nothing is: %v %v", resp, err)
	}
}
