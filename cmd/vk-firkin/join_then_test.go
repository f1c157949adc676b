// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"

	"github.com/vk-firkin/vk-firkin/provider/identity"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// What cannot go on is said before a token is used.
func TestJoinThenIsCheckedFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string // part of the error
	}{
		"nothing to go on with": {[]string{"s:1", "--", "--node-ip", "192.0.2.7"}, "the command that --then names"},
		"another command":       {[]string{"s:1", "--then", "doctor"}, `"doctor": want install or node`},
		"unknown flag":          {[]string{"s:1", "--then", "node", "--", "--nothing"}, "flags of vk-firkin node: unknown flag"},
		"flag of the other":     {[]string{"s:1", "--then", "node", "--", "--dry-run"}, "unknown flag"},
		"no flag":               {[]string{"s:1", "--then", "install", "--", "now"}, "takes flags only, not now"},
		"another place":         {[]string{"s:1", "--then", "install", "--", "--state-dir", "x"}, "--state-dir after --"},
		"a service of the host": {[]string{"s:1", "--then", "install", "--", "--system", "--run-as", "nobody"}, "--system after --"},
		"two servers":           {[]string{"s:1", "s:2", "--then", "node"}, "at most 1 arg"},
		// These pass, and stop at what a join lacks.
		"node":            {[]string{"s:1", "--then", "node", "--", "--node-ip", "192.0.2.7"}, "want one of --token and --token-file"},
		"service":         {[]string{"s:1", "--then", "install", "--", "--guest-kit", "kit", "--start=false"}, "want one of --token and --token-file"},
		"without another": {[]string{"s:1"}, "want one of --token and --token-file"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := newRootCommand()
			cmd.SetArgs(append([]string{"join", "--state-dir", filepath.Join(t.TempDir(), "s")}, tt.args...))
			cmd.SetOut(io.Discard)
			cmd.SetErr(io.Discard)
			err := cmd.ExecuteContext(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v does not say %q", err, tt.want)
			}
		})
	}
}

// A node that runs as another user than the one that joins could not read its identity.
func TestJoinThenSystem(t *testing.T) {
	root, ci := person{name: "root"}, person{name: "ci", uid: 1000}
	for name, tt := range map[string]struct {
		me    person
		runAs string
		want  string // part of the error; none is none
	}{
		"by sudo":               {root, "ci", "join as ci, without --then, and sudo vk-firkin install --system --run-as ci"},
		"by root, for nobody":   {root, "", "--run-as USER"},
		"by root, for root":     {root, "root", ""},
		"by a user":             {ci, "", "without --then, and sudo vk-firkin install --system"},
		"by a user, for theirs": {ci, "ci", "it needs root"},
	} {
		err := checkThenSystem(tt.me, tt.runAs)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// keepJoined writes what a host has that has joined.
func keepJoined(t *testing.T, dir, server, node string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: cert}
	config.Contexts["c"] = &clientcmdapi.Context{Cluster: "c"}
	config.CurrentContext = "c"
	kubeconfig, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(identity.KubeconfigPath(dir), kubeconfig, 0o600),
		os.WriteFile(filepath.Join(dir, "client.pem"), append(cert, private...), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// The command is repeated as it is when what it goes on with did not go well, also beside the node that runs
// meanwhile; another identity is not put in place of the one there is, and nothing is taken for the other.
func TestJoinIsRepeated(t *testing.T) {
	ran := false
	goesOn["seen"] = func() *cobra.Command {
		return &cobra.Command{Use: "seen", DisableFlagParsing: true, RunE: func(*cobra.Command, []string) error { ran = true; return nil }}
	}
	defer delete(goesOn, "seen")
	state := filepath.Join(t.TempDir(), "s")
	keepJoined(t, credentialsDir(state), "https://192.0.2.1:6443", "mac-1")
	for name, tt := range map[string]struct {
		args []string
		want string // part of the error; none is none
	}{
		"again":                {[]string{"192.0.2.1:6443", "--node-name", "mac-1", "--then", "seen"}, ""},
		"with a slash":         {[]string{"https://192.0.2.1:6443/", "--node-name", "mac-1", "--then", "seen"}, ""},
		"another name":         {[]string{"192.0.2.1:6443", "--node-name", "mac-2", "--then", "seen"}, "as node mac-1"},
		"another server":       {[]string{"192.0.2.2:6443", "--node-name", "mac-1", "--then", "seen"}, "run `vk-firkin seen`, or give --replace"},
		"nothing to go on to":  {[]string{"192.0.2.1:6443", "--node-name", "mac-1"}, "run `vk-firkin node`, or give --replace"},
		"to replace the other": {[]string{"127.0.0.1:1", "--node-name", "mac-1", "--then", "seen", "--replace"}, "127.0.0.1:1"},
	} {
		for _, runs := range []bool{false, true} {
			release := func() error { return nil }
			if runs {
				lock, err := durable.LockDir(state)
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(name, "to replace") {
					tt.want = "a node that runs keeps its credentials"
				}
				release = lock.Close
			}
			ran = false
			var out strings.Builder
			cmd := newRootCommand()
			cmd.SetArgs(append([]string{"join", "--state-dir", state, "--token", testToken, "--discovery-token-unsafe-skip-ca-verification"}, tt.args...))
			cmd.SetOut(&out)
			cmd.SetErr(io.Discard)
			err := cmd.ExecuteContext(t.Context())
			if err := release(); err != nil {
				t.Fatal(err)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, a node runs %t: %v, want %q", name, runs, err, tt.want)
			}
			if ran != (tt.want == "") || ran && !strings.Contains(out.String(), "has joined https://192.0.2.1:6443 as node mac-1") {
				t.Errorf("%s, a node runs %t: it went on %t: %s", name, runs, ran, out.String())
			}
		}
	}
}

// The next command has the folders of the one that joined, and the flags that were meant for it.
func TestJoinGoesOn(t *testing.T) {
	var got []string
	goesOn["seen"] = func() *cobra.Command {
		cmd := &cobra.Command{Use: "seen", DisableFlagParsing: true, RunE: func(_ *cobra.Command, args []string) error { got = args; return nil }}
		return cmd
	}
	defer delete(goesOn, "seen")
	o := joinOptions{Then: "seen", directories: directories{StateDir: "/s", CacheDir: "/c"}}
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	if err := o.goOn(cmd, []string{"--node-ip", "192.0.2.7"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"--state-dir=/s", "--cache-dir=/c", "--node-ip", "192.0.2.7"}; !slices.Equal(got, want) {
		t.Errorf("it got %q, want %q", got, want)
	}
}
