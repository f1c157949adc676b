// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// waitBuild is patience for a template to be built and restored on a busy host.
const waitBuild = 4 * time.Minute

// templateManifest is a template of the busybox image whose set-up leaves a file. more are further
// lines of its spec.
func templateManifest(ns, name string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: firkin.dev/v1alpha1
kind: SnapshotTemplate
metadata: {name: %s, namespace: %s}
spec:
  image: %q
  shape: {cpu: 50m, memory: 256Mi}
  %s
`, name, ns, served.Busybox, strings.Join(more, "\n  "))
}

const simpleSetup = `setup: [{command: [sh, -c, "mkdir /opt && echo prepared > /opt/file"]}]`

// poolManifest is a pool on the shared node. more are further lines of its spec.
func poolManifest(ns, name, template string, replicas int, more ...string) string {
	lines := more
	if !slices.ContainsFunc(more, func(l string) bool { return strings.HasPrefix(l, "nodeSelector") }) {
		lines = append(lines, "nodeSelector: {kubernetes.io/hostname: "+node.Name+"}")
	}
	return fmt.Sprintf(`
apiVersion: firkin.dev/v1alpha1
kind: WarmPool
metadata: {name: %s, namespace: %s}
spec:
  templateRef: {name: %s}
  replicas: %d
  %s
`, name, ns, template, replicas, strings.Join(lines, "\n  "))
}

// templatePod is a pod of a template.
func templatePod(ns, name, template string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s}
spec:
  runtimeClassName: %s
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  %s
  containers:
  - name: main
    image: %q
    command: [sh, -c, "cat /opt/file; exec sleep 3600"]
`, name, ns, template, strings.Join(more, "\n  "), served.Busybox)
}

// poolNamespace is a namespace whose pools and templates end with the story.
func poolNamespace(t *testing.T) string {
	t.Helper()
	ns := namespace(t)
	t.Cleanup(func() { // before the namespace's own
		for _, kind := range []string{"warmpools", "snapshottemplates"} {
			if t.Failed() {
				out, _ := tryOutput("get", kind, "-n", ns, "-o", "yaml")
				t.Logf("%s\n%s", kind, out)
			}
			if out, err := tryOutput("delete", kind, "--all", "-n", ns, "--timeout=60s"); err != nil {
				t.Errorf("delete the story's %s: %v: %s", kind, err, out)
			}
		}
		if t.Failed() {
			out, _ := tryOutput("get", "nodeledgers", "-o", "yaml")
			t.Logf("ledgers\n%s", out)
		}
	})
	return ns
}

func getPool(t *testing.T, ns, name string) (*v1alpha1.WarmPool, error) {
	t.Helper()
	out, err := tryKubectl(t, "get", "warmpool", name, "-n", ns, "-o", "json")
	if err != nil {
		return nil, err
	}
	pool := &v1alpha1.WarmPool{}
	return pool, json.Unmarshal([]byte(out), pool)
}

// waitPool waits until the pool satisfies the condition and returns it.
func waitPool(t *testing.T, ns, name, what string, ok func(*v1alpha1.WarmPool) bool) *v1alpha1.WarmPool {
	t.Helper()
	var pool *v1alpha1.WarmPool
	eventually(t, waitBuild, fmt.Sprintf("pool %s/%s %s", ns, name, what), func() error {
		p, err := getPool(t, ns, name)
		if err != nil {
			return err
		}
		pool = p
		if !ok(p) {
			status, _ := json.Marshal(p.Status)
			return fmt.Errorf("status is %s", status)
		}
		return nil
	})
	return pool
}

// full: all that is wanted is ready and current.
func full(replicas int32) func(*v1alpha1.WarmPool) bool {
	return func(p *v1alpha1.WarmPool) bool {
		return p.Status.ObservedGeneration == p.Generation && p.Status.Ready == replicas && p.Status.Desired == replicas &&
			p.Status.Restoring == 0 && p.Status.Outdated == 0 && meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady)
	}
}

// condition is a condition of the given conditions, for what a story expects.
func condition(conditions []metav1.Condition, kind string) string {
	c := meta.FindStatusCondition(conditions, kind)
	if c == nil {
		return ""
	}
	return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
}

// checkouts is how many machines the node handed out by a path.
func checkouts(t *testing.T, n *cluster.Node, path string) float64 {
	t.Helper()
	return metric(t, n, "vk_firkin_checkouts_total", `path="`+path+`"`)
}

