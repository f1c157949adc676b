// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// TestFleet brings 5,000 entries of 50 pools onto 200 nodes, and through what happens to a
// fleet, with caches that lag. After every write of a ledger the sums are checked.
func TestFleet(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := newSim(t, seed, Options{FillLimit: 10})
	s.lag = true
	for i := range 200 {
		s.addNode(fmt.Sprintf("n%03d", i), 40*gib)
	}
	for i := range 10 {
		s.addTemplate(fmt.Sprint("t", i), "app:1", gib)
	}
	for i := range 50 {
		s.setPool(fmt.Sprintf("p%02d", i), func(p *v1alpha1.WarmPoolSpec) {
			p.TemplateRef.Name, p.Replicas, p.Priority = fmt.Sprint("t", i%10), ptr.To[int32](100), int32(i%3)
			p.PerNode = &v1alpha1.PerNodeBounds{Max: ptr.To[int32](4)}
		})
	}
	phase := func(name string, ledgers, statuses, seconds int) {
		t.Helper()
		took := s.settle(seconds)
		w := s.spent()
		t.Logf("%-28s %3d s, writes: %4d ledgers, %3d pools, %2d templates, %2d classes; nodes wrote %d statuses", name, took, w["NodeLedger"], w["WarmPool"], w["SnapshotTemplate"], w["RuntimeClass"], w["status by node"])
		if w["NodeLedger"] > ledgers || w["WarmPool"]+w["SnapshotTemplate"] > statuses {
			t.Errorf("%s: more writes than %d ledgers and %d statuses", name, ledgers, statuses)
		}
	}
	// Each node is given at most 10 at a time and needs 25: three writes, or one for every second that
	// its report lags (14 to 20 s over eleven seeds, with 730 to 1,460 writes).
	phase("fill", 200*10, 50*15, 60)

	quiet := s.targets()
	for range 20 {
		s.step()
	}
	if w := s.spent(); w["NodeLedger"]+w["WarmPool"]+w["SnapshotTemplate"]+w["RuntimeClass"] > 0 {
		t.Errorf("writes in 20 s in which nothing happened: %v", w)
	}

	for i := range 10 {
		s.setUp(fmt.Sprintf("n%03d", i*7), false)
	}
	for range 45 {
		s.step()
	}
	phase("10 nodes vanish", 200*2, 50*20, 60)
	now := s.targets()
	for place, n := range quiet {
		if now[place] < n {
			t.Errorf("%s went from %d to %d because other nodes vanished", place, n, now[place])
		}
	}
	for i := range 10 {
		s.setUp(fmt.Sprintf("n%03d", i*7), true)
	}
	phase("they come back", 300, 50*10, 60)

	s.cordon("n001", true)
	s.cordon("n002", true)
	before := s.targets()
	phase("2 nodes are cordoned", 120, 50*10, 60)
	now = s.targets()
	for place, n := range before {
		if now := now[place]; now > 0 && (strings.HasPrefix(place, "n001") || strings.HasPrefix(place, "n002")) {
			t.Errorf("%s is %d and cordoned", place, now)
		} else if now < n && !strings.HasPrefix(place, "n001") && !strings.HasPrefix(place, "n002") {
			t.Errorf("%s went from %d to %d because other nodes were cordoned", place, n, now)
		}
	}

	before = s.targets()
	s.addTemplate("t3", "app:2", gib)
	phase("a template changes", 3*200, 50*20, 200)
	now = s.targets()
	for place, n := range before {
		if now[place] != n {
			t.Errorf("%s went from %d to %d because the template changed", place, n, now[place])
		}
	}

	s.setPool("p07", func(p *v1alpha1.WarmPoolSpec) { p.Replicas = ptr.To[int32](300) })
	s.setPool("p11", func(p *v1alpha1.WarmPoolSpec) { p.Replicas = ptr.To[int32](10) })
	phase("a pool grows, another shrinks", 400, 200, 60)

	before = s.targets()
	delete(s.pools, Key{"ns", "p20"})
	phase("a pool is deleted", 110, 60, 60)
	now = s.targets()
	for place, n := range before {
		if now := now[place]; strings.HasSuffix(place, "p20") != (now == 0) || now != 0 && now != n {
			t.Errorf("%s went from %d to %d because pool p20 was deleted", place, n, now)
		}
	}
	if s.spent(); len(s.classes) != 10 {
		t.Errorf("%d RuntimeClasses for 10 templates", len(s.classes))
	}
}

