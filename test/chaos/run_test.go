// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/test/podhistory"
)

const (
	namespace = "chaos"
	nodeName  = "chaos"
	// settleTime is how long everything may take at a quiet point: a template may have to be
	// built, after a pause for the machine that was killed while it was built before, and a pod
	// whose machines were killed again and again is started up to five minutes later.
	settleTime = 7 * time.Minute
	// tellTime is how often a quiet point that lasts says what it waits for.
	tellTime = 30 * time.Second
	// upTime is how long a part may take to come up.
	upTime = 2 * time.Minute
	// stuckTime is how long a machine may be silent: not the minute that nodes give, so that
	// quiet points are shorter, and not less, since two cores emulate all machines.
	stuckTime = 30 * time.Second
	// buildTime is how long a build that is to be killed is waited for.
	buildTime = 15 * time.Second
	// shown is how many of the last actions a failure tells.
	shown = 40
)

// TestChaos disturbs a node at random and checks that nothing is lost.
func TestChaos(t *testing.T) {
	limit := 2 * time.Minute
	if given := os.Getenv("CHAOS_TIME"); given != "" {
		d, err := time.ParseDuration(given)
		if err != nil {
			t.Fatalf("CHAOS_TIME: %v", err)
		}
		limit = d
	}
	seed := rand.Uint64()
	if given := os.Getenv("CHAOS_SEED"); given != "" {
		n, err := strconv.ParseUint(given, 10, 64)
		if err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("CHAOS_SEED=%d CHAOS_TIME=%v", seed, limit)
	w := newWorld(t)
	t.Cleanup(func() {
		if t.Failed() {
			_, faults := w.statuses.Stop()
			t.Logf("Statuses that cannot be: %q", faults)
			w.explain(t)
			// Last, where a reader of a log that was cut looks first.
			t.Logf("What failed:\n%s\nThe decisions again: CHAOS_SEED=%d make chaos", strings.Join(w.faults, "\n"), seed)
		}
	})
	planner := NewPlanner(seed)
	for disturbed := time.Duration(0); disturbed < limit && !t.Failed(); {
		a := planner.Next()
		began := time.Now()
		w.note("%v", a)
		if a.Kind == Rest {
			w.rest(t)
			continue
		}
		w.act(t, a)
		w.pause(t, a.Pause)
		if w.filled() {
			if err := w.fill(); err != nil {
				w.fail(t, "fill the disk: %v", err)
			}
		}
		w.watch(t)
		disturbed += time.Since(began)
	}
	if !t.Failed() {
		w.note("the end")
		w.restore(t)
		w.rest(t)
	}
	if !t.Failed() {
		w.empty(t)
	}
	if len(w.born) > 0 && w.witness.total() == 0 && !t.Failed() {
		w.fail(t, "no program reached the witness: nothing was proven about starts")
	}
	seen, faults := w.statuses.Stop()
	for _, fault := range faults {
		w.fail(t, "%s", fault)
	}
	t.Logf("%d actions, %d pods, %d starts seen, %d statuses, %d machines harmed, %d snapshots damaged, %d quiet points", planner.number, len(w.born), w.witness.total(), seen, len(w.killed), len(w.damaged), w.rests)
	for _, k := range Kinds() {
		t.Logf("%4d %s, and %d times there was nothing to do", w.did[k], k, w.idle[k])
	}
}

// world is what is disturbed, and what is known of it.
type world struct {
	dir, binary string
	disk        *cluster.Disk
	plane       *cluster.ControlPlane
	controller  *cluster.Controller
	node        *cluster.Node
	kube        kubernetes.Interface
	objects     ctrl.Client
	image       string
	witness     *witness
	statuses    *podhistory.Watcher
	capacity    v1alpha1.Amounts // of the ledger, before anything is disturbed
	held        held             // by the node process, before anything is disturbed

	// Whether a part is meant to be up.
	nodeUp, controllerUp, apiUp bool
	nodeStopped                 bool
	born                        map[string]born
	uids                        map[string]types.UID
	revisions, replicas         map[string]int
	// killed are the machines that were harmed, bereaved the UIDs of the pods that had one, and
	// blamed how many machines of a snapshot were disturbed, by its key.
	killed   map[string]bool
	bereaved map[string]bool
	blamed   map[string]int
	stopped  map[string]stopped
	silenced []net.Conn
	damaged  map[string]damaged // by instance
	full     []window
	rests    int
	// did and idle are how often something was done, and how often there was nothing to do it to.
	did, idle map[Kind]int
	history   []string
	// faults are what failed.
	faults []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// Short: unix sockets are below it.
	dir, err := os.MkdirTemp("/tmp", "fk-ch-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		dir: dir, nodeUp: true, controllerUp: true, apiUp: true, born: map[string]born{}, killed: map[string]bool{}, bereaved: map[string]bool{},
		revisions: map[string]int{}, replicas: map[string]int{}, uids: map[string]types.UID{}, blamed: map[string]int{}, stopped: map[string]stopped{},
		damaged: map[string]damaged{}, did: map[Kind]int{}, idle: map[Kind]int{}, binary: filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"),
	}
	t.Cleanup(func() {
		for _, c := range w.silenced {
			_ = c.Close()
		}
		if w.nodeStopped {
			_ = syscall.Kill(w.node.PID(), syscall.SIGCONT)
		}
		if w.statuses != nil {
			w.statuses.Stop()
		}
		w.node.Stop()
		w.controller.Stop()
		w.plane.Stop()
		if t.Failed() {
			return // the disk stays mounted, for somebody to look at
		}
		if err := w.disk.Unmount(); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v; logs are in %s", what, err, dir)
		}
	}
	busybox, err := images.Busybox(ctx, filepath.Join(dir, "images"))
	must("make image", err)
	registry, err := images.StartRegistry(images.RegistryOptions{})
	must("start registry", err)
	t.Cleanup(func() { _ = registry.Close() })
	w.image, err = registry.Push("busybox:1", busybox)
	must("push image", err)
	w.witness = startWitness(t)

	// Of its own, so that it can be filled; the control plane's is another one.
	w.disk, err = cluster.MountDisk(ctx, dir, "6G")
	must("mount a disk", err)
	w.plane, err = cluster.StartControlPlane(ctx, os.Getenv("FIRKIN_CONTROLPLANE"), dir)
	must("start control plane", err)
	config, err := clientcmd.BuildConfigFromFlags("", w.plane.Kubeconfig)
	must("read kubeconfig", err)
	config.QPS, config.Burst = 100, 100
	w.kube, err = kubernetes.NewForConfig(config)
	must("make client", err)
	scheme := runtime.NewScheme()
	must("know the API", v1alpha1.AddToScheme(scheme))
	must("know Kubernetes", clientscheme.AddToScheme(scheme))
	w.controller, err = w.plane.StartController(ctx, w.binary, filepath.Join(dir, "controller"))
	must("start controller", err)
	w.objects, err = ctrl.New(config, ctrl.Options{Scheme: scheme})
	must("make client", err)
	w.node, err = w.plane.StartNode(ctx, cluster.NodeOptions{
		Name: nodeName, Binary: w.binary, Kits: os.Getenv("FIRKIN_KIT_DIR"), Dir: dir, InsecureRegistries: []string{registry.Addr()},
		StateDir: filepath.Join(w.disk.Path, "s"), CacheDir: filepath.Join(w.disk.Path, "c"),
		Args: []string{
			"--no-taint", "--min-free-disk", "200Mi", "--refill-min-free-disk", "300Mi", "--eviction-hard", "nodefs.available<100Mi",
			"--eviction-pressure-transition-period", "3s", "--machine-stuck-timeout", stuckTime.String(),
		},
	})
	must("start node", err)
	must("make namespace", w.objects.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}))
	for _, name := range Templates {
		w.revisions[name], w.replicas[name] = 1, 1
		must("make template", w.objects.Create(ctx, template(w.image, name, 1)))
		must("make pool", w.objects.Create(ctx, pool(name, 1)))
	}
	w.statuses, err = podhistory.Watch(ctx, w.kube)
	must("watch pods", err)
	w.note("everything is up")
	w.rest(t)
	ledger, err := w.ledger(ctx)
	must("read ledger", err)
	w.capacity = ledger.Status.Capacity
	w.held, err = w.holds(ctx)
	must("count what the node holds", err)
	return w
}

