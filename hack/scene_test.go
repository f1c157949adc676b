// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package hack

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fake stands for every program that changes something: it notes what it was called with, answers what a
// script asks, and makes the file that it is told to.
const fake = `#!/bin/sh
name=$(basename "$0")
echo "$name $*${KUBECONFIG:+ [KUBECONFIG=$KUBECONFIG]}${FIRKIN_NODE_IP:+ [$FIRKIN_NODE_IP]}${GOOS:+ [$GOOS cgo $CGO_ENABLED]}" >>"$RECORD"
case "$name $*" in
  "$FAILS"*) [ -n "$FAILS" ] && { echo "$name is told to fail" >&2; exit 1; } ;;
esac
last=
for word in "$@"; do
  case "$last" in -o | -output | -notices) echo made >"$word" ;; esac
  last=$word
done
case "$name $*" in
  "uname -s") echo "$OS" ;;
  "uname -m") [ "$OS" = Darwin ] && echo arm64 || echo x86_64 ;;
  "route "*) echo "  interface: en7" ;;
  "ipconfig getifaddr en7") echo 192.0.2.9 ;;
  "docker network inspect kind "*) printf 'fc00::1\n172.18.0.1\n' ;;
  "kind get clusters") echo "$CLUSTERS" ;;
  "kind version") echo "kind v0" ;;
  "helm status "*) [ -n "${RELEASED:-}" ] || exit 1 ;;
  "helm get notes "*) echo "  vk-firkin join https://inner:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:11" ;;
  "kubectl "*" config view "*) echo https://outer:6443 ;;
  "vk-firkin join "*) echo "token $(cat)" >>"$RECORD" ;;
  "vk-firkin node "* | "vk-firkin controller "*) exec sleep 600 ;;
  "go test "*)
    printf '=== RUN   TestGood\n--- PASS: TestGood (1s)\n=== RUN   TestOther\n    main_test.go:7: KUBECONFIG chose another cluster: no key\n--- SKIP: TestOther (0s)\n' ;;
esac
`

// programs of the system that the script may use: what is not here, and no fake, is missing.
var programs = []string{"bash", "sh", "env", "dirname", "basename", "mktemp", "grep", "sed", "awk", "head", "cat", "rm", "tee", "tr", "sleep",
	"tar", "gzip", "ln", "mkdir", "cp", "mv", "ls"}

// scene is a checkout with nothing in it but the script, and a PATH of fakes.
type scene struct {
	root, path, record, script string
}

func newScene(t *testing.T, script string, fakes ...string) scene {
	t.Helper()
	s := scene{root: t.TempDir(), path: t.TempDir(), script: script}
	s.record = filepath.Join(s.path, "record")
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(s.root, "hack", script), string(content))
	write(filepath.Join(s.root, "hack", "prerequisites.sh"), fake)
	for _, name := range []string{"helm", "vk-firkin"} {
		write(filepath.Join(s.root, "bin", name), fake)
	}
	for _, name := range []string{"bin/guest/arm64/kit.json", "bin/guest/arm64/NOTICES.txt", "bin/guest/arm64/kernel", "bin/guest/amd64/kit.json", "bin/guest/amd64/NOTICES.txt", "bin/guest/.cache/amd64/firkin-agent", "bin/guest/.cache/arm64/firkin-agent", "hack/vz.entitlements", "LICENSE", "charts/vk-firkin/Chart.yaml", "busybox", "busybox.list", "kubeconfig"} {
		write(filepath.Join(s.root, name), "")
	}
	write(filepath.Join(s.root, "Makefile"), "build:\n")
	write(s.record, "")
	for _, name := range append(fakes, "uname") {
		write(filepath.Join(s.path, name), fake)
	}
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(s.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// run runs the script; calls are what the fakes noted, but for what only asks.
func (s scene) run(t *testing.T, env []string, args ...string) (out string, calls []string, code int) {
	t.Helper()
	// A script that hangs is a failure with its output, not a test that is killed.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.root, "hack", s.script), args...)
	// KUBECONFIG is a cluster of the user's, which the script must not touch.
	cmd.Dir = s.root
	cmd.Env = append([]string{"PATH=" + s.path, "RECORD=" + s.record, "OS=Linux", "FAILS=", "CLUSTERS=", "KUBECONFIG=/users/own", "FIRKIN_BUSYBOX=busybox", "E2E_TMP=" + s.path}, env...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, b.String())
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	noted, err := os.ReadFile(s.record)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(noted)) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "/users/own") && !strings.HasPrefix(line, "uname ") && !strings.HasPrefix(line, "docker info") {
			t.Errorf("a command can reach the user's own cluster: %s", line)
		}
		calls = append(calls, line)
	}
	return b.String(), calls, code
}

// inOrder wants calls that begin so, and go on with what is after " ... ", in this order.
func inOrder(t *testing.T, calls []string, want ...string) {
	t.Helper()
	rest := calls
	for _, w := range want {
		begins, goesOn, _ := strings.Cut(w, " ... ")
		i := slices.IndexFunc(rest, func(call string) bool { return strings.HasPrefix(call, begins) && strings.Contains(call, goesOn) })
		if i < 0 {
			t.Fatalf("there is no %q, or it comes too early, in:\n%s", w, strings.Join(calls, "\n"))
		}
		rest = rest[i+1:]
	}
}

func count(calls []string, prefix string) (n int) {
	for _, call := range calls {
		if strings.HasPrefix(call, prefix) {
			n++
		}
	}
	return n
}