// TestFleetUnderFaults lets everything happen at random, with writes that fail before and
// after they are done. checkWrite is what it is about; that the fleet settles afterwards, too.
func TestFleetUnderFaults(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		s := newSim(t, seed, Options{FillLimit: 4})
		s.lag, s.faults = true, 0.2
		for i := range 8 {
			s.addNode(fmt.Sprint("n", i), 16*gib)
		}
		s.addTemplate("small", "app:1", gib)
		s.addTemplate("large", "app:1", 3*gib)
		set := func(i int) {
			s.setPool(fmt.Sprint("p", i), func(p *v1alpha1.WarmPoolSpec) {
				p.TemplateRef.Name = []string{"small", "large"}[i%2]
				p.Replicas, p.Priority = ptr.To(int32(s.rng.IntN(10))), int32(i%3)
				p.PerNode = &v1alpha1.PerNodeBounds{Min: ptr.To(int32(i % 3)), Max: ptr.To(int32(4 + i%3))}
			})
		}
		for i := range 5 {
			set(i)
		}
		revision := 1
		for range 300 {
			node := fmt.Sprint("n", s.rng.IntN(8))
			switch s.rng.IntN(12) {
			case 0:
				set(s.rng.IntN(5))
			case 1:
				s.setUp(node, false)
			case 2, 3:
				s.setUp(node, true)
			case 4:
				s.cordon(node, s.rng.IntN(3) == 0)
			case 5:
				revision++
				s.addTemplate("small", fmt.Sprint("app:", revision), gib)
			case 6:
				s.nodes[node].used = int64(s.rng.IntN(8)) * gib
			case 7: // another controller takes over: it remembers nothing
				s.reconciler = NewReconciler(s, s.reconciler.opts, nil)
			}
			s.step()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		s.faults = 0
		for i := range 8 {
			s.setUp(fmt.Sprint("n", i), true)
			s.cordon(fmt.Sprint("n", i), false)
			s.nodes[fmt.Sprint("n", i)].used = 0
		}
		for i := range 5 {
			s.setPool(fmt.Sprint("p", i), func(p *v1alpha1.WarmPoolSpec) { p.Replicas = ptr.To[int32](6) })
		}
		s.settle(600)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestLies lets a node report what cannot be: it is named, and the others go on.
func TestLies(t *testing.T) {
	huge := resource.MustParse("1000000Ti")
	for name, lie := range map[string]func(*v1alpha1.NodeLedgerStatus){
		"negative memory": func(s *v1alpha1.NodeLedgerStatus) { s.Capacity.Memory = resource.MustParse("-1Gi") },
		"absurd memory":   func(s *v1alpha1.NodeLedgerStatus) { s.Capacity.Memory = huge },
		"negative count":  func(s *v1alpha1.NodeLedgerStatus) { s.Pools[0].Ready = -5 },
		"absurd count":    func(s *v1alpha1.NodeLedgerStatus) { s.Pools[0].Ready = 2147483647 },
		"others' pools": func(s *v1alpha1.NodeLedgerStatus) {
			for i := range 5000 {
				s.Pools = append(s.Pools, v1alpha1.PoolStatus{Namespace: "ns", Pool: fmt.Sprint("x", i), Ready: 1000})
			}
			s.Snapshots = make([]v1alpha1.SnapshotStatus, 5000)
		},
		"long words": func(s *v1alpha1.NodeLedgerStatus) {
			s.Capacity.Memory = resource.MustParse("-1Gi")
			s.Pools[0].SkipReason, s.Pools[0].Message = strings.Repeat("é", 10000), strings.Repeat("\xff", 10000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, 1, Options{})
			for i := range 3 {
				s.addNode(fmt.Sprint("n", i), 8*gib)
			}
			s.addTemplate("t", "app:1", gib)
			s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](9) })
			s.settle(30)
			s.nodes["n1"].lie = lie
			s.step()
			s.step()
			p := s.pools[Key{"ns", "p"}]
			named := false
			for _, c := range p.Status.Conditions {
				named = named || c.Type == v1alpha1.ConditionDegraded && c.Reason == v1alpha1.ReasonNodeStatusInvalid && strings.Contains(c.Message, "n1")
				if len(c.Message) > v1alpha1.MaxMessage {
					t.Errorf("message of %d bytes", len(c.Message))
				}
			}
			if held := s.targets()["n1 p"]; held > 0 && !named {
				t.Errorf("conditions do not name the node: %+v", p.Status.Conditions)
			}
			for _, n := range p.Status.Nodes {
				if n.Ready < 0 || n.Ready > 8 || len(n.Message) > v1alpha1.MaxMessage || len(n.SkipReason) > 64 {
					t.Errorf("node status %+v", n)
				}
			}
			if len(p.Status.Nodes) > 3 {
				t.Errorf("%d nodes in the status of a fleet of 3", len(p.Status.Nodes))
			}
			s.setPool("q", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](2) })
			s.settle(30, "p")
		})
	}
}
