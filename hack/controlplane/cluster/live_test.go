// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build controlplane && linux

package cluster

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// liveTimeout bounds each step: a start takes 4 s on 2 idle cores, and the machine may be busy.
const liveTimeout = 2 * time.Minute

func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CONTROLPLANE_BINARY")
	if path == "" {
		path = filepath.Join("..", "bin", "controlplane")
	}
	abs, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(abs)
	}
	if err != nil {
		t.Fatalf("%v: run hack/controlplane/build.sh first, or set CONTROLPLANE_BINARY", err)
	}
	return abs
}

// upProcess is a running `controlplane up`.
type upProcess struct {
	Ready

	cmd    *exec.Cmd
	stdin  io.Closer
	stderr bytes.Buffer // read it after exit
}

func startUp(t *testing.T, dir string, flags ...string) *upProcess {
	t.Helper()
	u := &upProcess{cmd: exec.Command(binary(t), append([]string{"up", "--dir", dir}, flags...)...)}
	u.cmd.Stderr = &u.stderr
	stdin, err := u.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	u.stdin = stdin
	stdout, err := u.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.cmd.Process.Kill() }) // nothing to kill when the test went well
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &u.Ready)
	}
	if err != nil {
		_ = u.cmd.Wait()
		t.Fatalf("up printed %q (%v): %s", line, err, u.stderr.String())
	}
	t.Logf("ready after %.1f s", u.Seconds)
	return u
}