// A user declares a template and a pool; machines stand ready; a pod checks one out,
// with everything it brings; the pool fills again; deleting it leaves the pod alone.
func TestWarmPool(t *testing.T) {
	ns := poolNamespace(t)
	apply(t, templateManifest(ns, "ready", simpleSetup, `warmCache: [{command: [cat, /bin/busybox]}]`, `start: {command: [httpd, -f, -p, "8181", -h, /opt]}`,
		`readiness: {httpGet: {port: 8181, path: /file}}`))
	apply(t, poolManifest(ns, "pool", "ready", 2))
	waitPool(t, ns, "pool", "is full", full(2))
	if out := kubectl(t, "get", "runtimeclass", "ready", "-o", "jsonpath={.handler} {.overhead.podFixed.memory}"); out != "firkin 256Mi" {
		t.Errorf("runtime class is %q", out)
	}
	if out := kubectl(t, "get", "node", node.Name, "-o", `jsonpath={.metadata.labels.warm\.firkin\.dev/`+ns+`\.pool}`); out == "" {
		t.Error("the node has no label for its ready pool")
	}
	warm := checkouts(t, node, "warm")

	apply(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: `+ns+`}
data: {colour: green}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: `+ns+`}
stringData: {word: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: user, namespace: `+ns+`}
spec:
  runtimeClassName: ready
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  securityContext: {runAsUser: 7, supplementalGroups: [55]}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: space, emptyDir: {}}
  containers:
  - name: main
    image: `+served.Busybox+`
    env:
    - {name: WORD, valueFrom: {secretKeyRef: {name: password, key: word}}}
    args: [sh, -c, "cat /opt/file /settings/colour; echo; echo $WORD $HOSTNAME $$$$; id; wget -q -O - http://127.0.0.1:8181/file; exec sleep 3600"]
    volumeMounts: [{name: settings, mountPath: /settings}, {name: space, mountPath: /space}]
