// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	kuberecord "k8s.io/client-go/tools/record"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
	"github.com/vk-firkin/vk-firkin/test/podhistory"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

const nodeName = "node-a"

// world is what is outside of the node process: it outlives it.
type world struct {
	t      testing.TB
	client *fake.Clientset
	state  string
	supply *fakeSupply
	images *fakeImages
	events *eventLog

	api     sync.Mutex // one change of a pod at a time
	changes int        // guarded by api
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		t: t, client: fake.NewClientset(), state: t.TempDir(),
		supply: &fakeSupply{t: t, machines: map[string]*fakeMachine{}, quarantined: map[string]bool{}, unwanted: map[string]bool{}},
		images: &fakeImages{config: map[string]provider.ImageConfig{}, pins: map[types.UID][]string{}},
		events: &eventLog{},
	}
	// What the fake clientset leaves out of a real API server: deletion with grace, and
	// a status subresource that changes nothing but the status.
	w.client.PrependReactor("delete", "pods", w.deletePod)
	w.client.PrependReactor("update", "pods", w.updateStatus)
	w.client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: "token-of-" + a.GetNamespace(), ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour))}}, nil
	})
	t.Cleanup(w.supply.close)
	return w
}

func (w *world) updateStatus(a clienttesting.Action) (bool, runtime.Object, error) {
	if a.GetSubresource() != "status" {
		return false, nil, nil
	}
	w.api.Lock()
	defer w.api.Unlock()
	pod := a.(clienttesting.UpdateActionImpl).Object.(*corev1.Pod)
	obj, err := w.client.Tracker().Get(a.GetResource(), a.GetNamespace(), pod.Name)
	if err != nil {
		return true, nil, err
	}
	have := obj.(*corev1.Pod).DeepCopy()
	if have.UID != pod.UID || have.ResourceVersion != pod.ResourceVersion {
		return true, nil, apierrors.NewConflict(corev1.Resource("pods"), pod.Name, errors.New("uid or version"))
	}
	before := have.DeepCopy()
	have.Status = pod.Status
	for _, fault := range podhistory.Faults(before, have) {
		w.t.Error(fault)
	}
	w.version(have)
	return true, have, w.client.Tracker().Update(a.GetResource(), have, have.Namespace)
}

// version gives a changed pod its version; w.api is held.
func (w *world) version(p *corev1.Pod) {
	w.changes++
	p.ResourceVersion = fmt.Sprintf("test-%d", w.changes)
}

func (w *world) deletePod(a clienttesting.Action) (bool, runtime.Object, error) {
	w.api.Lock()
	defer w.api.Unlock()
	d := a.(clienttesting.DeleteActionImpl)
	obj, err := w.client.Tracker().Get(a.GetResource(), a.GetNamespace(), d.Name)
	if err != nil {
		return true, nil, err
	}
	pod := obj.(*corev1.Pod).DeepCopy()
	if p := d.DeleteOptions.Preconditions; p != nil && p.UID != nil && *p.UID != pod.UID {
		return true, nil, apierrors.NewConflict(corev1.Resource("pods"), d.Name, errors.New("uid"))
	}
	if g := d.DeleteOptions.GracePeriodSeconds; g != nil && *g == 0 {
		return false, nil, nil
	}
	grace := int64(30)
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	if g := d.DeleteOptions.GracePeriodSeconds; g != nil {
		grace = *g
	}
	at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &grace
	pod.Generation++
	w.version(pod)
	return true, nil, w.client.Tracker().Update(a.GetResource(), pod, pod.Namespace)
}

// process is one life of the node process.
type process struct {
	w    *world
	p    *provider.Provider
	kill context.CancelFunc
	done chan error
	up   chan struct{} // closed when it is ready
}

// run starts the node process and waits until it is ready.
func (w *world) run(change ...func(*provider.Options)) *process {
	w.t.Helper()
	pr := w.begin(change...)
	select {
	case <-pr.up:
	case err := <-pr.done:
		w.t.Fatalf("provider ended: %v", err)
	case <-time.After(10 * time.Second):
		w.t.Fatal("provider does not get ready")
	}
	return pr
}

