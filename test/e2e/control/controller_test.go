// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

const controllerName = "vk-firkin-controller"

// controllerKubeconfig is that of a service account with the controller's role and no more.
func controllerKubeconfig(t *testing.T) string {
	t.Helper()
	kubectl(t, "create", "serviceaccount", controllerName, "-n", "kube-system")
	kubectl(t, "create", "clusterrolebinding", controllerName, "--clusterrole", controllerName, "--serviceaccount", "kube-system:"+controllerName)
	token := strings.TrimSpace(kubectl(t, "create", "token", controllerName, "-n", "kube-system"))
	c, err := clientcmd.LoadFromFile(plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range c.AuthInfos {
		user.ClientCertificate, user.ClientKey, user.ClientCertificateData, user.ClientKeyData = "", "", nil, nil
		user.Token = token
	}
	path := filepath.Join(directory, "controller.kubeconfig")
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		t.Fatal(err)
	}
	return path
}

type controllerProcess struct {
	*exec.Cmd
	exited  chan struct{}
	metrics string
	health  string
}

func startController(t *testing.T, name, kubeconfig string) *controllerProcess {
	t.Helper()
	port := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	c := &controllerProcess{exited: make(chan struct{}), metrics: port(), health: port()}
	c.Cmd = exec.Command(filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"), "controller",
		"--kubeconfig", kubeconfig, "--leader-elect-lease-duration", "3s", "--health-probe-address", c.health, "--metrics-address", c.metrics,
		"--node-grace-period", "2s", "--log-level", "debug")
	log, err := os.Create(filepath.Join(directory, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.exited)
		_ = c.Wait()
	}()
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.exited:
		case <-time.After(20 * time.Second):
			_ = c.Process.Kill()
			<-c.exited
		}
	})
	return c
}

// fakeNodes are objects that do what their ledgers say.
type fakeNodes struct {
	mu   sync.Mutex
	down map[string]bool
}

func (f *fakeNodes) set(name string, down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down[name] = down
}

func (f *fakeNodes) isDown(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down[name]
}

func startNodes(t *testing.T, names ...string) *fakeNodes {
	t.Helper()
	f := &fakeNodes{down: map[string]bool{}}
	for _, name := range names {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.LabelMachine: "true"}}}
		n.Spec.Taints = []corev1.Taint{{Key: v1alpha1.LabelMachine, Value: "true", Effect: corev1.TaintEffectNoSchedule}}
		if err := admin.Create(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { remove(t, n) })
		l := &v1alpha1.NodeLedger{ObjectMeta: metav1.ObjectMeta{Name: name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: n.UID}}}}
		if err := admin.Create(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { remove(t, l) })
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var group sync.WaitGroup
	for _, name := range names {
		group.Go(func() {
			for ctx.Err() == nil {
				if err := f.work(ctx, name); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
					t.Errorf("node %s: %v", name, err)
				}
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	t.Cleanup(func() { cancel(); group.Wait() })
	return f
}

// work reports that all targets are met, and whether the node is ready.
func (f *fakeNodes) work(ctx context.Context, name string) error {
	var n corev1.Node
	if err := admin.Get(ctx, client.ObjectKey{Name: name}, &n); err != nil {
		return err
	}
	want := corev1.ConditionTrue
	if f.isDown(name) {
		want = corev1.ConditionFalse
	}
	if len(n.Status.Conditions) == 0 || n.Status.Conditions[0].Status != want {
		now := metav1.Now()
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: want, Reason: "Test", LastHeartbeatTime: now, LastTransitionTime: now}}
		if err := admin.Status().Update(ctx, &n); err != nil {
			return err
		}
	}
	if f.isDown(name) {
		return nil
	}
	var l v1alpha1.NodeLedger
	if err := admin.Get(ctx, client.ObjectKey{Name: name}, &l); err != nil {
		return err
	}
	l.Status = v1alpha1.NodeLedgerStatus{ObservedGeneration: l.Generation}
	l.Status.Capacity.Memory = resource.MustParse("8Gi")
	for _, t := range l.Spec.Targets {
		l.Status.Pools = append(l.Status.Pools, v1alpha1.PoolStatus{Namespace: t.Namespace, Pool: t.Pool, Revision: t.Revision, Desired: t.Replicas, Ready: t.Replicas})
	}
	for _, t := range l.Spec.Templates {
		s := v1alpha1.SnapshotStatus{Namespace: t.Namespace, Template: t.Name, Revision: t.Revision, Phase: v1alpha1.SnapshotReady}
		if t.Revision != t.Spec.Revision() {
			s.Phase, s.Step, s.Message = v1alpha1.SnapshotFailed, "Decode", "the revision is not that of the spec"
		}
		if strings.Contains(t.Spec.Image, "broken") {
			s.Phase, s.Step, s.Message, s.Output = v1alpha1.SnapshotFailed, "Setup", "exit status 2", "make: *** No rule to make target"
		}
		l.Status.Snapshots = append(l.Status.Snapshots, s)
	}
	return admin.Status().Update(ctx, &l)
}

