// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"testing"
	"time"

	"k8s.io/utils/ptr"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// newPair has a pool of two that can only be on node a.
func newPair(t *testing.T) *sim {
	t.Helper()
	s := newSim(t, 1, Options{})
	s.addNode("a", 8*gib)
	s.addNode("b", 8*gib)
	s.cordon("b", true)
	s.addTemplate("t", "app:1", gib)
	s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](2) })
	return s
}

// moveToB makes a controller that has not seen the targets of a give all of them to b.
func (s *sim) moveToB() {
	s.cordon("a", true)
	s.cordon("b", false)
}

// pass makes one, and tells whether it decided anything.
func (s *sim) pass(want error) (decided bool) {
	s.t.Helper()
	next, err := s.reconciler.Pass(s.t.Context())
	if !errors.Is(err, want) {
		s.t.Fatalf("pass: %v, want %v", err, want)
	}
	return err != nil || next > staleDelay
}

func (s *sim) wantTargets(onA, onB int) {
	s.t.Helper()
	if got := s.targets(); got["a p"] != onA || got["b p"] != onB {
		s.t.Errorf("targets %v, want %d on a and %d on b", got, onA, onB)
	}
}

// In these tests the caches stand still. checkWrite fails when the sum of targets rises
// above the replicas.

func TestNothingIsDecidedBeforeOwnWritesAreSeen(t *testing.T) {
	s := newPair(t)
	s.frozen = true
	s.pass(nil)
	s.wantTargets(2, 0)
	s.moveToB()
	for range 3 {
		if s.pass(nil) {
			t.Error("decided from a cache older than its own write")
		}
	}
	s.wantTargets(2, 0)
	s.frozen = false
	s.pass(nil)
	s.wantTargets(0, 2)
}

func TestTakeoverReadsTheServerFirst(t *testing.T) {
	s := newPair(t)
	s.frozen = true
	s.pass(nil)
	s.moveToB()
	s.reconciler = NewReconciler(s, s.reconciler.opts, nil)
	if s.pass(nil) {
		t.Error("decided from a cache older than another controller's write")
	}
	s.wantTargets(2, 0)
	s.frozen = false
	s.pass(nil)
	s.wantTargets(0, 2)
}

func TestLostAnswerIsAskedFor(t *testing.T) {
	s := newPair(t)
	s.frozen = true
	s.fault = func(*v1alpha1.NodeLedger) (bool, bool) { return false, true }
	s.pass(errSim)
	s.wantTargets(2, 0) // though the controller does not know
	s.fault = nil
	s.moveToB()
	if s.pass(nil) {
		t.Error("decided although the answer to its write is not known")
	}
	s.wantTargets(2, 0)
}

// What could not be taken from one node is not given to another.
func TestFailedDecreaseHoldsIncreasesBack(t *testing.T) {
	s := newPair(t)
	s.pass(nil)
	s.wantTargets(2, 0)
	s.moveToB()
	s.fault = func(l *v1alpha1.NodeLedger) (bool, bool) { return l.Name == "a", false }
	for range 5 {
		s.pass(errSim)
		s.wantTargets(2, 0)
	}
	s.fault = nil
	for range 3 {
		s.pass(nil)
	}
	s.wantTargets(0, 2)
}

// An increase whose answer was lost counts for the rest of the pass.
func TestLostIncreaseCounts(t *testing.T) {
	s := newSim(t, 1, Options{})
	for _, name := range []string{"a", "b", "c"} {
		s.addNode(name, 8*gib)
		s.cordon(name, name != "a")
	}
	s.addTemplate("t", "app:1", gib)
	s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.TemplateRef.Name, p.Replicas = "t", ptr.To[int32](4) })
	s.pass(nil)
	s.wantTargets(4, 0)
	s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.Replicas = ptr.To[int32](6) })
	s.moveToB()
	s.cordon("c", false)
	// a stays at 4, so b and c share 2; b gets them and the answer is lost.
	s.fault = func(l *v1alpha1.NodeLedger) (bool, bool) { return l.Name == "a", l.Name == "b" }
	s.pass(errSim)
	s.wantTargets(4, 2)
}

// A deleted ledger is not waited for.
func TestDeletedLedger(t *testing.T) {
	s := newPair(t)
	s.pass(nil)
	s.pass(nil)
	delete(s.ledgers, "a")
	delete(s.cached, "a")
	s.moveToB()
	for range 3 {
		s.now = s.now.Add(time.Second)
		s.pass(nil)
	}
	s.wantTargets(0, 2)
}

// A ledger of a node that was made anew begins at generation 1 again.
func TestLedgerMadeAnew(t *testing.T) {
	s := newPair(t)
	s.pass(nil)
	s.setPool("p", func(p *v1alpha1.WarmPoolSpec) { p.Replicas = ptr.To[int32](3) })
	s.pass(nil)
	s.addNode("a", 8*gib)
	for range 3 {
		s.pass(nil)
	}
	s.wantTargets(3, 0)
}
