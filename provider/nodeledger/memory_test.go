// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

const node = "node-a"

// memory is an API server in memory, with what matters here of a real one: versions,
// generations, conflicts, watches that break, and a status of its own.
type memory struct {
	mu        sync.Mutex
	version   int
	ledger    *v1alpha1.NodeLedger
	templates map[string]*v1alpha1.SnapshotTemplate
	watches   map[*watch.FakeWatcher]string // by resource
	// fault, when set, is asked before each call: "list nodeledgers", "create", "update", "get", "node".
	fault func(call string) error
	// meddle, when set, changes the ledger just before a status is written.
	meddle func(l *v1alpha1.NodeLedger)
	writes []time.Time
	calls  map[string]int
}

func newMemory() *memory {
	return &memory{templates: map[string]*v1alpha1.SnapshotTemplate{}, watches: map[*watch.FakeWatcher]string{}, calls: map[string]int{}}
}

func (m *memory) ask(call string) error {
	m.calls[call]++
	if m.fault != nil {
		return m.fault(call)
	}
	return nil
}

func (m *memory) setFault(f func(call string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

func (m *memory) stamp(o metav1.Object) {
	m.version++
	o.SetResourceVersion(fmt.Sprint(m.version))
}

// tell sends an event to the watches of a resource; m.mu is held.
func (m *memory) tell(resource string, kind watch.EventType, o runtime.Object) {
	for w, r := range m.watches {
		if r == resource {
			w.Action(kind, o.DeepCopyObject())
		}
	}
}

// breakWatches ends all watches.
func (m *memory) breakWatches() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.watches {
		w.Stop()
		delete(m.watches, w)
	}
}

// setSpec writes the specification, as the controller does.
func (m *memory) setSpec(spec *v1alpha1.NodeLedgerSpec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.write(spec)
}

func (m *memory) write(spec *v1alpha1.NodeLedgerSpec) {
	l := m.ledger.DeepCopy()
	l.Spec = *spec.DeepCopy()
	l.Generation++
	m.stamp(l)
	m.ledger = l
	m.tell("nodeledgers", watch.Modified, l)
}

func (m *memory) remove() {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.ledger
	m.ledger = nil
	m.tell("nodeledgers", watch.Deleted, l)
}

func (m *memory) putTemplate(t *v1alpha1.SnapshotTemplate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := t.Namespace + "/" + t.Name
	kind := watch.Added
	if m.templates[key] != nil {
		kind = watch.Modified
	}
	t = t.DeepCopy()
	m.stamp(t)
	m.templates[key] = t
	m.tell("snapshottemplates", kind, t)
}

func (m *memory) removeTemplate(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.templates[key]
	delete(m.templates, key)
	m.tell("snapshottemplates", watch.Deleted, t)
}

func (m *memory) get() *v1alpha1.NodeLedger {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.DeepCopy()
}

func (m *memory) statusWrites() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.writes)
}

// lister is a ListerWatcher of plain lists.
type lister struct {
	m        *memory
	resource string
}

func (l lister) IsWatchListSemanticsUnSupported() bool { return true }

func (l lister) List(metav1.ListOptions) (runtime.Object, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if err := l.m.ask("list " + l.resource); err != nil {
		return nil, err
	}
	meta := metav1.ListMeta{ResourceVersion: fmt.Sprint(l.m.version)}
	if l.resource == "nodeledgers" {
		list := &v1alpha1.NodeLedgerList{ListMeta: meta}
		if l.m.ledger != nil {
			list.Items = append(list.Items, *l.m.ledger.DeepCopy())
		}
		return list, nil
	}
	list := &v1alpha1.SnapshotTemplateList{ListMeta: meta}
	for _, t := range l.m.templates {
		list.Items = append(list.Items, *t.DeepCopy())
	}
	return list, nil
}

func (l lister) Watch(o metav1.ListOptions) (watch.Interface, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if err := l.m.ask("watch " + l.resource); err != nil {
		return nil, err
	}
	if o.ResourceVersion != fmt.Sprint(l.m.version) { // keeps no history
		return nil, apierrors.NewResourceExpired("too old")
	}
	w := watch.NewFakeWithChanSize(1000, false)
	l.m.watches[w] = l.resource
	return w, nil
}

func (m *memory) Ledger(string) cache.ListerWatcher { return lister{m, "nodeledgers"} }
func (m *memory) Templates() cache.ListerWatcher    { return lister{m, "snapshottemplates"} }

var resourceLedgers = schema.GroupResource{Group: v1alpha1.GroupVersion.Group, Resource: "nodeledgers"}

func (m *memory) GetLedger(context.Context, string) (*v1alpha1.NodeLedger, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("get"); err != nil {
		return nil, err
	}
	if m.ledger == nil {
		return nil, apierrors.NewNotFound(resourceLedgers, node)
	}
	return m.ledger.DeepCopy(), nil
}

func (m *memory) CreateLedger(_ context.Context, l *v1alpha1.NodeLedger) (*v1alpha1.NodeLedger, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("create"); err != nil {
		return nil, err
	}
	if m.ledger != nil {
		return nil, apierrors.NewAlreadyExists(resourceLedgers, node)
	}
	l = l.DeepCopy()
	l.Generation, l.UID, l.Status = 1, types.UID(fmt.Sprintf("uid-%d", m.version)), v1alpha1.NodeLedgerStatus{}
	m.stamp(l)
	m.ledger = l
	m.tell("nodeledgers", watch.Added, l)
	return l.DeepCopy(), nil
}

func (m *memory) UpdateLedgerStatus(_ context.Context, l *v1alpha1.NodeLedger) (*v1alpha1.NodeLedger, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ask("update"); err != nil {
		return nil, err
	}
	if m.ledger == nil {
		return nil, apierrors.NewNotFound(resourceLedgers, node)
	}
	if m.meddle != nil {
		m.meddle(m.ledger)
	}
	if l.ResourceVersion != m.ledger.ResourceVersion {
		return nil, apierrors.NewConflict(resourceLedgers, node, errors.New("changed"))
	}
	have := m.ledger.DeepCopy()
	have.Status = *l.Status.DeepCopy()
	m.stamp(have)
	m.ledger = have
	m.writes = append(m.writes, time.Now())
	m.tell("nodeledgers", watch.Modified, have)
	return have.DeepCopy(), nil
}

func (m *memory) NodeUID(context.Context, string) (types.UID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return "node-uid", m.ask("node")
}

// supply records targets and says what it is told to.
type supply struct {
	mu      sync.Mutex
	targets []warmpool.Target
	sets    int
	status  warmpool.Status
	changes chan struct{}
}

func newSupply() *supply { return &supply{changes: make(chan struct{}, 1)} }

func (s *supply) SetTargets(t []warmpool.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets = t
	s.sets++
}

func (s *supply) Status() warmpool.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *supply) Changes() <-chan struct{} { return s.changes }

func (s *supply) change(f func(*warmpool.Status)) {
	s.mu.Lock()
	f(&s.status)
	s.mu.Unlock()
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

func (s *supply) pools() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, t := range s.targets {
		names = append(names, fmt.Sprintf("%s=%d", t.Pool, t.Desired))
	}
	return names
}