// spread is the targets of a pool by node.
func spread(t *testing.T, pool string) map[string]int32 {
	t.Helper()
	var ledgers v1alpha1.NodeLedgerList
	if err := admin.List(t.Context(), &ledgers); err != nil {
		t.Fatal(err)
	}
	result := map[string]int32{}
	for _, l := range ledgers.Items {
		for _, target := range l.Spec.Targets {
			if target.Pool == pool {
				result[l.Name] = target.Replicas
			}
		}
	}
	return result
}

func wantSpread(t *testing.T, what, pool string, want map[string]int32) {
	t.Helper()
	eventually(t, 30*time.Second, what, func() error {
		if got := spread(t, pool); !maps.Equal(got, want) {
			return fmt.Errorf("targets %v, want %v", got, want)
		}
		return nil
	})
}

// wantCondition waits until a pool's condition has a reason and its message a part.
func wantCondition(t *testing.T, pool *v1alpha1.WarmPool, kind, reason, says string) {
	t.Helper()
	eventually(t, 30*time.Second, "pool "+pool.Name+" "+kind+" "+reason, func() error {
		if err := admin.Get(t.Context(), client.ObjectKeyFromObject(pool), pool); err != nil {
			return err
		}
		c := meta.FindStatusCondition(pool.Status.Conditions, kind)
		if c == nil || c.Reason != reason || !strings.Contains(c.Message, says) || c.ObservedGeneration != pool.Generation {
			return fmt.Errorf("conditions %+v", pool.Status.Conditions)
		}
		return nil
	})
}

func newTemplate(name, image string) *v1alpha1.SnapshotTemplate {
	t := &v1alpha1.SnapshotTemplate{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	t.Spec.Image = image
	t.Spec.Shape = v1alpha1.MachineShape{CPU: resource.MustParse("250m"), Memory: resource.MustParse("1024Mi")}
	return t
}

func newPool(name, template string, replicas int32) *v1alpha1.WarmPool {
	p := &v1alpha1.WarmPool{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	p.Spec.TemplateRef.Name, p.Spec.Replicas = template, ptr.To(replicas)
	return p
}

func create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { remove(t, o) })
	}
}

// lease is that of the controllers.
func lease(t *testing.T) coordinationv1.LeaseSpec {
	t.Helper()
	out := kubectl(t, "get", "lease", controllerName, "-n", "kube-system", "-o", "json")
	var l coordinationv1.Lease
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		t.Fatal(err)
	}
	if s := l.Spec; s.HolderIdentity == nil || s.LeaseDurationSeconds == nil || s.AcquireTime == nil || s.RenewTime == nil || s.LeaseTransitions == nil {
		t.Fatalf("lease %+v", s)
	}
	return l.Spec
}

