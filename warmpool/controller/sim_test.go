// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// sim is a cluster in memory: an API server with optimistic concurrency and lagging
// caches, a clock, and nodes that do what their ledgers say. What it holds is never changed
// in place.
type sim struct {
	t       *testing.T
	rng     *rand.Rand
	now     time.Time
	version int

	nodes     map[string]*simNode
	ledgers   map[string]*v1alpha1.NodeLedger
	pools     map[Key]*v1alpha1.WarmPool
	templates map[Key]*v1alpha1.SnapshotTemplate
	classes   map[string]*nodev1.RuntimeClass

	// cached is what the controller's cache has of the ledgers; pending are updates that it has
	// not seen, of which each look delivers some if lag is set.
	cached  map[string]*v1alpha1.NodeLedger
	pending []*v1alpha1.NodeLedger
	lag     bool
	frozen  bool // deliver nothing
	// faults is the probability that a write fails, half of them after it was done.
	faults float64
	// fault decides about the write of one ledger: it fails before or after it is done.
	fault func(l *v1alpha1.NodeLedger) (before, after bool)

	writes map[string]int
	events []string

	reconciler *Reconciler
}

// simNode is a node and its machines.
type simNode struct {
	object     *corev1.Node
	up         bool
	changed    time.Time
	vanished   map[Key]int // targets when it became unreachable
	returned   time.Time
	used       int64
	builds     map[snapshotKey]int
	ready      map[Key]map[string]int // by revision
	brokenRevs map[string]bool
	lie        func(*v1alpha1.NodeLedgerStatus)
}

var errSim = errors.New("the connection was lost")

const gib = int64(1) << 30

func newSim(t *testing.T, seed uint64, o Options) *sim {
	t.Helper()
	s := &sim{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		nodes: map[string]*simNode{}, ledgers: map[string]*v1alpha1.NodeLedger{}, pools: map[Key]*v1alpha1.WarmPool{},
		templates: map[Key]*v1alpha1.SnapshotTemplate{}, classes: map[string]*nodev1.RuntimeClass{}, cached: map[string]*v1alpha1.NodeLedger{},
		writes: map[string]int{},
	}
	o.Now = func() time.Time { return s.now }
	s.reconciler = NewReconciler(s, o, nil)
	return s
}

func (s *sim) stamp(o client.Object) {
	s.version++
	o.SetResourceVersion(fmt.Sprint(s.version))
	if o.GetUID() == "" {
		o.SetUID(types.UID(fmt.Sprint("uid-", s.version)))
		o.SetCreationTimestamp(metav1.NewTime(s.now))
		o.SetGeneration(1)
	}
}

func (s *sim) addNode(name string, memory int64) *simNode {
	n := &simNode{up: true, changed: s.now, builds: map[snapshotKey]int{}, ready: map[Key]map[string]int{}, brokenRevs: map[string]bool{}}
	n.object = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	s.nodes[name] = n
	l := &v1alpha1.NodeLedger{ObjectMeta: metav1.ObjectMeta{Name: name}}
	l.Status.Capacity.Memory = *resource.NewQuantity(memory, resource.BinarySI)
	s.stamp(l)
	if s.ledgers[name] == nil {
		s.ledgers[name], s.cached[name] = l, l
	}
	s.put(l)
	s.refresh(n)
	return n
}

// refresh makes the Node object say whether the node is up.
func (s *sim) refresh(n *simNode) {
	n.object = n.object.DeepCopy()
	status := corev1.ConditionTrue
	if !n.up {
		status = corev1.ConditionUnknown
	}
	n.object.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastTransitionTime: metav1.NewTime(n.changed)}}
}

func (s *sim) setUp(name string, up bool) {
	n := s.nodes[name]
	if n.up == up {
		return
	}
	if up && s.now.Sub(n.changed) >= s.reconciler.opts.GracePeriod {
		n.returned, n.vanished = s.now, map[Key]int{}
		for _, t := range s.ledgers[name].Spec.Targets {
			n.vanished[Key{t.Namespace, t.Pool}] = int(t.Replicas)
		}
	}
	n.up, n.changed = up, s.now
	s.refresh(n)
}

func (s *sim) cordon(name string, cordoned bool) {
	n := s.nodes[name]
	n.object = n.object.DeepCopy()
	n.object.Spec.Unschedulable = cordoned
}

