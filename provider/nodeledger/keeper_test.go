// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/nodeledger"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// lines collects what is logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// scene is a keeper that runs in a bubble of its own time.
type scene struct {
	t *testing.T
	m *memory
	s *supply
	k *nodeledger.Keeper
	l *lines
}

// play runs a keeper in a bubble; do finds it at rest.
func play(t *testing.T, m *memory, do func(*scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sc := &scene{t: t, m: m, s: newSupply(), l: &lines{}}
		var err error
		sc.k, err = nodeledger.New(nodeledger.Options{API: m, NodeName: node, Supply: sc.s, Limits: limits, Logger: slog.New(slog.NewTextHandler(sc.l, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); sc.k.Run(ctx) }()
		defer func() { cancel(); <-done }()
		sc.wait(5 * time.Second)
		do(sc)
	})
}

// wait lets time pass and everything come to rest.
func (sc *scene) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestCreatesItsLedgerAndKeepsTargets(t *testing.T) {
	play(t, newMemory(), func(sc *scene) {
		l := sc.m.get()
		if l == nil {
			t.Fatal("no ledger was made")
		}
		want := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node, UID: "node-uid"}}
		if l.Name != node || cmp.Diff(want, l.OwnerReferences) != "" {
			t.Errorf("made %+v", l.ObjectMeta)
		}
		sc.m.setSpec(ledgerSpec(target("app"), target("odd", func(p *v1alpha1.PoolTarget) { p.Template = "bad" })))
		sc.wait(2 * time.Second)
		if got := sc.s.pools(); !slices.Equal(got, []string{"team/app=2"}) {
			t.Errorf("targets are %v", got)
		}
		sc.s.change(func(s *warmpool.Status) {
			s.Account.Capacity = warmpool.Budget{MilliCPU: 2000, MemoryBytes: 4 << 30, DiskBytes: 10 << 30}
			s.Account.Warm.MemoryBytes = 256 << 20
			s.Account.Machines = []warmpool.Entry{{Machine: "warm-1", State: warmpool.StateWarm, Warm: true}, {Machine: "pod-1", State: warmpool.StateActive}}
			s.Pools = []warmpool.PoolStatus{{Pool: "team/app", Template: "team/app", Revision: "aa", Desired: 2, Ready: 1, Restoring: 1, UnmetSince: time.Now()}}
			s.Templates = []warmpool.TemplateStatus{{Namespace: "team", Name: "app", Revision: "aa", Phase: warmpool.TemplateReady, Key: "k", Build: 1500 * time.Millisecond}}
		})
		sc.wait(2 * time.Second)
		st := sc.m.get().Status
		if st.ObservedGeneration != 2 || st.Capacity.CPU.String() != "2" || st.Warm.Memory.String() != "256Mi" || st.WarmMachines != 1 || st.ActiveMachines != 1 {
			t.Errorf("status is %+v", st)
		}
		if len(st.Pools) != 2 || st.Pools[0].Ready != 1 || st.Pools[0].UnmetSince == nil || st.Pools[1].SkipReason != "SnapshotNotReady" || !strings.Contains(st.Pools[1].Message, "invalid template") {
			t.Errorf("pools are %+v", st.Pools)
		}
		if len(st.Snapshots) != 2 || st.Snapshots[0].BuildMillis != 1500 || st.Snapshots[1].Phase != v1alpha1.SnapshotFailed {
			t.Errorf("snapshots are %+v", st.Snapshots)
		}
		for _, c := range st.Conditions {
			want := map[string]metav1.ConditionStatus{"Ready": "False", "Progressing": "True", "Degraded": "True"}[c.Type]
			if c.Status != want || c.Status == "True" && !strings.Contains(c.Message, "team/odd") && c.Type == "Degraded" {
				t.Errorf("condition %+v", c)
			}
		}
		if got := sc.k.Pools(); len(got) != 1 || got[0] != (provider.NodePool{Key: "warm.firkin.dev/team.app", Ready: 1, Desired: 2, Each: provider.Budget{MilliCPU: 250, MemoryBytes: 256 << 20}}) {
			t.Errorf("pools offered: %+v", got)
		}
	})
}

