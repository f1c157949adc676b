// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// The node process is killed under six pods: the next one has all their machines again, says
// how long that took, and nobody who watches the pods sees one that is not Ready.
func TestAdoptedPodsStayReady(t *testing.T) {
	ns := namespace(t)
	const pods = 6
	var manifests strings.Builder
	for i := range pods {
		manifests.WriteString(podManifest(ns, fmt.Sprintf("stays-%d", i), served.Busybox, "sh", "-c",
			"i=0; while true; do i=$((i+1)); echo line $i; sleep 0.5; done") + "---\n")
	}
	apply(t, manifests.String())
	for i := range pods {
		waitRunning(t, ns, fmt.Sprintf("stays-%d", i))
	}
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := cluster.WatchReady(t.Context(), client, ns)
	if err != nil {
		t.Fatal(err)
	}
	before := node.MachinePIDs()

	node.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	const sample = `sample="node_recovery"`
	eventually(t, time.Minute, "the node has taken over all machines", func() error {
		if metric(t, node, "vk_firkin_sample_seconds_count", sample) != 1 {
			return fmt.Errorf("it has not")
		}
		return nil
	})
	t.Logf("%d machines were taken over %.2f s after the process began", pods, metric(t, node, "vk_firkin_sample_seconds_sum", sample))
	if after := node.MachinePIDs(); !slices.Equal(before, after) {
		t.Errorf("machines are %v, before the kill %v", after, before)
	}
	for i := range pods {
		name := fmt.Sprintf("stays-%d", i)
		if out := kubectl(t, "exec", "-n", ns, name, "--", "echo", "still here"); out != "still here\n" {
			t.Errorf("%s: exec gave %q", name, out)
		}
		for i, line := range strings.Split(strings.TrimSpace(kubectl(t, "logs", "-n", ns, name)), "\n") {
			if want := fmt.Sprintf("line %d", i+1); line != want {
				t.Errorf("%s: line %d of the log is %q, want %q", name, i+1, line, want)
				break
			}
		}
	}
	if err := watch.Stop(); err != nil {
		t.Errorf("pods did not stay Ready: %v", err)
	}
}