// exit waits until `up` has ended and returns its exit code. No process that names dir is left.
func (u *upProcess) exit(t *testing.T, dir string) int {
	t.Helper()
	timer := time.AfterFunc(liveTimeout, func() { _ = u.cmd.Process.Kill() })
	err := u.cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("up did not end within %s: %s", liveTimeout, u.stderr.String())
	}
	if left := processes(t, dir); len(left) > 0 {
		t.Fatalf("left after up has ended: %v", left)
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

// processes returns the command lines that name dir, by process id.
func processes(t *testing.T, dir string) map[int]string {
	t.Helper()
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // empty for a zombie
		if err == nil && bytes.Contains(line, []byte(dir)) {
			found[pid] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return found
}

// kubectl runs kubectl under the binary's other name and returns its output.
func kubectl(t *testing.T, kubeconfig string, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary(t), append([]string{"kubectl", "--kubeconfig", kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustKubectl(t *testing.T, kubeconfig string, stdin string, args ...string) string {
	t.Helper()
	out, err := kubectl(t, kubeconfig, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func signal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

func TestLiveControlPlane(t *testing.T) {
	dir := string(testLayout(t))
	t.Cleanup(func() {
		for pid := range processes(t, dir) { // none, unless the test has failed
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})

	u := startUp(t, dir)
	if len(processes(t, dir)) != 5 {
		t.Errorf("processes: %v, want up and its four components", processes(t, dir))
	}
	first := u.Ready
	ca := readFile(t, filepath.Join(dir, "ca.crt"))
	mustKubectl(t, u.Kubeconfig, "", "create", "namespace", "kept")
	if out, err := exec.Command(filepath.Join(dir, "bin", "kubectl"), "--kubeconfig", u.Kubeconfig, "version").CombinedOutput(); err != nil ||
		strings.Count(string(out), "v1.36.3") != 2 {
		t.Errorf("kubectl by its own name: %v: %s", err, out)
	}
	out, err := exec.Command(binary(t), "up", "--dir", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "already runs") {
		t.Errorf("a second up on the same directory: %v: %s", err, out)
	}
	signal(t, u.cmd.Process.Pid, syscall.SIGTERM)
	if code := u.exit(t, dir); code != 0 {
		t.Errorf("exit %d after SIGTERM: %s", code, u.stderr.String())
	}

	u = startUp(t, dir)
	mustKubectl(t, u.Kubeconfig, "", "get", "namespace", "kept")
	if u.Server != first.Server || readFile(t, filepath.Join(dir, "ca.crt")) != ca {
		t.Errorf("reuse moved the server from %s to %s, or changed the authority", first.Server, u.Server)
	}
	if out := mustKubectl(t, u.Kubeconfig, "", "get", "configmap", "cluster-info", "-n", "kube-public", "-o", "jsonpath={.data.kubeconfig}", "--as", "system:anonymous"); !strings.Contains(out, u.Server) {
		t.Errorf("cluster-info, which anybody may read, is %q, want the server %s", out, u.Server)
	}
	t.Run("node", func(t *testing.T) { testNode(t, dir, u.Kubeconfig) })
	signal(t, u.cmd.Process.Pid, syscall.SIGKILL)
	_ = u.cmd.Wait()
	// The kernel signals the children when the parent ends; it takes them a moment to go.
	for deadline := time.Now().Add(10 * time.Second); len(processes(t, dir)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left after SIGKILL: %v", processes(t, dir))
		}
	}

	u = startUp(t, dir, "--exit-with-parent")
	mustKubectl(t, u.Kubeconfig, "", "get", "namespace", "kept")
	if err := u.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if code := u.exit(t, dir); code != 0 {
		t.Errorf("exit %d after the end of standard input: %s", code, u.stderr.String())
	}

	u = startUp(t, dir)
	for pid, line := range processes(t, dir) {
		if strings.Contains(line, "bin/"+Scheduler+" ") {
			signal(t, pid, syscall.SIGKILL)
		}
	}
	if code := u.exit(t, dir); code != 1 || !strings.Contains(u.stderr.String(), "kube-scheduler died (signal: killed)") ||
		!strings.Contains(u.stderr.String(), "kube-scheduler.log:") {
		t.Errorf("exit %d after the scheduler died: %s", code, u.stderr.String())
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// testNode plays a kubelet with the credentials of a node.
func testNode(t *testing.T, dir, admin string) {
	out := filepath.Join(t.TempDir(), "mac-1")
	if text, err := exec.Command(binary(t), "node-credentials", "--dir", dir, "--name", "mac-1", "--out", out).CombinedOutput(); err != nil {
		t.Fatalf("node-credentials: %v: %s", err, text)
	}
	node := filepath.Join(out, "kubeconfig")
	port := serveLogs(t, out)

	// As a kubelet registers: with its status.
	mustKubectl(t, node, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "mac-1"}, "status": {
		"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": %d}}}}`, port),
		"create", "-f", "-")
	mustKubectl(t, node, "", "get", "node", "mac-1")
	for _, args := range [][]string{
		{"get", "secrets", "--all-namespaces"},
		{"label", "node", "mac-1", "node-restriction.kubernetes.io/x=y"},
		{"create", "namespace", "from-a-node"},
	} {
		if text, err := kubectl(t, node, "", args...); err == nil || !strings.Contains(text, "orbidden") && !strings.Contains(text, "not allowed") {
			t.Errorf("a node may %v: %v: %s", args, err, text)
		}
	}
	// Exits with 1 for a no.
	mustKubectl(t, admin, "", "auth", "can-i", "get", "nodes/proxy", "--as", userKubeletClient, "--quiet")
	mustKubectl(t, admin, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec":
		{"nodeName": "mac-1", "containers": [{"name": "c", "image": "none"}]}}`, "create", "-f", "-")
	if text := mustKubectl(t, admin, "", "logs", "p"); text != "/containerLogs/default/p/c for "+userKubeletClient+"\n" {
		t.Errorf("kubectl logs = %q", text)
	}
}

// serveLogs is the part of a kubelet that the API server calls, with the node's serving certificate.
func serveLogs(t *testing.T, credentials string) int {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(credentials, "kubelet.crt"), filepath.Join(credentials, "kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(credentials, "client-ca.crt")))) {
		t.Fatal("client-ca.crt holds no certificate")
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: liveTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %s\n", r.URL.Path, r.TLS.PeerCertificates[0].Subject.CommonName)
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return ln.Addr().(*net.TCPAddr).Port
}
