// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package control

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/vk-firkin/vk-firkin/crds"
	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/test/cluster"
)

var (
	plane  *cluster.ControlPlane
	admin  client.Client
	config *rest.Config
	// directory is where logs are; it is kept when a test fails.
	directory string
)

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // or it complains
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // to set up, not to run
	defer cancel()
	var err error
	if directory, err = os.MkdirTemp("/tmp", "fk-ctl-"); err != nil { // short: there are sockets below it
		fmt.Fprintln(os.Stderr, "control:", err)
		return 1
	}
	defer func() {
		if code == 0 {
			_ = os.RemoveAll(directory)
		} else {
			fmt.Fprintln(os.Stderr, "control: logs are kept in", directory)
		}
	}()
	defer func() { plane.Stop() }()
	if err := setUp(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "control: set up:", err)
		return 1
	}
	return m.Run()
}

// setUp starts the control plane and installs what crds.YAML says, as a user would.
func setUp(ctx context.Context) (err error) {
	if plane, err = cluster.StartControlPlane(ctx, os.Getenv("FIRKIN_CONTROLPLANE"), directory); err != nil {
		return err
	}
	apply := plane.Kubectl(ctx, "apply", "-f", "-")
	apply.Stdin = bytes.NewReader(crds.YAML())
	if out, err := apply.CombinedOutput(); err != nil {
		return fmt.Errorf("apply crds: %w: %s", err, out)
	}
	if _, err := plane.Output(ctx, "wait", "--for=condition=Established", "--timeout=60s",
		"crd/warmpools.firkin.dev", "crd/snapshottemplates.firkin.dev", "crd/nodeledgers.firkin.dev"); err != nil {
		return err
	}
	if config, err = clientcmd.BuildConfigFromFlags("", plane.Kubeconfig); err != nil {
		return err
	}
	config.QPS, config.Burst = 500, 1000
	admin, err = newClient(config)
	return err
}

func newClient(c *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, nodev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return client.New(c, client.Options{Scheme: scheme})
}

// kubectl runs kubectl and fails the test when it fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := plane.Output(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// remove deletes an object that a test made, if it is still there.
func remove(t *testing.T, object client.Object) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if err := client.IgnoreNotFound(admin.Delete(ctx, object)); err != nil {
		t.Errorf("delete %s: %v", object.GetName(), err)
	}
}

// eventually asks until there is no error.
func eventually(t *testing.T, limit time.Duration, what string, ask func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %s: %v", what, limit, err)
}
