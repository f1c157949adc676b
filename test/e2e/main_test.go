// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/test/podhistory"
)

// plane is the control plane that all stories share, node the machine node that
// most of them share, controller what spreads their pools. Stories that break a node start one of their own.
var (
	plane      *cluster.ControlPlane
	controller *cluster.Controller
	node       *cluster.Node
	served     *imageServer
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // to set up, not to run
	defer cancel()

	dir := os.Getenv("FIRKIN_E2E_DIR")
	if dir == "" {
		// Short on purpose: unix sockets below it must keep under 104 bytes.
		temp, err := os.MkdirTemp("/tmp", "fk-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		dir = temp
		defer func() {
			if code == 0 {
				_ = os.RemoveAll(dir)
			} else {
				fmt.Fprintln(os.Stderr, "e2e: logs and state are kept in", dir)
			}
		}()
	}

	steps := []struct {
		name  string
		start func(context.Context, string) error
	}{
		{"image registry", func(ctx context.Context, dir string) (err error) { served, err = startImages(ctx, dir); return }},
		{"control plane", func(ctx context.Context, dir string) (err error) {
			plane, err = startPlane(ctx, dir)
			return
		}},
		{"controller", func(ctx context.Context, dir string) (err error) {
			if plane.Attached() {
				if there, err := plane.HasController(ctx); there || err != nil {
					fmt.Fprintln(os.Stderr, "e2e: the cluster has a controller, of which the stories make use")
					return err
				}
			}
			controller, err = plane.StartController(ctx, filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"), filepath.Join(dir, "controller"), "--node-grace-period", "5s", "--node-return-period", "20s")
			return
		}},
		{"node", func(ctx context.Context, dir string) (err error) {
			node, err = startNode(ctx, dir, cluster.NodeOptions{Name: "mac-1", Args: volumeFlags(dir)})
			return
		}},
	}
	defer func() {
		node.Stop()
		controller.Stop()
		plane.Stop()
		served.Stop()
	}()
	for _, step := range steps {
		began := time.Now()
		fmt.Fprintf(os.Stderr, "e2e: starting %s\n", step.name)
		if err := step.start(ctx, dir); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: start %s: %v\n", step.name, err)
			return 1
		}
		fmt.Fprintf(os.Stderr, "e2e: %s is up after %.1fs\n", step.name, time.Since(began).Seconds())
	}
	statuses, err := watchStatuses(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: watch the pods: %v\n", err)
		return 1
	}
	code = m.Run()
	seen, faults := statuses.Stop()
	fmt.Fprintf(os.Stderr, "e2e: %d statuses of pods were seen, %d times one was not what may follow another\n", seen, len(faults))
	for _, fault := range faults {
		fmt.Fprintf(os.Stderr, "e2e: %s\n", fault)
		code = max(code, 1)
	}
	return code
}

// startPlane starts the embedded control plane, or uses the cluster of KUBECONFIG where that is set.
func startPlane(ctx context.Context, dir string) (*cluster.ControlPlane, error) {
	kubeconfig := os.Getenv("KUBECONFIG")
	if kubeconfig == "" {
		return cluster.StartControlPlane(ctx, os.Getenv("FIRKIN_CONTROLPLANE"), dir)
	}
	fmt.Fprintf(os.Stderr, "e2e: KUBECONFIG is set: the stories run in the cluster of %s\n", kubeconfig)
	return cluster.Attach(ctx, cluster.AttachOptions{
		Kubeconfig: kubeconfig, Kubectl: strings.Fields(os.Getenv("KUBECTL")), NodeIP: os.Getenv("FIRKIN_NODE_IP"), Dir: dir,
	})
}

// needsEmbedded skips a story in a cluster that somebody else runs.
func needsEmbedded(t *testing.T, why string) {
	t.Helper()
	if plane.Attached() {
		t.Skipf("KUBECONFIG chose another cluster: %s", why)
	}
}

// watchStatuses puts every status that a pod of the stories gets before podhistory.
func watchStatuses(ctx context.Context) (*podhistory.Watcher, error) {
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return podhistory.Watch(ctx, client)
}

// startNode starts a node of this repository's binaries below dir, of the product's own
// unless the options name another one. Its taint is dropped, so that pods without a toleration come to it as well.
func startNode(ctx context.Context, dir string, o cluster.NodeOptions) (*cluster.Node, error) {
	return plane.StartNode(ctx, storyOptions(dir, o))
}

func storyOptions(dir string, o cluster.NodeOptions) cluster.NodeOptions {
	o.Dir = dir
	if o.Binary == "" {
		o.Binary = filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin")
	}
	o.Kits = os.Getenv("FIRKIN_KIT_DIR")
	o.InsecureRegistries = served.Addresses()
	// The floors are for hosts that people use; what is left of a disk here is no part of a
	// story, but of the one that fills it, which sets its own.
	o.Args = append([]string{"--no-taint", "--min-free-disk", "2Gi", "--refill-min-free-disk", "3Gi"}, o.Args...)
	return o
}

// metric is a sample of a node's metrics, see cluster.Node.Metric. A metric that is
// asked for without labels must exist.
func metric(t *testing.T, n *cluster.Node, name string, labels ...string) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	value, found, err := n.Metric(ctx, name, labels...)
	if err != nil {
		t.Fatal(err)
	}
	if !found && len(labels) == 0 {
		t.Fatalf("node %s has no metric %s", n.Name, name)
	}
	return value
}
