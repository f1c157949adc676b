// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package hack

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	linux = []string{"go", "make", "docker", "kind", "kubectl"}
	mac   = append(slices.Clone(linux), "codesign", "route", "ipconfig")
)

// The whole way: a cluster, the chart, a node that joins as the chart says, the stories by KUBECONFIG, and an end
// that leaves nothing.
func TestE2EKind(t *testing.T) {
	t.Parallel()
	s := newScene(t, "e2e-kind.sh", linux...)
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
	for _, want := range []string{"stories: 1 passed, 0 failed, 1 skipped", "\n  skipped: TestOther: KUBECONFIG chose another cluster: no key", "the controller in a pod: there is no make image"} {
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
		"the chart is there": {
			fakes: []string{"go", "make", "kubectl"}, args: []string{"--kubeconfig", "kubeconfig"}, env: []string{"RELEASED=1"}, code: 1,
			says: []string{"release vk-firkin is in namespace vk-firkin already"}, never: []string{"helm install", "helm uninstall", "go test"},
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
			s := newScene(t, "e2e-kind.sh", tt.fakes...)
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