`)
	waitRunning(t, ns, "user")
	want := "prepared\ngreen\nsesame user 1\nuid=7 gid=0 groups=0,55\nprepared\n"
	eventually(t, waitShort, "what the pod found", func() error {
		out := kubectl(t, "logs", "-n", ns, "user")
		if out = strings.NewReplacer("(root)", "").Replace(out); out != want {
			return fmt.Errorf("logs are %q, want %q", out, want)
		}
		return nil
	})
	if got := checkouts(t, node, "warm"); got != warm+1 {
		t.Errorf("%v warm checkouts, want %v", got, warm+1)
	}
	if out := kubectl(t, "exec", "-n", ns, "user", "--", "hostname"); out != "user\n" {
		t.Errorf("hostname is %q", out)
	}
	waitPool(t, ns, "pool", "is full again, with one in use", func(p *v1alpha1.WarmPool) bool { return full(2)(p) && p.Status.Active == 1 })
	out := kubectl(t, "get", "warmpool,nodeledger,snapshottemplate", "-n", ns)
	t.Logf("%s", out)

	// The pool goes; its entries go with it, and nothing else.
	kubectl(t, "delete", "warmpool", "pool", "-n", ns)
	eventually(t, time.Minute, "only the pod's machine is left", func() error {
		if n := len(node.MachinePIDs()); n != 1 {
			return fmt.Errorf("%d machines", n)
		}
		return nil
	})
	if out := kubectl(t, "exec", "-n", ns, "user", "--", "cat", "/opt/file"); out != "prepared\n" {
		t.Errorf("the pod's machine says %q", out)
	}
	// Without a pool the template still saves the set-up.
	restored := checkouts(t, node, "restore")
	apply(t, templatePod(ns, "later", "ready"))
	waitRunning(t, ns, "later")
	if got := checkouts(t, node, "restore"); got != restored+1 {
		t.Errorf("%v checkouts by restore, want %v", got, restored+1)
	}
}

// Ten pods at once empty a pool of ten: all are warm, and the pool is whole afterwards.
func TestPoolEmptiedAtOnce(t *testing.T) {
	ns := poolNamespace(t)
	apply(t, templateManifest(ns, "many", simpleSetup))
	apply(t, poolManifest(ns, "ten", "many", 10))
	waitPool(t, ns, "ten", "is full", full(10))
	warm, other := checkouts(t, node, "warm"), checkouts(t, node, "restore")+checkouts(t, node, "build")
	var pods strings.Builder
	for i := range 10 {
		pods.WriteString(templatePod(ns, fmt.Sprintf("p%d", i), "many") + "---\n")
	}
	apply(t, pods.String())
	for i := range 10 {
		waitRunning(t, ns, fmt.Sprintf("p%d", i))
	}
	if got := checkouts(t, node, "warm"); got != warm+10 {
		t.Errorf("%v warm checkouts, want %v", got, warm+10)
	}
	if got := checkouts(t, node, "restore") + checkouts(t, node, "build"); got != other {
		t.Errorf("%v other checkouts, want %v: a pod did not find its machine", got, other)
	}
	kubectl(t, "delete", "pods", "--all", "-n", ns, "--grace-period=1", "--timeout=60s")
	waitPool(t, ns, "ten", "is full again", func(p *v1alpha1.WarmPool) bool { return full(10)(p) && p.Status.Active == 0 })
}

// A template changes: its machines are replaced one after the other, and the pods that
// run are left alone.
func TestTemplateChanges(t *testing.T) {
	ns := poolNamespace(t)
	apply(t, templateManifest(ns, "versions", simpleSetup))
	apply(t, poolManifest(ns, "pool", "versions", 2))
	first := waitPool(t, ns, "pool", "is full", full(2)).Status.Revision
	apply(t, templatePod(ns, "old", "versions"))
	waitRunning(t, ns, "old")
	waitEntries(t, node, 2)
	waitPool(t, ns, "pool", "is full again", full(2))

	apply(t, templateManifest(ns, "versions", strings.Replace(simpleSetup, "prepared", "changed", 1)))
	waitPool(t, ns, "pool", "is full of the new revision", func(p *v1alpha1.WarmPool) bool {
		if p.Status.Ready < 2 && p.Status.Revision != first && p.Status.Outdated > 0 {
			t.Errorf("%d ready while entries are replaced, want 2", p.Status.Ready)
		}
		return full(2)(p) && p.Status.Revision != first
	})
	apply(t, templatePod(ns, "new", "versions"))
	waitRunning(t, ns, "new")
	for pod, want := range map[string]string{"old": "prepared\n", "new": "changed\n"} {
		eventually(t, waitShort, "output of "+pod, func() error {
			if out := kubectl(t, "logs", "-n", ns, pod); out != want {
				return fmt.Errorf("logs are %q, want %q", out, want)
			}
			return nil
		})
	}
}

// The node process is killed: its warm machines wait for the next one.
func TestWarmMachinesOutliveTheNode(t *testing.T) {
	ns := poolNamespace(t)
	n := startOwnNode(t, cluster.NodeOptions{Name: "mac-warm"})
	apply(t, templateManifest(ns, "kept", simpleSetup))
	apply(t, poolManifest(ns, "pool", "kept", 2, "nodeSelector: {kubernetes.io/hostname: mac-warm}"))
	waitPool(t, ns, "pool", "is full", full(2))
	apply(t, templatePod(ns, "runs", "kept", "nodeSelector: {kubernetes.io/hostname: mac-warm}"))
	waitRunning(t, ns, "runs")
	// The node says when it is full again: the pool's status may still be the one from
	// before the checkout, and a machine half made does not outlive its process.
	eventually(t, waitBuild, "the node stands ready again", func() error {
		ready, made := metric(t, n, "vk_firkin_pool_entries", `state="ready"`), len(n.MachinePIDs())
		if ready != 2 || made != 3 {
			return fmt.Errorf("%v entries are ready, of %d machines", ready, made)
		}
		return nil
	})
	before := n.MachinePIDs()
	slices.Sort(before)
	n.Kill()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the next process knows the warm machines", func() error {
		if ready := metric(t, n, "vk_firkin_pool_entries", `state="ready"`); ready != 2 {
			return fmt.Errorf("%v entries are ready", ready)
		}
		return nil
	})
	after := n.MachinePIDs()
	slices.Sort(after)
	if !slices.Equal(before, after) {
		t.Errorf("machines are processes %v, before %v: some were made anew", after, before)
	}
	if out := kubectl(t, "exec", "-n", ns, "runs", "--", "cat", "/opt/file"); out != "prepared\n" {
		t.Errorf("the pod's machine says %q", out)
	}
	warm := checkouts(t, n, "warm")
	apply(t, templatePod(ns, "next", "kept", "nodeSelector: {kubernetes.io/hostname: mac-warm}"))
	waitRunning(t, ns, "next")
	if got := checkouts(t, n, "warm"); got != warm+1 {
		t.Errorf("%v warm checkouts after the restart, want %v", got, warm+1)
	}
	kubectl(t, "delete", "pods", "--all", "-n", ns, "--grace-period=1", "--timeout=60s")
}

// startOwnNode is a node for one story.
func startOwnNode(t *testing.T, o cluster.NodeOptions) *cluster.Node {
	t.Helper()
	n, err := startNode(t.Context(), nodeDir(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of node %s:\n%s", n.Name, lastLines(t, n.LogPath, 60))
		}
		n.Stop()
		forgetNode(t, n.Name)
	})
	return n
}

// A pod that needs the room of warm machines gets it, and they come back when it goes.
func TestPodBeforePool(t *testing.T) {
	ns := poolNamespace(t)
	const onNode = "nodeSelector: {kubernetes.io/hostname: mac-small}"
	// Room for four machines of 256 MiB.
	n := startOwnNode(t, cluster.NodeOptions{Name: "mac-small", Args: []string{"--reserved-memory", reservedFor(t, 4*256<<20), "--shapes", "1x256Mi,1x512Mi"}})
	apply(t, templateManifest(ns, "small", simpleSetup))
	apply(t, poolManifest(ns, "low", "small", 2, onNode, "priority: 0"))
	apply(t, poolManifest(ns, "high", "small", 2, onNode, "priority: 100"))
	waitPool(t, ns, "low", "is full", full(2))
	waitPool(t, ns, "high", "is full", full(2))

	big := strings.Replace(podManifest(ns, "big", served.Busybox, "sleep", "3600"), "  containers:", "  "+onNode+"\n  containers:", 1) +
		"    resources: {requests: {memory: 400Mi}}\n"
	apply(t, big)
	waitRunning(t, ns, "big")
	waitPool(t, ns, "high", "keeps its machines", full(2))
	low := waitPool(t, ns, "low", "gave its room and says so", func(p *v1alpha1.WarmPool) bool {
		return p.Status.Ready == 0 && strings.HasPrefix(condition(p.Status.Conditions, v1alpha1.ConditionDegraded), "True InsufficientCapacity")
	})
	t.Logf("%s", condition(low.Status.Conditions, v1alpha1.ConditionDegraded))
	if got := metric(t, n, "vk_firkin_pool_evictions_total"); got < 2 {
		t.Errorf("%v evictions, want at least 2", got)
	}
	kubectl(t, "delete", "pod", "big", "-n", ns, "--grace-period=1")
	waitPool(t, ns, "low", "is full again", full(2))
}

// waitTemplate waits for a condition of a template and returns it.
func waitTemplate(t *testing.T, ns, name, what string, ok func(*v1alpha1.SnapshotTemplate) bool) *v1alpha1.SnapshotTemplate {
	t.Helper()
	template := &v1alpha1.SnapshotTemplate{}
	eventually(t, waitBuild, fmt.Sprintf("template %s/%s %s", ns, name, what), func() error {
		out, err := tryKubectl(t, "get", "snapshottemplate", name, "-n", ns, "-o", "json")
		if err != nil {
			return err
		}
		*template = v1alpha1.SnapshotTemplate{}
		if err := json.Unmarshal([]byte(out), template); err != nil {
			return err
		}
		if !ok(template) {
			status, _ := json.Marshal(template.Status)
			return fmt.Errorf("status is %s", status)
		}
		return nil
	})
	return template
}

// tryOutput runs kubectl also when the story's context is over.
func tryOutput(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	return plane.Output(ctx, args...)
}

func lastLines(t *testing.T, path string, n int) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(data), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// reservedFor is the memory to reserve so that so much is left for machines.
func reservedFor(t *testing.T, left int64) string {
	t.Helper()
	if runtime.GOOS == "darwin" {
		out, err := exec.CommandContext(t.Context(), "/usr/sbin/sysctl", "-n", "hw.memsize").Output()
		if err != nil {
			t.Fatal(err)
		}
		total, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d", total-left)
	}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	if _, err := fmt.Sscanf(string(data), "MemTotal: %d kB", &total); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d", total<<10-left)
}

// waitEntries waits until the node itself says how many entries stand ready: the pool's
// status may still be one from before.
func waitEntries(t *testing.T, n *cluster.Node, want float64) {
	t.Helper()
	eventually(t, waitBuild, fmt.Sprintf("%v entries stand ready on %s", want, n.Name), func() error {
		if got := metric(t, n, "vk_firkin_pool_entries", `state="ready"`); got != want {
			return fmt.Errorf("%v do", got)
		}
		return nil
	})
}
