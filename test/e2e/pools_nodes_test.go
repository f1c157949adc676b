// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// Two nodes carry three pools. One is killed: its replicas move. It comes back: they are
// spread again. Meanwhile no status says more than there is, and no pool is told to have
// more than it may.
func TestTwoNodes(t *testing.T) {
	ns := poolNamespace(t)
	const selector = "nodeSelector: {e2e.firkin.dev/fleet: two}"
	nodes := map[string]*cluster.Node{}
	for _, name := range []string{"mac-a", "mac-b"} {
		nodes[name] = startOwnNode(t, cluster.NodeOptions{Name: name})
		kubectl(t, "label", "node", name, "e2e.firkin.dev/fleet=two")
	}
	// A replica that is placed stays: pools are spread over the nodes that the controller knows
	// when it places them.
	for name := range nodes {
		eventually(t, waitShort, "the ledger of "+name, func() error {
			out, err := tryKubectl(t, "get", "nodeledger", name, "-o", "jsonpath={.status.capacity.memory}")
			if err == nil && out == "" {
				err = fmt.Errorf("it says nothing yet")
			}
			return err
		})
	}
	apply(t, templateManifest(ns, "spread", simpleSetup))
	pools := map[string]int32{"one": 2, "two": 2, "three": 3}
	for name, replicas := range pools {
		apply(t, poolManifest(ns, name, "spread", int(replicas), selector))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { watchTargets(ctx, t, ns, pools) })
	defer watch.Wait()
	defer cancel()

	spread := func(p *v1alpha1.WarmPool) bool { return full(pools[p.Name])(p) && len(p.Status.Nodes) == 2 }
	for name := range pools {
		waitPool(t, ns, name, "is full on both nodes", spread)
	}
	nodes["mac-a"].Kill()
	for name := range pools {
		waitPool(t, ns, name, "is full on the node that is left", func(p *v1alpha1.WarmPool) bool {
			on := map[string]int32{}
			for _, n := range p.Status.Nodes {
				on[n.Name] = n.Ready
			}
			return p.Status.Ready == pools[p.Name] && on["mac-b"] == pools[p.Name]
		})
	}
	if err := nodes["mac-a"].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name := range pools {
		waitPool(t, ns, name, "is full after the node came back", full(pools[name]))
	}
	// What was told is what there is.
	eventually(t, time.Minute, "as many machines as replicas", func() error {
		total := 0
		for _, n := range nodes {
			total += len(n.MachinePIDs())
		}
		if total != 7 {
			return fmt.Errorf("%d machines", total)
		}
		return nil
	})
}

// watchTargets looks at what nodes that are ready are told, and at the pools' status.
func watchTargets(ctx context.Context, t *testing.T, ns string, pools map[string]int32) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
		for name, replicas := range pools {
			p, err := getPool(t, ns, name)
			if err != nil {
				continue // it is not there yet, or no more
			}
			// The surge: one a node for replacement, and what a node that came back still has
			// until its replicas are told to go.
			if most := 2*replicas + 2; p.Status.Ready > most || p.Status.Desired > most {
				t.Errorf("pool %s: %d ready, %d desired, at most %d", name, p.Status.Ready, p.Status.Desired, most)
			}
			// What an unreachable node was told counts during its grace, and then no more.
			var ready, reachable, unreachable int32
			for _, n := range p.Status.Nodes {
				ready += n.Ready
				if n.SkipReason == v1alpha1.ReasonNodeUnreachable {
					unreachable += n.Desired
				} else {
					reachable += n.Desired
				}
			}
			if d := p.Status.Desired; ready != p.Status.Ready || d < reachable || d > reachable+unreachable {
				t.Errorf("pool %s: ready %d and desired %d, by nodes %d, and %d with %d on unreachable ones", name, p.Status.Ready, d, ready, reachable, unreachable)
			}
		}
	}
}

// A pool that never gives way is a resource of its node: its room is not for other pods,
// and a pod that requests it gets one of its machines.
func TestReservedPool(t *testing.T) {
	ns := poolNamespace(t)
	allocatable := func(name string) string {
		return kubectl(t, "get", "node", node.Name, "-o", `jsonpath={.status.allocatable.`+strings.ReplaceAll(name, ".", `\.`)+`}`)
	}
	before := resource.MustParse(allocatable("memory"))
	apply(t, templateManifest(ns, "kept", simpleSetup))
	apply(t, poolManifest(ns, "pool", "kept", 1, "reclaimPolicy: Never"))
	waitPool(t, ns, "pool", "is full", full(1))
	name := "warm.firkin.dev/" + ns + ".pool"
	eventually(t, waitShort, "the node offers the pool", func() error {
		memory := resource.MustParse(allocatable("memory"))
		if out := allocatable(name); out != "1" || before.Value()-memory.Value() != 256<<20 {
			return fmt.Errorf("%s is %q, allocatable memory went from %v to %v", name, out, before.Value(), memory.Value())
		}
		return nil
	})
	warm := checkouts(t, node, "warm")
	pod := strings.Replace(templatePod(ns, "asks", "kept"), "metadata: {", "metadata: {annotations: {firkin.dev/template: kept}, ", 1)
	pod = strings.Replace(pod, "  runtimeClassName: kept\n", "  tolerations: [{key: firkin.dev/machine, operator: Exists}]\n", 1)
	apply(t, pod+"    resources: {limits: {"+name+": 1}}\n")
	waitRunning(t, ns, "asks")
	if got := checkouts(t, node, "warm"); got != warm+1 {
		t.Errorf("%v warm checkouts, want %v", got, warm+1)
	}
	kubectl(t, "delete", "pod", "asks", "-n", ns, "--grace-period=1")
	kubectl(t, "delete", "warmpool", "pool", "-n", ns)
	eventually(t, waitShort, "the room is everybody's again", func() error {
		if memory := resource.MustParse(allocatable("memory")); memory.Cmp(before) != 0 {
			return fmt.Errorf("allocatable memory is %v, was %v", memory.Value(), before.Value())
		}
		return nil
	})
}