func (s *sim) addTemplate(name, image string, memory int64) {
	k := Key{"ns", name}
	t := &v1alpha1.SnapshotTemplate{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if old := s.templates[k]; old != nil {
		t = old.DeepCopy()
		t.Generation++
	}
	t.Spec.Image = image
	t.Spec.Shape = v1alpha1.MachineShape{CPU: resource.MustParse("500m"), Memory: *resource.NewQuantity(memory, resource.BinarySI)}
	s.stamp(t)
	s.templates[k] = t
}

func (s *sim) setPool(name string, change func(*v1alpha1.WarmPoolSpec)) {
	k := Key{"ns", name}
	p := &v1alpha1.WarmPool{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if old := s.pools[k]; old != nil {
		p = old.DeepCopy()
		p.Generation++
	}
	change(&p.Spec)
	s.stamp(p)
	s.pools[k] = p
}

// View delivers some of what the cache has not seen.
func (s *sim) View(context.Context) (*View, error) {
	deliver := len(s.pending)
	if s.lag && deliver > 0 {
		deliver = s.rng.IntN(deliver + 1)
	}
	if s.frozen {
		deliver = 0
	}
	for _, l := range s.pending[:deliver] {
		s.cached[l.Name] = l
	}
	s.pending = slices.Delete(s.pending, 0, deliver)
	v := &View{}
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		v.Nodes = append(v.Nodes, s.nodes[name].object)
	}
	v.Ledgers = slices.Collect(maps.Values(s.cached))
	v.Pools = slices.Collect(maps.Values(s.pools))
	v.Templates = slices.Collect(maps.Values(s.templates))
	v.Classes = slices.Collect(maps.Values(s.classes))
	return v, nil
}

func (s *sim) LiveLedgers(context.Context) ([]*v1alpha1.NodeLedger, error) {
	s.writes["live"]++
	return slices.Collect(maps.Values(s.ledgers)), nil
}

func (s *sim) LiveLedger(_ context.Context, name string) (*v1alpha1.NodeLedger, error) {
	s.writes["live"]++
	if l := s.ledgers[name]; l != nil {
		return l, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodeledgers"}, name)
}

func (s *sim) conflict(name string) error {
	return apierrors.NewConflict(schema.GroupResource{}, name, errors.New("there is another version"))
}

func (s *sim) Update(_ context.Context, o client.Object) error {
	if class, ok := o.(*nodev1.RuntimeClass); ok {
		s.writes["RuntimeClass"]++
		s.stamp(class)
		s.classes[class.Name] = class
		return nil
	}
	l := o.(*v1alpha1.NodeLedger)
	s.writes["NodeLedger"]++
	fault := s.rng.Float64()
	before, after := fault < s.faults/2, fault < s.faults
	if s.fault != nil {
		before, after = s.fault(l)
	}
	if before {
		return errSim
	}
	old := s.ledgers[l.Name]
	if old == nil || old.ResourceVersion != l.ResourceVersion {
		return s.conflict(l.Name)
	}
	next := l.DeepCopy()
	next.Status = old.Status
	if !equality.Semantic.DeepEqual(old.Spec, next.Spec) {
		next.Generation = old.Generation + 1
	}
	s.put(next)
	s.checkWrite(old, next)
	if after {
		return errSim // it was done, and the answer was lost
	}
	next.DeepCopyInto(l)
	return nil
}

func (s *sim) put(l *v1alpha1.NodeLedger) {
	s.stamp(l)
	s.ledgers[l.Name] = l
	s.pending = append(s.pending, l)
}

func (s *sim) UpdateStatus(_ context.Context, o client.Object) error {
	switch o := o.(type) {
	case *v1alpha1.WarmPool:
		s.writes["WarmPool"]++
		k := Key{o.Namespace, o.Name}
		if s.pools[k] == nil || s.pools[k].ResourceVersion != o.ResourceVersion {
			return s.conflict(o.Name)
		}
		s.stamp(o)
		s.pools[k] = o
	case *v1alpha1.SnapshotTemplate:
		s.writes["SnapshotTemplate"]++
		k := Key{o.Namespace, o.Name}
		if s.templates[k] == nil || s.templates[k].ResourceVersion != o.ResourceVersion {
			return s.conflict(o.Name)
		}
		s.stamp(o)
		s.templates[k] = o
	}
	return nil
}

func (s *sim) Create(_ context.Context, o client.Object) error {
	s.writes["RuntimeClass"]++
	class := o.(*nodev1.RuntimeClass)
	s.stamp(class)
	s.classes[class.Name] = class
	return nil
}

func (s *sim) Delete(_ context.Context, o client.Object) error {
	s.writes["RuntimeClass"]++
	delete(s.classes, o.GetName())
	return nil
}

func (s *sim) Event(o runtime.Object, _ bool, reason, message string) {
	s.events = append(s.events, fmt.Sprintf("%T %s: %s", o, reason, message))
}

// reachable tells whether the controller has to count the node.
func (s *sim) reachable(n *simNode) bool {
	return n.up || s.now.Sub(n.changed) < s.reconciler.opts.GracePeriod
}

// checkWrite is asked after each write of a ledger: an increase never brings a pool over
// its replicas and the surge.
func (s *sim) checkWrite(old, next *v1alpha1.NodeLedger) {
	s.t.Helper()
	before := map[Key]int32{}
	for _, t := range old.Spec.Targets {
		before[Key{t.Namespace, t.Pool}] = t.Replicas
	}
	var memory int64
	for _, t := range next.Spec.Targets {
		k := Key{t.Namespace, t.Pool}
		pool := s.pools[k]
		if pool == nil {
			continue
		}
		memory += int64(t.Replicas) * s.templates[Key{"ns", t.Template}].Spec.Shape.Memory.Value()
		if pool.Spec.PerNode != nil && pool.Spec.PerNode.Max != nil && t.Replicas > *pool.Spec.PerNode.Max {
			s.t.Errorf("%v: pool %s has %d on %s, more than perNode.max", s.now, k, t.Replicas, next.Name)
		}
		if t.Replicas <= before[k] {
			continue
		}
		sum, surge := s.sum(k)
		if sum > int(*pool.Spec.Replicas)+surge {
			s.t.Errorf("%v: pool %s has %d targets, %d replicas and a surge of %d", s.now, k, sum, *pool.Spec.Replicas, surge)
		}
	}
	if n := s.nodes[next.Name]; n.lie == nil && memory > next.Status.Capacity.Memory.Value() {
		s.t.Errorf("%v: node %s is to keep %d GiB and has %s", s.now, next.Name, memory/gib, next.Status.Capacity.Memory.String())
	}
}

// sum is the number of a pool's targets on reachable nodes, and the surge that is allowed.
func (s *sim) sum(k Key) (sum, surge int) {
	for name, l := range s.ledgers {
		n := s.nodes[name]
		if !s.reachable(n) {
			continue
		}
		for _, t := range l.Spec.Targets {
			if (Key{t.Namespace, t.Pool}) == k {
				sum += int(t.Replicas)
			}
		}
		if !n.returned.IsZero() && s.now.Sub(n.returned) <= s.reconciler.opts.ReturnPeriod+10*time.Second {
			surge += n.vanished[k]
		}
	}
	return sum, surge
}

// step lets a second pass: nodes work, then the controller does until it is content.
func (s *sim) step() {
	s.t.Helper()
	s.now = s.now.Add(time.Second)
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		if n := s.nodes[name]; n.up {
			s.work(n, s.ledgers[name])
		}
	}
	for range 20 {
		next, err := s.reconciler.Pass(s.t.Context())
		if err != nil && !errors.Is(err, errSim) {
			s.t.Fatalf("%v: %v", s.now, err)
		}
		if err == nil && next > staleDelay {
			return
		}
	}
}

// settle steps until every pool is ready, and returns how many seconds it took.
func (s *sim) settle(limit int, except ...string) int {
	s.t.Helper()
	for i := range limit {
		s.step()
		if s.settled(except) {
			return i + 1
		}
	}
	for k, p := range s.pools {
		if !slices.Contains(except, k.Name) {
			for _, c := range p.Status.Conditions {
				if c.Type == v1alpha1.ConditionReady && c.Status != metav1.ConditionTrue {
					s.t.Logf("%s: %s %s", k, c.Reason, c.Message)
				}
			}
		}
	}
	s.t.Fatalf("not settled after %d seconds", limit)
	return 0
}

func (s *sim) settled(except []string) bool {
	for k, p := range s.pools {
		if slices.Contains(except, k.Name) {
			continue
		}
		sum, _ := s.sum(k)
		if sum != int(*p.Spec.Replicas) || p.Status.Ready != *p.Spec.Replicas || p.Status.Outdated != 0 || p.Status.ObservedGeneration != p.Generation {
			return false
		}
		for _, c := range p.Status.Conditions {
			if c.Type == v1alpha1.ConditionReady && c.Status != metav1.ConditionTrue || c.Type == v1alpha1.ConditionProgressing && c.Status != metav1.ConditionFalse {
				return false
			}
		}
	}
	return true
}

// targets are a snapshot of all targets, as "node pool" -> replicas.
func (s *sim) targets() map[string]int {
	all := map[string]int{}
	for name, l := range s.ledgers {
		for _, t := range l.Spec.Targets {
			all[name+" "+t.Pool] = int(t.Replicas)
		}
	}
	return all
}

// spent returns the writes since the last call.
func (s *sim) spent() map[string]int {
	spent := maps.Clone(s.writes)
	clear(s.writes)
	return spent
}