func TestController(t *testing.T) {
	kubeconfig := controllerKubeconfig(t)
	nodes := startNodes(t, "a", "b")
	first := startController(t, "first", kubeconfig)
	template := newTemplate("go", "registry.example/go:1")
	pool := newPool("ci", "go", 4)
	create(t, pool)
	wantCondition(t, pool, v1alpha1.ConditionDegraded, v1alpha1.ReasonTemplateNotFound, "create it")
	create(t, template)
	wantSpread(t, "spread", "ci", map[string]int32{"a": 2, "b": 2})
	wantCondition(t, pool, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "4 of 4")
	wantCondition(t, pool, v1alpha1.ConditionDegraded, v1alpha1.ReasonAsExpected, "")

	t.Run("RuntimeClass", func(t *testing.T) {
		var class nodev1.RuntimeClass
		eventually(t, 20*time.Second, "RuntimeClass", func() error {
			return admin.Get(t.Context(), client.ObjectKey{Name: "go"}, &class)
		})
		if class.Handler != v1alpha1.RuntimeHandler || class.Overhead.PodFixed.Memory().String() != "1Gi" || class.Overhead.PodFixed.Cpu().String() != "250m" {
			t.Errorf("RuntimeClass %+v", class)
		}
		// The stock admission gives a pod the machine's size and the way to the nodes.
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "probe"}}
		pod.Spec.RuntimeClassName, pod.Spec.AutomountServiceAccountToken = ptr.To("go"), ptr.To(false)
		pod.Spec.Containers = []corev1.Container{{Name: "c", Image: "registry.example/go:1"}}
		eventually(t, 20*time.Second, "pod is admitted", func() error { return admin.Create(t.Context(), pod.DeepCopy(), client.DryRunAll) })
		if err := admin.Create(t.Context(), pod, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		if pod.Spec.Overhead.Memory().String() != "1Gi" || pod.Spec.NodeSelector[v1alpha1.LabelMachine] != "true" {
			t.Errorf("pod: overhead %v, selector %v", pod.Spec.Overhead, pod.Spec.NodeSelector)
		}
	})

	t.Run("a node vanishes and comes back", func(t *testing.T) {
		nodes.set("b", true)
		eventually(t, 30*time.Second, "its replicas move", func() error {
			if got := spread(t, "ci"); got["a"] != 4 {
				return fmt.Errorf("targets %v", got)
			}
			return nil
		})
		wantCondition(t, pool, v1alpha1.ConditionDegraded, v1alpha1.ReasonNodeUnreachable, "node b")
		wantCondition(t, pool, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "4 of 4")
		nodes.set("b", false)
		wantSpread(t, "and come back", "ci", map[string]int32{"a": 2, "b": 2})
		wantCondition(t, pool, v1alpha1.ConditionDegraded, v1alpha1.ReasonAsExpected, "")
	})

	t.Run("bad pools do not disturb others", func(t *testing.T) {
		bad := newTemplate("bad", "registry.example/broken:1")
		broken, large := newPool("broken", "bad", 1), newPool("large", "go", 100)
		create(t, bad, broken, large)
		wantCondition(t, broken, v1alpha1.ConditionDegraded, v1alpha1.ReasonTemplateBuildFailed, "exit status 2")
		wantCondition(t, large, v1alpha1.ConditionDegraded, v1alpha1.ReasonInsufficientCapacity, "find no room")
		wantCondition(t, pool, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "4 of 4")
		eventually(t, 20*time.Second, "the failure's output", func() error {
			if err := admin.Get(t.Context(), client.ObjectKeyFromObject(bad), bad); err != nil {
				return err
			}
			if len(bad.Status.Failures) == 0 || !strings.Contains(bad.Status.Failures[0].Output, "No rule") {
				return fmt.Errorf("status %+v", bad.Status)
			}
			return nil
		})
		eventually(t, 20*time.Second, "event", func() error {
			if out := kubectl(t, "get", "events", "-o", "custom-columns=R:.reason,M:.message"); !strings.Contains(out, "TemplateBuildFailed") || !strings.Contains(out, "No rule") {
				return fmt.Errorf("events:\n%s", out)
			}
			return nil
		})
	})
	wantSpread(t, "the large pool is gone", "large", map[string]int32{})

	second := startController(t, "second", kubeconfig)
	t.Run("another controller takes over", func(t *testing.T) {
		eventually(t, 20*time.Second, "the second stands by", func() error { return get("http://"+second.health+"/readyz", "ok") })
		_ = first.Process.Kill()
		<-first.exited
		before := lease(t) // the dead one's last word
		kubectl(t, "scale", "warmpool/ci", "--replicas=6")
		wantSpread(t, "the second acts", "ci", map[string]int32{"a": 3, "b": 3})
		wantCondition(t, pool, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "6 of 6")
		after := lease(t)
		if *after.HolderIdentity == *before.HolderIdentity || *after.LeaseTransitions != *before.LeaseTransitions+1 {
			t.Errorf("the lease is %+v, was %+v", after, before)
		}
		// Not while the first might live, and not much later. It saw the last renewal up to a
		// try later than that was made, and tries every sixth of the lease, up to 2.2 times later;
		// the rest is for a host that is busy.
		duration, took := time.Duration(*before.LeaseDurationSeconds)*time.Second, after.AcquireTime.Sub(before.RenewTime.Time)
		if try := duration / 6 * 22 / 10; took < duration || took > duration+2*try+5*time.Second {
			t.Errorf("the second took over %s after the first had renewed a lease of %s for the last time", took, duration)
		}
		t.Logf("the second controller took over %s after the first had renewed a lease of %s for the last time", took.Round(10*time.Millisecond), duration)
	})

	t.Run("deletion", func(t *testing.T) {
		other := newPool("other", "go", 2)
		create(t, other)
		wantSpread(t, "another pool", "other", map[string]int32{"a": 1, "b": 1})
		kubectl(t, "delete", "warmpool/ci")
		wantSpread(t, "targets vanish", "ci", map[string]int32{})
		wantSpread(t, "and no others", "other", map[string]int32{"a": 1, "b": 1})
		kubectl(t, "delete", "snapshottemplate/go")
		eventually(t, 20*time.Second, "the RuntimeClass goes", func() error {
			if err := admin.Get(t.Context(), client.ObjectKey{Name: "go"}, &nodev1.RuntimeClass{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there: %w", err)
			}
			return nil
		})
		wantCondition(t, other, v1alpha1.ConditionDegraded, v1alpha1.ReasonTemplateNotFound, "create it")
	})
}

func TestControllerServesMetricsAndHealth(t *testing.T) {
	c := startController(t, "third", plane.Kubeconfig)
	for url, says := range map[string]string{
		"http://" + c.health + "/healthz":  "ok",
		"http://" + c.health + "/readyz":   "ok",
		"http://" + c.metrics + "/metrics": "firkin_controller_pass_seconds_count",
	} {
		eventually(t, 30*time.Second, url, func() error { return get(url, says) })
	}
}

// get asks a URL for an answer that contains a text.
func get(url, says string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), says) {
		return fmt.Errorf("%s, %d bytes without %q, %w", resp.Status, len(body), says, err)
	}
	return nil
}