// begin starts the node process.
func (w *world) begin(change ...func(*provider.Options)) *process {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("FIRKIN_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var running atomic.Pointer[provider.Provider]
	opts := provider.Options{
		Client: w.client, NodeName: nodeName, NodeIP: "192.0.2.1", StateDir: w.state,
		Supply: w.supply, Images: w.images, Logs: podlog.New(filepath.Join(w.state, "pods"), podlog.Options{SyncInterval: 10 * time.Millisecond,
			FirstOutput: func(ref provider.ContainerRef, at time.Time) { running.Load().FirstOutput(ref, at) }}),
		Node: provider.NodeOptions{Arch: "amd64", HostOS: "linux", Driver: "fake", KubeletPort: 10250,
			Capacity: provider.Capacity(4000, 4<<30, 100<<30, 20), Allocatable: provider.Capacity(4000, 4<<30, 100<<30, 20)},
		DNS:            provider.DNS{Machine: []string{"10.0.2.3"}},
		MachineAddress: "10.0.2.15", StuckTimeout: 5 * time.Second,
		Recorder: w.events, Logger: log,
	}
	for _, c := range change {
		c(&opts)
	}
	p, err := provider.New(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	running.Store(p)
	ctx, cancel := context.WithCancel(context.Background())
	pr := &process{w: w, p: p, kill: cancel, done: make(chan error, 1), up: make(chan struct{})}
	go func() { pr.done <- p.Run(ctx, func() { close(pr.up) }) }()
	w.t.Cleanup(pr.stop)
	return pr
}

// stop ends the process and waits for it; machines go on.
func (p *process) stop() {
	p.kill()
	select {
	case err := <-p.done:
		if err != nil {
			p.w.t.Errorf("provider ended: %v", err)
		}
		p.done <- nil
	case <-time.After(20 * time.Second):
		p.w.t.Fatal("provider does not stop")
	}
}

// pod makes a pod of one container per command.
func pod(name string, commands ...[]string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.Now()},
		Spec:       corev1.PodSpec{NodeName: nodeName, RestartPolicy: corev1.RestartPolicyNever},
		Status: corev1.PodStatus{Phase: corev1.PodPending, QOSClass: corev1.PodQOSBestEffort,
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}},
	}
	for i, c := range commands {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", i), Image: "example.test/image", ImagePullPolicy: corev1.PullIfNotPresent, Command: c})
	}
	return p
}

var uids struct {
	sync.Mutex
	n int
}

func (w *world) create(p *corev1.Pod) *corev1.Pod {
	w.t.Helper()
	uids.Lock()
	uids.n++
	p.UID = types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", uids.n))
	uids.Unlock()
	got, err := w.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) delete(name string, grace *int64) {
	w.t.Helper()
	if err := w.client.CoreV1().Pods("default").Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: grace}); err != nil {
		w.t.Fatal(err)
	}
}

// await waits until the pod in the API satisfies a condition.
func (w *world) await(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	w.t.Helper()
	var last *corev1.Pod
	w.eventually("pod "+name+" "+what, func() bool {
		p, err := w.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return false
		}
		last = p
		return ok(p)
	}, func() string {
		if last == nil {
			return "no pod"
		}
		return fmt.Sprintf("%+v", last.Status)
	})
	return last
}

func (w *world) awaitPhase(name string, phase corev1.PodPhase) *corev1.Pod {
	w.t.Helper()
	return w.await(name, "is "+string(phase), func(p *corev1.Pod) bool { return p.Status.Phase == phase })
}

func (w *world) awaitGone(name string) {
	w.t.Helper()
	w.eventually("pod "+name+" is gone", func() bool {
		_, err := w.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}, nil)
}

// awaitNothing waits until nothing of any pod is left on the node.
func (w *world) awaitNothing() {
	w.t.Helper()
	left := ""
	w.eventually("nothing is left", func() bool {
		entries, _ := os.ReadDir(filepath.Join(w.state, "pods"))
		left = fmt.Sprintf("%d pod directories, machines %v, pins %v", len(entries), w.supply.ids(), w.images.pinned())
		return len(entries) == 0 && len(w.supply.ids()) == 0 && len(w.images.pinned()) == 0
	}, func() string { return left })
}

type errKill struct{}

