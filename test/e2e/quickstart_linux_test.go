// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/util/cert"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// The README's three commands, as written there, lead from an empty cluster to a Ready node and a pod in a warm
// machine; the third one's example is then used as its own README says. What is not as a user has it: the
// controller's pod has no other node to run on, so the test runs what its Deployment says, as its account.
func TestThreeCommands(t *testing.T) {
	needsEmbedded(t, "the story begins with an empty one, which it starts")
	commands := markedBlock(t, "../../README.md", "three commands")
	if len(commands) > 3 {
		t.Fatalf("the README takes %d commands: %q", len(commands), commands)
	}
	q := newQuickstart(t)
	notes, err := q.run(t, commands[0])
	if err != nil {
		t.Fatalf("%s: %v\n%s", commands[0], err, notes)
	}
	q.runController(t)
	q.start(t, "join", fillIn(t, commands[1], notes)+q.further(t))
	q.must(t, commands[2])

	q.must(t, "kubectl wait --for=create --timeout=60s node/"+hostName(t)+" && kubectl wait --for=condition=Ready --timeout=60s node/"+hostName(t))
	q.must(t, "kubectl wait --for=condition=Available --timeout=4m deployment/sandbox")
	pod := q.must(t, "kubectl get pods -l app=sandbox -o jsonpath='{.items[*].metadata.name}'")
	cameByWarm := func(pod string) {
		t.Helper()
		eventually(t, waitShort, "how the machine of "+pod+" came", func() error {
			out, err := q.run(t, "kubectl get events --field-selector reason=MachineRestored,involvedObject.name="+pod)
			if err == nil && !strings.Contains(out, "warm") {
				err = errors.New("events are " + out)
			}
			return err
		})
	}
	cameByWarm(pod)
	// Its serving certificate is approved while the pod starts.
	eventually(t, time.Minute, "the pod can be entered", func() error {
		out, err := q.run(t, "kubectl exec "+pod+" -- cat /opt/tools/about")
		if err == nil && out != "tools of the sandbox\n" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})

	block := markedBlock(t, "../../examples/agent-sandbox/README.md", "run as they are")
	out := q.must(t, "set -euo pipefail\n"+strings.Join(block, "\n"))
	if !strings.Contains(out, "2 + 2 = 4") {
		t.Errorf("the example's commands say %s", out)
	}
	if result, err := os.ReadFile(filepath.Join(q.checkout, "result")); err != nil || string(result) != "2 + 2 = 4\n" {
		t.Errorf("what was copied out is %q, %v", result, err)
	}
	var next string
	eventually(t, waitShort, "another pod is in the other's place", func() error {
		out, err := q.run(t, `kubectl get pods -l app=sandbox -o jsonpath='{range .items[?(@.status.phase=="Running")]}{.metadata.name}{end}'`)
		if next = out; err == nil && (next == "" || strings.Contains(next, pod)) {
			err = fmt.Errorf("pods that run are %q", next)
		}
		return err
	})
	cameByWarm(next)
	if out := q.must(t, "kubectl exec "+next+" -- ls -A /work"); out != "" {
		t.Errorf("the next sandbox has %q of the one before", out)
	}
}

// quickstart is a cluster with nothing in it, and a checkout in which commands are typed.
type quickstart struct {
	plane         *cluster.ControlPlane
	dir, checkout string
	env           []string
}

func newQuickstart(t *testing.T) *quickstart {
	t.Helper()
	q := &quickstart{dir: nodeDir(t)}
	q.checkout = filepath.Join(q.dir, "checkout")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var err error
	if q.plane, err = cluster.StartControlPlane(ctx, os.Getenv("FIRKIN_CONTROLPLANE"), q.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.plane.Stop)
	home := filepath.Join(q.dir, "h")
	for _, folder := range []string{home, filepath.Join(q.checkout, "bin")} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"bin/vk-firkin": filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"), "bin/helm": filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "helm"),
		"bin/guest": os.Getenv("FIRKIN_KIT_DIR"), "charts": "../../charts", "examples": "../../examples",
	} {
		to, err := filepath.Abs(to)
		if err == nil {
			err = os.Symlink(to, filepath.Join(q.checkout, link))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	q.env = []string{
		"PATH=" + filepath.Join(q.plane.Dir, "bin") + string(os.PathListSeparator) + os.Getenv("PATH"),
		"HOME=" + home, "KUBECONFIG=" + q.plane.Kubeconfig, "REGISTRY=" + served.Address,
	}
	proxy, authority := dockerHub(t)
	q.env = append(q.env, "HTTPS_PROXY="+proxy, "SSL_CERT_FILE="+authority)
	return q
}

// dockerHub is a proxy behind which the image of the examples is where everybody has it from, and the file of the
// authority that vouches for that. Commands and examples need not be changed for a host without the internet.
func dockerHub(t *testing.T) (proxy, authority string) {
	t.Helper()
	const host = "index.docker.io"
	certPEM, keyPEM, err := cert.GenerateSelfSignedCertKey(host, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	authority = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(authority, certPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	hub := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: served.Address})
		r.Out.URL.Path = strings.Replace(r.Out.URL.Path, "/v2/library/", "/v2/", 1)
	}})
	hub.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	hub.StartTLS()
	t.Cleanup(hub.Close)
	tunnel := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != host+":443" {
			http.Error(w, "only "+host+" is here", http.StatusBadGateway)
			return
		}
		there, err := net.DialTimeout("tcp", hub.Listener.Addr().String(), 10*time.Second)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer there.Close()
		here, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		if _, err := io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(there, buffered)
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
		_ = here.Close()
		<-done
	}))
	t.Cleanup(tunnel.Close)
	return tunnel.URL, authority
}