// Slots for macOS guests are in the ledger's status; those that the host refuses to fill are
// told apart, with what to do about it.
func TestReportsSlots(t *testing.T) {
	play(t, newMemory(), func(sc *scene) {
		sc.s.change(func(s *warmpool.Status) {
			s.Account.Capacity.Slots, s.Account.Warm.Slots = 1, 1
			s.Account.Withheld = warmpool.Withheld{Slots: 1, Message: "restart the host"}
			s.Account.Machines = []warmpool.Entry{{Machine: "slot-1", State: warmpool.StateReserved, Warm: true, Budget: warmpool.Budget{Slots: 1}}}
		})
		sc.wait(2 * time.Second)
		st := sc.m.get().Status
		if st.Capacity.Slots != 1 || st.Warm.Slots != 1 || st.WithheldSlots != 1 || st.WarmMachines != 0 {
			t.Errorf("status is %+v", st)
		}
		if c := meta.FindStatusCondition(st.Conditions, v1alpha1.ConditionDegraded); c == nil || c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "restart the host") {
			t.Errorf("condition is %+v", c)
		}
		if n := sc.k.WithheldMacOSGuests(); n != 1 {
			t.Errorf("%d macOS guests are withheld", n)
		}
	})
}

// However much happens, one status a second is written, and the last one is true.
// Machines in quarantine are told of in the cluster, as many as there is room for, with what to
// do about them; what their records say may be anything.
func TestReportsQuarantine(t *testing.T) {
	play(t, newMemory(), func(sc *scene) {
		const n = 2*v1alpha1.MaxQuarantined + 3
		sc.s.change(func(s *warmpool.Status) {
			for i := range n {
				s.Quarantined = append(s.Quarantined, warmpool.Quarantined{
					Machine: fmt.Sprintf("pod-%02d", n-1-i), Since: time.Now().Add(-time.Duration(i) * time.Hour),
					PodUID: strings.Repeat("u", 70), Reason: strings.Repeat("\xff long ", 1000),
				})
			}
		})
		sc.wait(2 * time.Second)
		st := sc.m.get().Status
		if st.QuarantinedMachines != n || len(st.Quarantined) != v1alpha1.MaxQuarantined || st.Quarantined[0].Machine != "pod-00" || st.Quarantined[1].Machine != "pod-01" || st.Quarantined[0].Since == nil {
			t.Errorf("%d in quarantine: %+v", st.QuarantinedMachines, st.Quarantined)
		}
		for _, q := range st.Quarantined {
			if len(q.PodUID) > 64 || len(q.Reason) > v1alpha1.MaxMessage || q.Reason == "" {
				t.Errorf("the API server would refuse %+v", q)
			}
		}
		c := meta.FindStatusCondition(st.Conditions, v1alpha1.ConditionDegraded)
		if c == nil || c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonMachinesQuarantined || !strings.HasPrefix(c.Message, "43 machines are in quarantine (pod-00, pod-01, pod-02, and others): vk-firkin quarantine") {
			t.Errorf("condition is %+v", c)
		}
		sc.s.change(func(s *warmpool.Status) { s.Quarantined = nil })
		sc.wait(2 * time.Second)
		st = sc.m.get().Status
		if c := meta.FindStatusCondition(st.Conditions, v1alpha1.ConditionDegraded); st.QuarantinedMachines != 0 || len(st.Quarantined) != 0 || c.Status != metav1.ConditionFalse || c.Message != "" {
			t.Errorf("afterwards: %+v, %+v", st, c)
		}
	})
}

func TestReportsAtMostOnceASecond(t *testing.T) {
	play(t, newMemory(), func(sc *scene) {
		before := sc.m.statusWrites()
		began := time.Now()
		for i := range 500 { // in five seconds
			sc.s.change(func(s *warmpool.Status) {
				s.Pools = []warmpool.PoolStatus{{Pool: "team/app", Ready: i + 1, Desired: 500}}
			})
			time.Sleep(10 * time.Millisecond)
		}
		sc.wait(3 * time.Second)
		n := sc.m.statusWrites() - before
		if most := int(time.Since(began)/time.Second) + 1; n < 5 || n > most {
			t.Errorf("%d statuses in %s", n, time.Since(began))
		}
		sc.m.mu.Lock()
		for i := 1; i < len(sc.m.writes); i++ {
			if gap := sc.m.writes[i].Sub(sc.m.writes[i-1]); gap < time.Second {
				t.Errorf("two statuses within %s", gap)
			}
		}
		sc.m.mu.Unlock()
		if got := sc.m.get().Status.Pools[0].Ready; got != 500 {
			t.Errorf("the last status says %d", got)
		}
		// Nothing happens: nothing is written.
		before = sc.m.statusWrites()
		sc.s.change(func(*warmpool.Status) {})
		sc.wait(time.Hour)
		if n := sc.m.statusWrites() - before; n != 0 {
			t.Errorf("%d statuses although nothing changed", n)
		}
	})
}

