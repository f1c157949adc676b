// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// TestConditions brings a small fleet into each state and reads what is said of it.
func TestConditions(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(s *sim)
		steps   int
		want    map[string]string // type -> "Status Reason part of the message"
	}{
		{"ready", func(*sim) {}, 20, map[string]string{"Ready": "True AllReady 4 of 4", "Progressing": "False Complete", "Degraded": "False AsExpected"}},
		{"building", func(*sim) {}, 2, map[string]string{"Ready": "False BuildingSnapshot 0 of 4", "Progressing": "True BuildingSnapshot 2 nodes", "Degraded": "False AsExpected"}},
		{"scaled to zero", func(s *sim) { s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.Replicas = ptr.To[int32](0) }) }, 5,
			map[string]string{"Ready": "True ScaledToZero", "Degraded": "False AsExpected"}},
		{"no template", func(s *sim) { delete(s.templates, Key{"ns", "t"}) }, 5,
			map[string]string{"Ready": "False TemplateNotFound", "Degraded": "True TemplateNotFound there is no SnapshotTemplate t in namespace ns: create it"}},
		{"template too large", func(s *sim) {
			x := s.templates[Key{"ns", "t"}].DeepCopy()
			x.Spec.Setup = []v1alpha1.Command{{Command: []string{strings.Repeat("x", 100<<10)}}}
			x.Generation++
			s.templates[Key{"ns", "t"}] = x
		}, 5, map[string]string{"Ready": "False TemplateTooLarge", "Degraded": "True TemplateTooLarge move long scripts"}},
		{"no nodes", func(s *sim) {
			s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.NodeSelector = map[string]string{"disk": "ssd"} })
		}, 5, map[string]string{"Ready": "False NoEligibleNodes", "Degraded": "True NoEligibleNodes change them, or join a node"}},
		{"beyond the fleet", func(s *sim) { s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.Replicas = ptr.To[int32](100) }) }, 20,
			map[string]string{"Ready": "False InsufficientCapacity 16 of 100", "Degraded": "True InsufficientCapacity 84 of 100 replicas find no room: of 2 eligible nodes, 2 usable, 2 without room"}},
		{"per-node maximum", func(s *sim) {
			s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.PerNode = &v1alpha1.PerNodeBounds{Max: ptr.To[int32](1)} })
		}, 20, map[string]string{"Degraded": "True InsufficientCapacity 2 at spec.perNode.max"}},
		{"build fails on one node", func(s *sim) { s.nodes["a"].brokenRevs[s.templates[Key{"ns", "t"}].Spec.Revision()] = true }, 20,
			map[string]string{"Ready": "False TemplateBuildFailed", "Degraded": "True TemplateBuildFailed node a cannot build template t (Setup): exit status 2"}},
		{"node gone", func(s *sim) { s.settle(20); s.setUp("a", false) }, 60,
			map[string]string{"Ready": "True AllReady 4 of 4", "Degraded": "True NodeUnreachable node a is not ready since"}},
		{"node says Backoff", func(s *sim) {
			s.nodes["a"].lie = func(l *v1alpha1.NodeLedgerStatus) {
				for i := range l.Pools {
					l.Pools[i].Ready, l.Pools[i].SkipReason, l.Pools[i].Message = 0, "Backoff", "3 restores failed: no such file"
				}
			}
		}, 20, map[string]string{"Degraded": "True NodeSkipped node a restores no more (Backoff): 3 restores failed"}},
		{"name too long", func(s *sim) {
			p := s.pools[Key{"ns", "p"}].DeepCopy()
			delete(s.pools, Key{"ns", "p"})
			p.Name = strings.Repeat("p", 61)
			s.pools[Key{"ns", p.Name}] = p
		}, 20, map[string]string{"Ready": "True AllReady", "Degraded": "True NameTooLong"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSim(t, 1, Options{})
			s.addNode("a", 8*gib)
			s.addNode("b", 8*gib)
			s.addTemplate("t", "app:1", gib)
			s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](4) })
			test.prepare(s)
			for range test.steps {
				s.step()
			}
			for _, p := range s.pools {
				for kind, want := range test.want {
					c := meta.FindStatusCondition(p.Status.Conditions, kind)
					if c == nil {
						t.Fatalf("no condition %s", kind)
					}
					parts := strings.SplitN(want+"  ", " ", 3)
					if string(c.Status) != parts[0] || c.Reason != parts[1] || !strings.Contains(c.Message, strings.TrimSpace(parts[2])) {
						t.Errorf("%s: %s %s %q, want %s", kind, c.Status, c.Reason, c.Message, want)
					}
				}
			}
			s.spent()
			for range 10 {
				s.step()
			}
			if test.name == "building" { // it goes on
				return
			}
			if w := s.spent(); w["WarmPool"]+w["SnapshotTemplate"]+w["NodeLedger"] > 0 {
				t.Errorf("nothing changes, and there are writes: %v", w)
			}
		})
	}
}

