// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/vk-firkin/vk-firkin/provider/identity"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

const testToken = "abcdef.0123456789abcdef"

func parseJoin(t *testing.T, args ...string) (*joinOptions, []string) {
	t.Helper()
	o := &joinOptions{}
	flags := pflag.NewFlagSet("join", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o, flags.Args()
}

func TestJoinOptions(t *testing.T) {
	hash := "sha256:" + strings.Repeat("ab", 32)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(testToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rest := []string{"--discovery-token-ca-cert-hash", hash, "--node-name", "mac-1", "--state-dir", "s"}
	for name, tt := range map[string]struct {
		args  []string
		stdin string
		want  []string // parts of the error; none is none
	}{
		"as kubeadm":       {args: append([]string{"192.0.2.1:6443", "--token", testToken}, rest...)},
		"by flags":         {args: append([]string{"--server", "https://192.0.2.1:6443", "--token", testToken}, rest...)},
		"from a file":      {args: append([]string{"https://192.0.2.1:6443", "--token-file", file}, rest...)},
		"from standard in": {args: append([]string{"192.0.2.1:6443", "--token-file", "-"}, rest...), stdin: testToken},
		"unchecked":        {args: []string{"192.0.2.1:6443", "--token", testToken, "--discovery-token-unsafe-skip-ca-verification", "--node-name", "mac-1"}},
		"by a kubeconfig":  {args: []string{"--bootstrap-kubeconfig", "b", "--node-name", "mac-1"}},
		"nothing": {args: []string{"--node-name", "Not_a_name", "--timeout", "0s"},
			want: []string{"API server is missing", "--token and --token-file", "--discovery-token-ca-cert-hash", "--node-name", "--timeout"}},
		"both":           {args: append([]string{"192.0.2.1:6443", "--server", "x", "--token", testToken, "--token-file", file, "--discovery-token-unsafe-skip-ca-verification"}, rest...), want: []string{"once", "--token-file", "want one of them"}},
		"bad token":      {args: append([]string{"192.0.2.1:6443", "--token", "abc"}, rest...), want: []string{"kubeadm token create"}},
		"no token there": {args: append([]string{"192.0.2.1:6443", "--token-file", file + "x"}, rest...), want: []string{"read token"}},
		"bad hash":       {args: []string{"192.0.2.1:6443", "--token", testToken, "--discovery-token-ca-cert-hash", "md5:00"}, want: []string{"64 hexadecimal digits"}},
		"plain HTTP":     {args: append([]string{"http://192.0.2.1:8080", "--token", testToken}, rest...), want: []string{"want a URL such as https"}},
		"too much":       {args: append([]string{"--bootstrap-kubeconfig", "b", "--token", testToken}, rest...), want: []string{"leave the other ones out"}},
	} {
		t.Run(name, func(t *testing.T) {
			o, args := parseJoin(t, tt.args...)
			err := o.complete(args, strings.NewReader(tt.stdin))
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("error %v", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %v does not say %q", err, part)
				}
			}
			if err == nil && o.Bootstrap == "" && (o.discovery.Server != "https://192.0.2.1:6443" || o.discovery.Token.Bearer() != testToken) {
				t.Errorf("discovers %s with %s", o.discovery.Server, o.discovery.Token.Bearer())
			}
		})
	}
}

// A running node keeps what it has joined with, and what is there is not replaced by accident.
func TestJoinRefusesToReplace(t *testing.T) {
	state := t.TempDir()
	o, args := parseJoin(t, "--bootstrap-kubeconfig", filepath.Join(state, "none"), "--node-name", "mac-1", "--state-dir", state)
	if err := o.complete(args, bytes.NewReader(nil)); err != nil {
		t.Fatal(err)
	}
	lock, err := durable.LockDir(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.run(t.Context(), io.Discard); !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), "stop it") {
		t.Errorf("beside a running node: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := o.run(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "bootstrap kubeconfig") {
		t.Errorf("with a kubeconfig that is not there: %v", err)
	}
}

// As whom a node runs: what it is told, what it has joined with, and a user's own kubeconfig last.
func TestNodeIdentity(t *testing.T) {
	state := t.TempDir()
	joined := identity.KubeconfigPath(credentialsDir(state))
	for _, tt := range []struct {
		name       string
		joined     bool
		args       []string
		kubeconfig string
		want       bool
		node       string
	}{
		{"a user's own", false, nil, "/env", false, hostName()},
		{"a user's own, named", false, []string{"--node-name", "mac-1"}, "/env", false, "mac-1"},
		{"joining", false, []string{"--bootstrap-kubeconfig", "b"}, "", true, ""},
		{"joined", true, nil, "", true, ""},
		{"told", true, []string{"--kubeconfig", "/told", "--node-name", "mac-1"}, "/told", false, "mac-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", "/env")
			if tt.joined {
				if err := errors.Join(os.MkdirAll(filepath.Dir(joined), 0o700), os.WriteFile(joined, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			s, err := parseNode(t, append(tt.args, "--state-dir", state, "--cache-dir", "c")...).complete()
			if err != nil {
				t.Fatal(err)
			}
			if s.joined != tt.want || s.Kubeconfig != tt.kubeconfig || s.NodeName != tt.node {
				t.Errorf("joined %t, kubeconfig %q, node %q", s.joined, s.Kubeconfig, s.NodeName)
			}
		})
	}
}