// note remembers what was done, for a failure to tell, and writes it down for who looks on.
func (w *world) note(format string, args ...any) {
	line := time.Now().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
	w.history = append(w.history, line)
	if f, err := os.OpenFile(filepath.Join(w.dir, "actions.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		_, _ = fmt.Fprintln(f, line)
		_ = f.Close()
	}
}

// fail fails the test, and remembers why for the end of what it prints.
func (w *world) fail(t *testing.T, format string, args ...any) {
	t.Helper()
	why := fmt.Sprintf(format, args...)
	w.faults = append(w.faults, why)
	w.note("FAILED: %s", why)
	t.Error(why)
}

// explain tells what a person needs to find out why.
func (w *world) explain(t *testing.T) {
	t.Logf("The last actions:\n%s", strings.Join(w.history[max(0, len(w.history)-shown):], "\n"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"}, {"get", "warmpools,snapshottemplates,nodeledgers", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"},
	} {
		if out, err := w.plane.Output(ctx, append(args, "-n", namespace)...); err == nil {
			t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
		}
	}
	t.Logf("The node's log ends with\n%s", tail(w.node.LogPath, 25))
	t.Logf("Logs and state are kept in %s: node %s, controller %s", w.dir, w.node.LogPath, w.controller.LogPath)
}

// pause between two actions.
func (w *world) pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(d):
	}
}