func TestConflictIsNoFailure(t *testing.T) {
	m := newMemory()
	play(t, m, func(sc *scene) {
		meddled := 0
		m.mu.Lock()
		m.meddle = func(*v1alpha1.NodeLedger) {
			if meddled < 3 { // the controller writes each time just before the node does
				meddled++
				m.write(ledgerSpec(target("app", func(p *v1alpha1.PoolTarget) { p.Replicas = int32(meddled) })))
			}
		}
		m.mu.Unlock()
		sc.s.change(func(s *warmpool.Status) { s.Account.Capacity.MilliCPU = 1000 })
		sc.wait(5 * time.Second)
		l := m.get()
		if l.Status.Capacity.CPU.String() != "1" || l.Status.ObservedGeneration != 4 || meddled != 3 {
			t.Errorf("status is %+v after %d conflicts", l.Status, meddled)
		}
		if got := sc.s.pools(); !slices.Equal(got, []string{"team/app=3"}) {
			t.Errorf("targets are %v", got)
		}
		if n := sc.l.count("level=WARN"); n != 0 {
			t.Errorf("a conflict was logged %d times as a failure", n)
		}
	})
}

// An API server that is away for minutes changes nothing; then it hears everything.
func TestAPIServerAway(t *testing.T) {
	m := newMemory()
	play(t, m, func(sc *scene) {
		m.setSpec(ledgerSpec(target("app")))
		sc.wait(2 * time.Second)
		m.setFault(func(string) error { return errors.New("connection refused") })
		m.breakWatches()
		for i := range 60 {
			sc.s.change(func(s *warmpool.Status) { s.Pools = []warmpool.PoolStatus{{Pool: "team/app", Ready: i, Desired: 2}} })
			sc.wait(10 * time.Second)
		}
		if got := sc.s.pools(); !slices.Equal(got, []string{"team/app=2"}) {
			t.Errorf("targets are %v", got)
		}
		if n := m.calls["update"]; n > 60 {
			t.Errorf("%d tries to write in 10 minutes", n)
		}
		if n := sc.l.count("level=WARN"); n > 4 {
			t.Errorf("%d warnings for one outage", n)
		}
		m.mu.Lock()
		m.fault = nil
		m.write(ledgerSpec(target("app", func(p *v1alpha1.PoolTarget) { p.Replicas = 9 })))
		m.mu.Unlock()
		sc.wait(2 * time.Minute)
		if got := sc.s.pools(); !slices.Equal(got, []string{"team/app=9"}) {
			t.Errorf("targets are %v", got)
		}
		if st := m.get().Status; len(st.Pools) != 1 || st.Pools[0].Ready != 59 || st.ObservedGeneration != 3 {
			t.Errorf("status is %+v", st)
		}
	})
}

func TestWatchBreaks(t *testing.T) {
	m := newMemory()
	play(t, m, func(sc *scene) {
		for i := range 20 {
			m.breakWatches()
			m.setSpec(ledgerSpec(target("app", func(p *v1alpha1.PoolTarget) { p.Replicas = int32(i) }))) // nobody sees it happen
			sc.wait(2 * time.Minute)
			if got := sc.s.pools(); !slices.Equal(got, []string{fmt.Sprintf("team/app=%d", i)}) {
				t.Fatalf("after break %d the targets are %v", i, got)
			}
			if g := m.get(); g.Status.ObservedGeneration != g.Generation {
				t.Fatalf("generation %d is not reported: %d", g.Generation, g.Status.ObservedGeneration)
			}
		}
	})
}

func TestLedgerIsDeleted(t *testing.T) {
	m := newMemory()
	play(t, m, func(sc *scene) {
		m.setSpec(ledgerSpec(target("app")))
		sc.wait(2 * time.Second)
		sc.s.change(func(s *warmpool.Status) { s.Account.Capacity.MilliCPU = 1000 })
		sc.wait(2 * time.Second)
		m.remove()
		sc.wait(5 * time.Second)
		l := m.get()
		if l == nil || l.Status.Capacity.CPU.String() != "1" {
			t.Fatalf("ledger is %+v", l)
		}
		// It is empty until the controller speaks: the pools stay as they were.
		if got := sc.s.pools(); !slices.Equal(got, []string{"team/app=2"}) {
			t.Errorf("targets are %v before the controller said anything", got)
		}
		// The same generation in another ledger is another specification.
		m.setSpec(ledgerSpec(target("other")))
		sc.wait(2 * time.Second)
		if got := sc.s.pools(); !slices.Equal(got, []string{"team/other=2"}) {
			t.Errorf("targets are %v", got)
		}
	})
}

