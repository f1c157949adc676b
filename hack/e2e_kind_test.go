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

// fake stands for every program that changes something: it notes what it was called with, and answers what the
// script asks.
const fake = `#!/bin/sh
name=$(basename "$0")
echo "$name $*${KUBECONFIG:+ [KUBECONFIG=$KUBECONFIG]}${FIRKIN_NODE_IP:+ [$FIRKIN_NODE_IP]}" >>"$RECORD"
case "$name $*" in
  "$FAILS"*) [ -n "$FAILS" ] && { echo "$name is told to fail" >&2; exit 1; } ;;
esac
case "$name $*" in
  "uname -s") echo "$OS" ;;
  "uname -m") [ "$OS" = Darwin ] && echo arm64 || echo x86_64 ;;
  "route "*) echo "  interface: en7" ;;
  "ipconfig getifaddr en7") echo 192.0.2.9 ;;
  "docker network inspect kind "*) printf 'fc00::1\n172.18.0.1\n' ;;
  "kind get clusters") echo "$CLUSTERS" ;;
  "kind version") echo "kind v0" ;;
  "helm get notes "*) echo "  vk-firkin join https://inner:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:11" ;;
  "kubectl "*" config view "*) echo https://outer:6443 ;;
  "vk-firkin join "*) echo "token $(cat)" >>"$RECORD" ;;
  "vk-firkin node "* | "vk-firkin controller "*) exec sleep 600 ;;
  "go test "*)
    printf '=== RUN   TestGood\n--- PASS: TestGood (1s)\n=== RUN   TestOther\n    main_test.go:7: KUBECONFIG chose another cluster: no key\n--- SKIP: TestOther (0s)\n' ;;
esac
`

// programs of the system that the script may use: what is not here, and no fake, is missing.
var programs = []string{"bash", "sh", "env", "dirname", "basename", "mktemp", "grep", "sed", "awk", "head", "cat", "rm", "tee", "tr", "sleep"}

// scene is a checkout with nothing in it but the script, and a PATH of fakes.
type scene struct {
	root, path, record string
}