func (q *quickstart) command(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir, cmd.Env = q.checkout, q.env
	return cmd
}

// run types a line and returns all that it says.
func (q *quickstart) run(t *testing.T, line string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute) // what waits in it has limits of its own
	defer cancel()
	out, err := q.command(ctx, line).CombinedOutput()
	return string(out), err
}

func (q *quickstart) must(t *testing.T, line string) string {
	t.Helper()
	out, err := q.run(t, line)
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// start types a line in a terminal of its own, and interrupts it when the story ends.
func (q *quickstart) start(t *testing.T, name, line string) {
	t.Helper()
	log, err := os.Create(filepath.Join(q.dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := q.command(context.Background(), "exec "+line)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Its machines go on without it, as they should.
	machines, err := q.plane.PrepareNode(t.Context(), cluster.NodeOptions{Name: "own", Dir: q.dir, Joined: true, StateDir: filepath.Join(q.dir, "h/.firkin/state")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s says:\n%s", name, lastLines(t, log.Name(), 60))
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		timer := time.AfterFunc(30*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait()
		timer.Stop()
		_ = log.Close()
		for _, pid := range machines.MachinePIDs() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
}

// runController runs the controller as the chart's Deployment has it, with its account.
func (q *quickstart) runController(t *testing.T) {
	t.Helper()
	var deployments appsv1.DeploymentList
	out := q.must(t, "kubectl get deployments -n vk-firkin -l app.kubernetes.io/component=controller -o json")
	if err := json.Unmarshal([]byte(out), &deployments); err != nil || len(deployments.Items) != 1 {
		t.Fatalf("deployments: %v in %s", err, out)
	}
	spec := deployments.Items[0].Spec.Template.Spec
	if image := spec.Containers[0].Image; !strings.HasPrefix(image, served.Address+"/vk-firkin:") {
		t.Errorf("the controller's image is %s, want one of $REGISTRY", image)
	}
	kubeconfig, err := q.plane.AccountKubeconfig(t.Context(), "vk-firkin", spec.ServiceAccountName, filepath.Join(q.dir, "controller.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	line := "bin/vk-firkin"
	for _, arg := range spec.Containers[0].Args {
		if strings.HasPrefix(arg, "--health-probe-address=") || strings.HasPrefix(arg, "--metrics-address=") {
			arg, _, _ = strings.Cut(arg, ":") // ports of this host are not the test's
		}
		line += " '" + arg + "'"
	}
	q.start(t, "controller", line+" --kubeconfig "+kubeconfig)
}

// further are flags for a host whose disk is too full for the defaults, or whose ports are taken: neither is part of
// the story.
func (q *quickstart) further(t *testing.T) string {
	t.Helper()
	flags := ""
	for flag, port := range map[string]string{"--kubelet-port ": ":10250", "--metrics-address 127.0.0.1:": "127.0.0.1:10255"} {
		if l, err := net.Listen("tcp", port); err == nil {
			_ = l.Close()
			continue
		}
		t.Logf("%s is taken", port)
		flags += fmt.Sprintf(" %s%d", flag, freePort(t))
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(q.dir, &fs); err != nil {
		t.Fatal(err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < 22<<30 {
		t.Logf("%d MiB of disk are free, less than nodes want: with lower floors", free>>20)
		flags += " --min-free-disk 2Gi --refill-min-free-disk 3Gi"
	}
	if flags != "" {
		return " --" + flags
	}
	return ""
}

// fillIn puts what the notes say into the places that the README leaves: a user copies the notes' line.
func fillIn(t *testing.T, command, notes string) string {
	t.Helper()
	said := regexp.MustCompile(`(?m)^  vk-firkin join .*$`).FindString(notes)
	want, got := strings.Fields(command), strings.Fields(said)
	if len(want) != len(got) || len(got) == 0 {
		t.Fatalf("the README says %q, the notes %q:\n%s", command, said, notes)
	}
	for i, word := range want {
		if word != got[i] && word != "bin/"+got[i] && !regexp.MustCompile(`SERVER|TOKEN|HASH`).MatchString(word) {
			t.Errorf("the README says %q, the notes %q", command, said)
		}
	}
	got[0] = want[0]
	return strings.Join(got, " ")
}

// markedBlock is the lines of the shell block that follows a comment with this mark.
func markedBlock(t *testing.T, path, mark string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)<!-- " + regexp.QuoteMeta(mark) + ".*?-->\n```sh\n(.*?)```").FindStringSubmatch(string(data))
	if found == nil {
		t.Fatalf("%s has no shell block after <!-- %s", path, mark)
	}
	var lines []string
	for line := range strings.Lines(found[1]) {
		line, _, _ = strings.Cut(line, "  # ")
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

func hostName(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToLower(name)
}