func TestTemplateStatus(t *testing.T) {
	s := newSim(t, 1, Options{})
	for i := range 15 {
		s.addNode(fmt.Sprintf("n%02d", i), 8*gib)
	}
	s.addTemplate("t", "app:1", gib)
	revision := s.templates[Key{"ns", "t"}].Spec.Revision()
	for i := range 12 {
		s.nodes[fmt.Sprintf("n%02d", i)].brokenRevs[revision] = true
	}
	s.step()
	if c := meta.FindStatusCondition(s.templates[Key{"ns", "t"}].Status.Conditions, "Ready"); c == nil || c.Reason != v1alpha1.ReasonUnused {
		t.Errorf("unused template: %+v", c)
	}
	s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](15) })
	for range 20 {
		s.step()
	}
	status := s.templates[Key{"ns", "t"}].Status
	if status.Revision != revision || status.RuntimeClassName != "t" || status.ReadyNodes != 3 || status.FailedNodes != 12 || status.BuildingNodes != 0 {
		t.Errorf("%+v", status)
	}
	if len(status.Failures) != v1alpha1.MaxFailures || status.Failures[0].Output != "make: no rule" || status.Failures[0].Step != "Setup" {
		t.Errorf("failures: %+v", status.Failures)
	}
	told := 0
	for _, e := range s.events {
		if strings.Contains(e, "SnapshotTemplate TemplateBuildFailed: node n") && strings.Contains(e, "make: no rule") {
			told++
		}
	}
	if told != v1alpha1.MaxFailures {
		t.Errorf("%d events of %d failures: %q", told, v1alpha1.MaxFailures, s.events)
	}
}

// A revision that cannot be built stops at the first node; the others keep their machines.
func TestBrokenRevisionStopsEarly(t *testing.T) {
	s := newSim(t, 1, Options{})
	for i := range 10 {
		s.addNode(fmt.Sprintf("n%02d", i), 8*gib)
	}
	s.addTemplate("t", "app:1", gib)
	s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](20) })
	s.settle(30)
	s.addTemplate("t", "app:broken", gib)
	for _, n := range s.nodes {
		n.brokenRevs[s.templates[Key{"ns", "t"}].Spec.Revision()] = true
	}
	for range 100 {
		s.step()
	}
	status := s.pools[Key{"ns", "p"}].Status
	if status.Ready != 20 || status.Outdated != 2 {
		t.Errorf("%d ready, %d outdated on the one node that tried", status.Ready, status.Outdated)
	}
	c := meta.FindStatusCondition(status.Conditions, "Degraded")
	if c.Reason != v1alpha1.ReasonTemplateBuildFailed {
		t.Errorf("%+v", c)
	}
	s.addTemplate("t", "app:3", gib)
	s.settle(200)
}

// A node that is not ready for less than the grace period, again and again, moves nothing.
func TestNoFlapping(t *testing.T) {
	s := newSim(t, 1, Options{GracePeriod: 10 * time.Second})
	s.addNode("a", 8*gib)
	s.addNode("b", 8*gib)
	s.addTemplate("t", "app:1", gib)
	s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](4) })
	s.settle(20)
	s.spent()
	for i := range 60 {
		s.setUp("a", i%12 > 8)
		s.step()
	}
	if w := s.spent(); w["NodeLedger"] > 0 {
		t.Errorf("%d writes of ledgers", w["NodeLedger"])
	}
}

// The controller's own clock counts, once it has seen a node.
func TestNodeStates(t *testing.T) {
	o := Options{}.complete()
	now := time.Unix(10000, 0)
	node := func(status corev1.ConditionStatus, since time.Time, cordoned bool) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
		n.Spec.Unschedulable = cordoned
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastTransitionTime: metav1.NewTime(since)}}
		return n
	}
	var m memory
	check := func(what string, n *corev1.Node, want NodeState, returning bool) {
		t.Helper()
		if state, r, _ := m.state(n, now, o); state != want || r != returning {
			t.Errorf("%s: %s, returning %v", what, state, r)
		}
	}
	check("down for long when first seen", node(corev1.ConditionUnknown, now.Add(-time.Hour), false), NodeUnreachable, false)
	check("came back", node(corev1.ConditionTrue, now, false), NodeReady, true)
	now = now.Add(o.ReturnPeriod)
	check("is back", node(corev1.ConditionTrue, now, false), NodeReady, false)
	check("cordoned", node(corev1.ConditionTrue, now, true), NodeCordoned, false)
	check("down, by a clock that is wrong", node(corev1.ConditionFalse, now.Add(-time.Hour), false), NodeWaiting, false)
	now = now.Add(o.GracePeriod - 1)
	check("still in the grace period", node(corev1.ConditionFalse, now.Add(time.Hour), false), NodeWaiting, false)
	now = now.Add(1)
	check("after it", node(corev1.ConditionFalse, now.Add(time.Hour), false), NodeUnreachable, false)
	m = memory{}
	check("no condition yet", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "new", CreationTimestamp: metav1.NewTime(now)}}, NodeWaiting, false)
}

func TestClip(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("é", 400), strings.Repeat("a", 399) + "é" + strings.Repeat("b", 10), "\xff\xfe" + strings.Repeat("\xff", 1000)} {
		got := clip(text, 400)
		if len(got) > 400 || !utf8.ValidString(got) {
			t.Errorf("%d bytes, valid %v", len(got), utf8.ValidString(got))
		}
	}
}