func newScene(t *testing.T, fakes ...string) scene {
	t.Helper()
	s := scene{root: t.TempDir(), path: t.TempDir()}
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
	script, err := os.ReadFile("e2e-kind.sh")
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(s.root, "hack", "e2e-kind.sh"), string(script))
	write(filepath.Join(s.root, "hack", "prerequisites.sh"), fake)
	for _, name := range []string{"helm", "vk-firkin"} {
		write(filepath.Join(s.root, "bin", name), fake)
	}
	for _, name := range []string{"bin/guest/arm64/kit.json", "busybox", "busybox.list", "kubeconfig"} {
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

var (
	linux = []string{"go", "make", "docker", "kind", "kubectl"}
	mac   = append(slices.Clone(linux), "codesign", "route", "ipconfig")
)

// run runs the script; calls are what the fakes noted, but for what only asks.
func (s scene) run(t *testing.T, env []string, args ...string) (out string, calls []string, code int) {
	t.Helper()
	// A script that hangs is a failure with its output, not a test that is killed.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.root, "hack", "e2e-kind.sh"), args...)
	// KUBECONFIG is a cluster of the user's, which the script must not touch.
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

// The whole way: a cluster, the chart, a node that joins as the chart says, the stories by KUBECONFIG, and an end
// that leaves nothing.
func TestE2EKind(t *testing.T) {
	t.Parallel()
	s := newScene(t, linux...)
	out, calls, code := s.run(t, []string{"RUN=TestHello"})
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	inOrder(t, calls, "make --no-print-directory build helm", "make --no-print-directory build-simulated guest",
		"kind create cluster --name vk-firkin-e2e --kubeconfig "+s.path+"/fk-kind",
		"kubectl --kubeconfig "+s.path+"/fk-kind ... taint nodes --all", "kubectl ... patch daemonset kindnet kube-proxy",
		"helm install vk-firkin charts/vk-firkin --namespace vk-firkin",
		"vk-firkin join https://outer:6443 --token-file - --discovery-token-ca-cert-hash sha256:11", "token abcdef.0123456789abcdef",
		"kubectl ... wait --for=condition=Ready node/firkin-joined", "kubectl ... delete node/firkin-joined",
		"go test -tags e2e -count 1 -v -timeout 60m -run TestHello -skip ^$ ./test/e2e [KUBECONFIG="+s.path+"/fk-kind",
		"kind delete cluster --name vk-firkin-e2e")
	if i := slices.IndexFunc(calls, func(c string) bool { return strings.HasPrefix(c, "go test") }); !strings.HasSuffix(calls[i], "[172.18.0.1]") {
		t.Errorf("the stories know this host by another address than that of kind's network: %s", calls[i])
	}
	for _, want := range []string{"stories: 1 passed, 0 failed, 1 skipped", "skipped: TestOther: KUBECONFIG chose another cluster: no key", "the controller in a pod: there is no make image"} {
		if !strings.Contains(out, want) {
			t.Errorf("the summary does not say %q: %s", want, out)
		}
	}
	if strings.Contains(strings.Join(calls, "\n"), "--token abcdef") {
		t.Error("the token is on a command line")
	}
}

func TestE2EKindOtherways(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		fakes  []string
		image  bool // make image exists
		env    []string
		args   []string
		code   int
		says   []string
		calls  []string // in order
		never  []string
		nobody bool // nothing but questions
	}{
		"stories fail": {
			fakes: linux, env: []string{"FAILS=go test"}, code: 1, says: []string{"stories failed", "logs are kept in /"},
			calls: []string{"go test", "kind export logs", "kind delete cluster"},
		},
		"the cluster is kept": {
			fakes: linux, env: []string{"KEEP=1"}, says: []string{"export KUBECONFIG=/", "delete cluster --name vk-firkin-e2e ends it"},
			calls: []string{"go test"}, never: []string{"kind delete"},
		},
		"kind fails": {fakes: linux, env: []string{"FAILS=kind create"}, code: 1, calls: []string{"kind create", "kind delete"}, never: []string{"helm", "go test"}},
		"the cluster is there": {
			fakes: linux, env: []string{"CLUSTERS=vk-firkin-e2e"}, code: 1, says: []string{"kind has a cluster vk-firkin-e2e already"}, never: []string{"kind create", "kind delete"},
		},
		"joining fails": {fakes: linux, env: []string{"FAILS=vk-firkin join"}, code: 1, says: []string{"is told to fail", "joining failed"}, calls: []string{"vk-firkin join", "kind delete"}, never: []string{"go test"}},
		"the node never comes": {
			fakes: linux, env: []string{"FAILS=vk-firkin node"}, calls: []string{"vk-firkin node"}, // wait is a fake: it passes
		},
		"kind is built": {
			fakes: []string{"go", "make", "docker", "kubectl"}, env: []string{"FAILS=make --no-print-directory kind"}, code: 1, calls: []string{"make --no-print-directory kind"}, never: []string{"helm"},
		},
		"nothing is there": {
			env: []string{}, code: 1, nobody: true,
			says: []string{"go: from go.dev/dl", "kubectl: brew install kubectl", "docker: on a Mac Docker Desktop"},
		},
		"Docker does not answer": {fakes: linux, env: []string{"FAILS=docker info"}, code: 1, nobody: true, says: []string{"a Docker daemon that answers"}},
		"a Mac without anything": {
			fakes: linux, env: []string{"OS=Darwin", "FIRKIN_BUSYBOX=", "FIRKIN_KIT_DIR=/nowhere"}, code: 1, nobody: true,
			says: []string{"codesign: xcode-select --install", "the guest kit in /nowhere/arm64", "FIRKIN_BUSYBOX"},
		},
		"a Mac": {
			fakes: mac, env: []string{"OS=Darwin"}, says: []string{"at 192.0.2.9"},
			calls: []string{"make --no-print-directory build helm", "kind create", "vk-firkin node", "go test"}, never: []string{"make --no-print-directory build-simulated", "prerequisites.sh", "docker network"},
		},
		"the controller in a pod": {
			fakes: linux, image: true, says: []string{"the controller ran in a pod"},
			calls: []string{"make --no-print-directory image ARCH=amd64 IMAGE=localhost/vk-firkin:e2e", "kind load image-archive bin/image/vk-firkin.tar --name vk-firkin-e2e", "helm install"},
			never: []string{"vk-firkin controller"},
		},
		"another cluster": {
			fakes: []string{"go", "make", "kubectl"}, args: []string{"--kubeconfig", "kubeconfig"}, says: []string{"kind: the cluster was there", "at 127.0.0.1"},
			calls: []string{"helm install", "go test", "helm uninstall"}, never: []string{"kind", "docker"},
		},
		"a dry run": {
			fakes: linux, args: []string{"--dry-run"}, nobody: true,
			says: []string{"+ kind create cluster", "+ bin/helm install", "+ go test -tags e2e", "+ kind delete cluster", "nothing: a dry run"},
		},
		"another word": {fakes: linux, args: []string{"--wet-run"}, code: 1, says: []string{"usage:"}, nobody: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, tt.fakes...)
			if tt.image {
				if err := os.WriteFile(filepath.Join(s.root, "Makefile"), []byte("image:\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			out, calls, code := s.run(t, tt.env, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, out)
			}
			for _, want := range tt.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q: %s", want, out)
				}
			}
			inOrder(t, calls, tt.calls...)
			for _, prefix := range tt.never {
				if n := count(calls, prefix); n > 0 {
					t.Errorf("%d calls begin with %q:\n%s", n, prefix, strings.Join(calls, "\n"))
				}
			}
			if tt.nobody && len(calls) != count(calls, "uname ")+count(calls, "docker info")+count(calls, "kind version") {
				t.Errorf("something was run:\n%s", strings.Join(calls, "\n"))
			}
		})
	}
}