func (errKill) Error() string { return "killed" }

const patience = 15 * time.Second

func (w *world) eventually(what string, ok func() bool, detail func() string) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			text := ""
			if detail != nil {
				text = ": " + detail()
			}
			w.t.Fatalf("not after %s: %s%s\nevents:\n%s", patience, what, text, w.events)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// eventLog records events.
type eventLog struct {
	kuberecord.EventRecorder
	mu   sync.Mutex
	list []string
}

func (e *eventLog) Event(obj runtime.Object, kind, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	name := ""
	switch o := obj.(type) {
	case *corev1.Pod:
		name = o.Name
	case *corev1.ObjectReference:
		name = o.Name
	}
	e.list = append(e.list, fmt.Sprintf("%s %s %s: %s", name, kind, reason, message))
}

func (e *eventLog) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.list, "\n")
}

func (e *eventLog) has(parts ...string) bool {
	for _, line := range strings.Split(e.String(), "\n") {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}

// fakeSupply makes machines of simulated guests. The machines outlive its leases.
type fakeSupply struct {
	t testing.TB

	mu       sync.Mutex
	machines map[string]*fakeMachine
	acquired int
	looks    int
	mute     bool // machines cannot be asked
	requests []provider.MachineRequest
	// quarantined are kept; of those, unwanted may go.
	quarantined, unwanted map[string]bool
	// cut: nobody reaches a guest.
	cut func() bool
	// fault, when set, is asked before each step: "acquire", "acquired", "adopt", "release", "reap".
	fault func(ctx context.Context, op string) error
}

type fakeMachine struct {
	images []warmpool.SlotImage
	agent  *guesttest.Agent
	gone   chan struct{}
	once   sync.Once
	exit   vm.Exit
}

func (m *fakeMachine) end(reason vm.ExitReason) {
	m.once.Do(func() {
		m.exit = vm.Exit{Reason: reason, Time: time.Now(), Detail: "test"}
		m.agent.Die()
		close(m.gone)
	})
}

func (m *fakeMachine) over() bool {
	select {
	case <-m.gone:
		return true
	default:
		return false
	}
}

func (s *fakeSupply) ask(ctx context.Context, op string) error {
	s.mu.Lock()
	f := s.fault
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx, op)
}

func (s *fakeSupply) setFault(f func(ctx context.Context, op string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *fakeSupply) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for id := range s.machines {
		out = append(out, id)
	}
	sort.Strings(out)
	return out
}

func (s *fakeSupply) Acquire(ctx context.Context, r provider.MachineRequest) (provider.Lease, error) {
	if err := s.ask(ctx, "acquire"); err != nil {
		return nil, err
	}
	m := &fakeMachine{agent: guesttest.New(guesttest.Options{Dir: s.t.TempDir()}), gone: make(chan struct{})}
	s.mu.Lock()
	if s.machines[r.MachineID] != nil {
		s.mu.Unlock()
		s.t.Errorf("machine %s is made twice", r.MachineID)
		return nil, vm.ErrAlreadyExists
	}
	s.machines[r.MachineID] = m
	s.acquired++
	s.requests = append(s.requests, r)
	s.mu.Unlock()
	if err := s.ask(ctx, "acquired"); errors.Is(err, errKilled) {
		return nil, err
	} else if err != nil {
		return nil, errors.Join(err, s.Reap(context.Background(), r.MachineID))
	}
	path := cmp.Or(r.Path, "restore")
	if r.Template != nil {
		if path = r.Path; path == "" {
			path = "warm"
		}
		if err := s.prepare(ctx, r, m); err != nil {
			return nil, errors.Join(err, s.Reap(context.Background(), r.MachineID))
		}
	}
	return s.lease(r.MachineID, path, m), nil
}

