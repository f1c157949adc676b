// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (run with -update and look at the difference):\n%s", path, got)
	}
}

// testLayout is a directory with its folders made. Its path is short: t.TempDir holds the test's name.
func testLayout(t *testing.T) Layout {
	t.Helper()
	dir, err := os.MkdirTemp("", "cp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := NewLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.make(); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestComponents(t *testing.T) {
	const l = Layout("/cp")
	var b strings.Builder
	for _, c := range []component{etcd(l), apiServer(l, 6443), controllerManager(l), scheduler(l)} {
		fmt.Fprintf(&b, "%s (grace %s)\n  %s\n", c.name, c.grace, strings.Join(c.args, "\n  "))
	}
	golden(t, "components.txt", b.String())
}

func TestKubeconfig(t *testing.T) {
	golden(t, "kubeconfig.yaml", string(kubeconfig(serverURL(6443), "system:node:mac-1", []byte("ca"), []byte("certificate"), []byte("key"))))
}

func TestEnvironmentKeepsTheCallersSettingsOut(t *testing.T) {
	callers := map[string]string{"PATH": "/bin", "HOME": "", "ETCD_NAME": "x", "KUBECONFIG": "/k", "HTTPS_PROXY": "http://p"}
	got := environment(func(name string) (string, bool) { v, ok := callers[name]; return v, ok })
	if want := "PATH=/bin HOME="; strings.Join(got, " ") != want {
		t.Errorf("environment = %q, want %q", got, want)
	}
}

func TestLayoutRefusesAPathNoSocketFitsIn(t *testing.T) {
	for length, ok := range map[int]bool{20: true, 93: true, 94: false, 300: false} {
		dir := "/" + strings.Repeat("d", length-1)
		l, err := NewLayout(dir)
		if ok != (err == nil) {
			t.Errorf("%d bytes: err = %v, want ok %t", length, err, ok)
		}
		if ok && string(l) != dir {
			t.Errorf("layout %q, want %q", l, dir)
		}
		if !ok && !strings.Contains(err.Error(), fmt.Sprintf("%d bytes shorter", length-93)) {
			t.Errorf("%d bytes: %v names no remedy", length, err)
		}
	}
}
