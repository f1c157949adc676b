// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func readFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
	}
	return files
}

func TestNodeCredentials(t *testing.T) {
	l := testLayout(t)
	out := filepath.Join(t.TempDir(), "node")
	c := NodeCredentials{Dir: string(l), Name: "mac-1", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Out: out}

	if err := WriteNodeCredentials(c); err == nil || !strings.Contains(err.Error(), "controlplane up") {
		t.Fatalf("without a control plane: %v, want the remedy", err)
	}
	if _, err := ensureIdentities(l, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(l.Port(), []byte("6443\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func() map[string]string {
		t.Helper()
		if err := WriteNodeCredentials(c); err != nil {
			t.Fatal(err)
		}
		return readFiles(t, out)
	}
	first := write()
	for _, name := range []string{"kubeconfig", "kubelet.crt", "kubelet.key", "client-ca.crt"} {
		if first[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
	if len(first) != 4 {
		t.Errorf("%d files, want 4", len(first))
	}
	if !strings.Contains(first["kubeconfig"], "https://127.0.0.1:6443") {
		t.Errorf("kubeconfig without the server: %s", first["kubeconfig"])
	}
	for name, data := range write() {
		if data != first[name] {
			t.Errorf("%s changed on repetition", name)
		}
	}
	if err := writeFile(l.Port(), []byte("7443\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	moved := write()
	if want := strings.ReplaceAll(first["kubeconfig"], ":6443", ":7443"); moved["kubeconfig"] != want {
		t.Errorf("after the API server moved: %s\nwant: %s", moved["kubeconfig"], want)
	}
	c.IPs = []net.IP{net.IPv4(10, 0, 0, 7)}
	p, err := parsePair([]byte(write()["kubelet.crt"]), []byte(readFiles(t, out)["kubelet.key"]))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cert.VerifyHostname("10.0.0.7"); err != nil {
		t.Errorf("after the address changed: %v", err)
	}
}

func TestNodeCredentialsRefusesBadNames(t *testing.T) {
	for _, name := range []string{"", "Mac", "a b", "../x", "a/b", ".", "..", "a..b", "-a", "a-", "a\n", strings.Repeat("a", 254)} {
		if err := WriteNodeCredentials(NodeCredentials{Dir: t.TempDir(), Name: name}); err == nil || !strings.Contains(err.Error(), "node name") {
			t.Errorf("name %q: %v, want it refused", name, err)
		}
	}
}

func TestReadPortRefusesGarbage(t *testing.T) {
	l := testLayout(t)
	for _, content := range []string{"", "x", "0", "65536", "-1"} {
		if err := writeFile(l.Port(), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if port, err := readPort(l); err == nil {
			t.Errorf("%q was read as port %d", content, port)
		}
	}
}

func TestChoosePort(t *testing.T) {
	l := testLayout(t)
	fresh, err := choosePort(l, 0)
	if err != nil || fresh < firstPort || fresh > lastPort {
		t.Fatalf("port %d, %v", fresh, err)
	}
	if err := writeFile(l.Port(), []byte("16123"), 0o644); err != nil {
		t.Fatal(err)
	}
	if portFree(16123) == nil {
		if again, err := choosePort(l, 0); err != nil || again != 16123 {
			t.Errorf("port %d, %v; want the one used last", again, err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if _, err := choosePort(l, ln.Addr().(*net.TCPAddr).Port); err == nil {
		t.Error("a port in use was accepted")
	}
}