func (s *fakeSupply) Adopt(ctx context.Context, r provider.MachineRequest) (provider.Lease, error) {
	if err := s.ask(ctx, "adopt"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	m, kept := s.machines[r.MachineID], s.quarantined[r.MachineID]
	s.mu.Unlock()
	if m == nil {
		return nil, vm.ErrNotFound
	}
	if kept {
		return nil, fmt.Errorf("test: %w", warmpool.ErrQuarantined)
	}
	return s.lease(r.MachineID, "adopt", m), nil
}

// Reconcile finds what the pods' records do not speak of, without the rest of what a supply
// knows: that is warmpool's to test.
func (s *fakeSupply) Reconcile(ctx context.Context, claims []provider.MachineClaim) ([]warmpool.Finding, error) {
	if err := s.ask(ctx, "reconcile"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	var found []warmpool.Finding
	for id, m := range s.machines {
		f := warmpool.Finding{Machine: id, Request: id, Verdict: warmpool.VerdictCleanup, Reason: "test"}
		i := slices.IndexFunc(claims, func(c provider.MachineClaim) bool { return c.MachineID == id })
		switch {
		case i < 0 && !strings.HasPrefix(id, provider.MachinePrefix) && !strings.HasPrefix(id, "warm-"):
			continue
		case i < 0:
		case claims[i].Unclear == "":
			f.Verdict = warmpool.VerdictRecover
		case s.mute:
			f.Verdict = warmpool.VerdictRetry
		case s.unwanted[id] || m.over():
		default:
			f.Verdict, f.New = warmpool.VerdictQuarantine, !s.quarantined[id]
		}
		s.quarantined[id] = f.Verdict == warmpool.VerdictQuarantine
		found = append(found, f)
	}
	return found, nil
}

func (s *fakeSupply) Reap(ctx context.Context, id string) error {
	if err := s.ask(ctx, "reap"); err != nil {
		return err
	}
	s.mu.Lock()
	m := s.machines[id]
	delete(s.machines, id)
	delete(s.quarantined, id)
	s.mu.Unlock()
	if m != nil {
		m.end(vm.ExitStopped)
		return m.agent.Close()
	}
	return nil
}

func (s *fakeSupply) ShapeFor(n provider.Need) (vm.Shape, provider.Budget, error) {
	return vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, provider.Budget{MilliCPU: 100, MemoryBytes: 256 << 20}, nil
}

func (s *fakeSupply) ImageSlots() int { return 4 }

func (s *fakeSupply) close() {
	for _, id := range s.ids() {
		s.setFault(nil)
		if err := s.Reap(context.Background(), id); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *fakeSupply) lease(id, path string, m *fakeMachine) *fakeLease {
	return &fakeLease{s: s, id: id, path: path, m: m, turn: make(chan struct{}, 1)}
}

type fakeLease struct {
	s        *fakeSupply
	id, path string
	m        *fakeMachine

	turn   chan struct{} // holds one while somebody has client
	client *guest.Client
}

func (l *fakeLease) MachineID() string { return l.id }
func (l *fakeLease) Path() string      { return l.path }
func (l *fakeLease) Timings() provider.Timings {
	return provider.Timings{Restore: time.Millisecond, Agent: time.Millisecond}
}
func (l *fakeLease) Images() []warmpool.SlotImage { return l.m.images }
func (l *fakeLease) Notices() []provider.Notice   { return nil }

func (l *fakeLease) Guest(ctx context.Context) (*provider.Guest, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l.s.cut != nil && l.s.cut() {
		return nil, errKilled
	}
	if l.client == nil || l.client.Err() != nil {
		c, err := l.m.agent.Dial(ctx, guest.Options{DialTimeout: 300 * time.Millisecond, IdleTimeout: 300 * time.Millisecond, PingTimeout: 300 * time.Millisecond})
		if err != nil {
			return nil, err
		}
		l.client = c
	}
	c := l.client
	return &provider.Guest{Agent: c.Agent, Containers: c.Containers, Volumes: c.Volumes, Process: c.Process, Done: c.Done()}, nil
}

func (l *fakeLease) Wait(ctx context.Context) (vm.Exit, error) {
	select {
	case <-l.m.gone:
		return l.m.exit, nil
	case <-ctx.Done():
		return vm.Exit{}, ctx.Err()
	}
}

func (l *fakeLease) Release(ctx context.Context, _ time.Duration) error {
	if err := l.s.ask(ctx, "release"); err != nil {
		return err
	}
	l.turn <- struct{}{}
	if l.client != nil {
		_ = l.client.Close()
	}
	<-l.turn
	return l.s.Reap(ctx, l.id)
}