// Without the CRDs the node says so once, looks again with back-off, and takes part
// once they are there.
func TestCRDsAreMissing(t *testing.T) {
	m := newMemory()
	m.fault = func(call string) error {
		return apierrors.NewGenericServerResponse(404, "get", schema.GroupResource{}, "", "the server could not find the requested resource", 0, true)
	}
	play(t, m, func(sc *scene) {
		sc.wait(time.Hour)
		if n := sc.l.count("CRDs"); n != 2 { // one for each of the two resources
			t.Errorf("it was said %d times", n)
		}
		if n := m.calls["list nodeledgers"]; n < 50 || n > 300 {
			t.Errorf("%d tries in an hour", n)
		}
		if m.calls["create"]+m.calls["update"]+m.calls["node"] != 0 {
			t.Errorf("it wrote: %v", m.calls)
		}
		if _, err := sc.k.Template("team", "app"); err == nil || errors.Is(err, provider.ErrNotFound) {
			t.Errorf("template: %v", err)
		}
		m.setFault(nil)
		sc.wait(5 * time.Minute)
		if m.get() == nil {
			t.Error("no ledger after the CRDs were installed")
		}
		if _, err := sc.k.Template("team", "app"); !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("template: %v", err)
		}
	})
}

func TestTemplates(t *testing.T) {
	m := newMemory()
	play(t, m, func(sc *scene) {
		var mu sync.Mutex
		var told []string
		sc.k.OnChange(func(namespace, name string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, namespace+"/"+name)
		})
		put := func(name string, spec v1alpha1.SnapshotTemplateSpec) {
			m.putTemplate(&v1alpha1.SnapshotTemplate{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name}, Spec: spec})
			sc.wait(time.Second)
		}
		put("app", templateSpec())
		first, err := sc.k.Template("team", "app")
		if err != nil {
			t.Fatal(err)
		}
		spec := templateSpec()
		if first.Revision != spec.Revision() || first.MilliCPU != 250 {
			t.Errorf("got %+v", first)
		}
		put("app", templateSpec(func(s *v1alpha1.SnapshotTemplateSpec) { s.Image = "example.test/app:2" }))
		second, err := sc.k.Template("team", "app")
		if err != nil || second.Revision == first.Revision || second.Images[0] != "example.test/app:2" {
			t.Errorf("got %+v, %v", second, err)
		}
		put("app", v1alpha1.SnapshotTemplateSpec{})
		if _, err := sc.k.Template("team", "app"); !errors.Is(err, provider.ErrInvalidTemplate) {
			t.Errorf("got %v", err)
		}
		m.removeTemplate("team/app")
		sc.wait(time.Second)
		if _, err := sc.k.Template("team", "app"); !errors.Is(err, provider.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(told, []string{"team/app", "team/app", "team/app", "team/app"}) {
			t.Errorf("told %v", told)
		}
	})
}

// A server that has just started refuses what it allows until it has read its roles: nobody is
// told to mend them for that, but for a server that goes on refusing.
func TestRefusedWatch(t *testing.T) {
	const hint = "This node may not watch"
	play(t, newMemory(), func(sc *scene) {
		refuse := func() {
			sc.m.setFault(func(call string) error {
				if strings.HasPrefix(call, "list ") || strings.HasPrefix(call, "watch ") {
					return apierrors.NewForbidden(schema.GroupResource{Resource: "nodeledgers"}, node, errors.New("the roles are not read yet"))
				}
				return nil
			})
			sc.m.breakWatches()
		}
		for range 3 { // restarts of the server, far apart: they are no series
			refuse()
			sc.wait(10 * time.Second)
			sc.m.setFault(nil)
			sc.wait(10 * time.Minute)
		}
		if n := sc.l.count(hint); n != 0 {
			t.Fatalf("the hint was given %d times", n)
		}
		refuse()
		sc.wait(5 * time.Minute)
		if n := sc.l.count(hint); n != 2 {
			t.Errorf("the hint was given %d times, want once for each of the two resources", n)
		}
	})
}
