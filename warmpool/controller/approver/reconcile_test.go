// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// world is a cluster with a reconciler.
type world struct {
	*testing.T
	client.Client
	events *record.FakeRecorder
	r      *reconciler
	asked  int
}

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil { // no more than the controller has
		t.Fatal(err)
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&corev1.Node{}).
		WithInterceptorFuncs(interceptor.Funcs{
			// As the API server has it: this subresource writes conditions.
			SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, o client.Object, _ ...client.SubResourceUpdateOption) error {
				if sub != "approval" {
					return fmt.Errorf("subresource %s", sub)
				}
				return c.Status().Update(ctx, o)
			},
		}).Build()
	events := record.NewFakeRecorder(100)
	return &world{T: t, Client: c, events: events, r: newReconciler(c, c, Options{Namespace: "firkin", Events: events, Logger: slog.New(slog.DiscardHandler)})}
}

// decide makes a request and has it decided about.
func (w *world) decide(q request) *certificatesv1.CertificateSigningRequest {
	w.Helper()
	csr := q.object(w.T)
	w.asked++
	csr.Name, csr.UID, csr.CreationTimestamp = fmt.Sprint("csr-", w.asked), types.UID(fmt.Sprint(w.asked)), metav1.Now()
	if err := w.Create(w.Context(), csr); err != nil {
		w.Fatal(err)
	}
	return w.again(csr)
}

func (w *world) again(csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
	w.Helper()
	if _, err := w.r.Reconcile(w.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(csr)}); err != nil {
		w.Fatal(err)
	}
	after := &certificatesv1.CertificateSigningRequest{}
	if err := w.Get(w.Context(), client.ObjectKeyFromObject(csr), after); err != nil {
		w.Fatal(err)
	}
	return after
}

// approve is what a person does, and what becomes of it.
func (w *world) approve(csr *certificatesv1.CertificateSigningRequest, at time.Time) {
	w.Helper()
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "KubectlApprove",
		LastUpdateTime: metav1.NewTime(now), LastTransitionTime: metav1.NewTime(at), // by the person's clock, and by the API server's
	}}
	if err := w.SubResource("approval").Update(w.Context(), csr); err != nil {
		w.Fatal(err)
	}
	w.again(csr)
}

// is fails unless a request has this condition, empty for none, for a reason with this text.
func (w *world) is(csr *certificatesv1.CertificateSigningRequest, want certificatesv1.RequestConditionType, says string) {
	w.Helper()
	var got certificatesv1.CertificateSigningRequestCondition
	if len(csr.Status.Conditions) > 0 {
		got = csr.Status.Conditions[0]
	}
	if got.Type != want || !strings.Contains(got.Message, says) {
		w.Errorf("%s is %q %q, want %q with %q", csr.Name, got.Type, got.Message, want, says)
	}
}

func (w *world) event() string {
	select {
	case e := <-w.events.Events:
		return e
	default:
		return ""
	}
}

func (w *world) joined() map[string]Joined {
	w.Helper()
	m, err := w.r.register.read(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return readJoined(m)
}

// Who has a token joins as a name that was never anybody's. One that was, is given to nobody
// else: not before its Node is there, nor after it is gone; a person may decide otherwise.
func TestANameIsGivenOnce(t *testing.T) {
	w := newWorld(t)
	first, second := joining(), joining()
	first.key, second.key = key(t), key(t)
	w.is(w.decide(first), certificatesv1.CertificateApproved, "joins")
	if e := w.event(); e != "" {
		t.Errorf("event %q", e)
	}
	w.is(w.decide(first), certificatesv1.CertificateApproved, "joins") // its command was repeated

	w.r = newReconciler(w, w, Options{Namespace: "firkin", Events: w.events, Logger: slog.New(slog.DiscardHandler)}) // as after a restart
	late := w.decide(second)
	w.is(late, "", "")
	if e := w.event(); !strings.Contains(e, waitsReason) || !strings.Contains(e, "kubectl certificate approve "+late.Name) {
		t.Errorf("event %q", e)
	}
	w.is(w.again(late), "", "")
	if e := w.event(); e != "" {
		t.Errorf("the same is told again: %q", e)
	}

	// A person lets the other host have the name: from then on it is that one's.
	w.approve(late, time.Now())
	w.is(w.decide(second), certificatesv1.CertificateApproved, "joins")
	w.is(w.decide(first), "", "")
}

// A node that was stolen gets no certificate for what the API server is reached by, whatever it says
// that its addresses are; nor does who has a token get one for its name.
func TestServersAreReserved(t *testing.T) {
	info := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: "cluster-info"}, Data: map[string]string{
		"kubeconfig": "apiVersion: v1\nkind: Config\nclusters:\n- name: a\n  cluster: {server: 'https://203.0.113.5:6443'}\n- name: b\n  cluster: {server: 'https://Api.corp.example:6443', tls-server-name: front.corp.example}\n",
	}}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"203.0.113.6"}}, {Addresses: []string{"203.0.113.7"}}}}
	own := service("kubernetes", "10.96.0.1")
	addresses := []string{"192.0.2.10", "203.0.113.5", "203.0.113.6", "203.0.113.7", "10.96.0.1"}
	stolen := node("mac-1", "firkin://v1", addresses...)
	w := newWorld(t, info, slice, &own, &stolen)
	for _, address := range addresses[1:] {
		q := serving()
		q.ips = []string{"192.0.2.10", address}
		w.is(w.decide(q), certificatesv1.CertificateDenied, address)
	}
	w.is(w.decide(serving()), certificatesv1.CertificateApproved, "own name")
	if got := w.joined()["mac-1"]; !slices.Equal(got.Addresses, []netip.Addr{netip.MustParseAddr("192.0.2.10")}) || got.Key != "" {
		t.Errorf("remembered %+v", got)
	}
	for _, name := range []string{"api.corp.example", "front.corp.example"} {
		q := joining()
		q.subject.CommonName = userPrefix + name
		w.is(w.decide(q), certificatesv1.CertificateDenied, "cannot be a node's name")
	}
	// What says it and cannot be read is no permission.
	info.Data["kubeconfig"] = "{"
	if err := w.Update(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	csr := serving().object(t)
	csr.Name = "unread"
	if err := w.Create(t.Context(), csr); err != nil {
		t.Fatal(err)
	}
	if _, err := w.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(csr)}); err == nil || !strings.Contains(err.Error(), "cluster-info") {
		t.Errorf("error %v", err)
	}
}

// An address that another node claims keeps nobody from the renewal of what it has.
func TestClaimsOfOthersDenyNothing(t *testing.T) {
	owner := node("mac-1", "firkin://v1", "192.0.2.10")
	w := newWorld(t, &owner)
	w.is(w.decide(serving()), certificatesv1.CertificateApproved, "")
	thief := node("thief", "firkin://v1", "192.0.2.10")
	if err := w.Create(t.Context(), &thief); err != nil {
		t.Fatal(err)
	}
	w.is(w.decide(serving()), certificatesv1.CertificateApproved, "")
	q := serving()
	q.user, q.subject.CommonName, q.dns = "system:node:thief", "system:node:thief", []string{"thief"}
	w.is(w.decide(q), "", "")
	if e := w.event(); !strings.Contains(e, "also an address of Node mac-1") {
		t.Errorf("event %q", e)
	}
}

// A person who gives a disputed address to a node gives it to this one alone, and is not asked again: neither
// when the node renews its certificate, nor when it has a newer request than the one that was approved.
func TestAnAddressIsGivenByHand(t *testing.T) {
	first, second := node("mac-1", "firkin://v1", "192.0.2.10"), node("mac-2", "firkin://v1", "192.0.2.10", "127.0.0.1")
	w := newWorld(t, &first)
	w.is(w.decide(serving()), certificatesv1.CertificateApproved, "")
	if err := w.Create(t.Context(), &second); err != nil {
		t.Fatal(err)
	}
	other := serving()
	other.user, other.subject.CommonName, other.dns, other.ips = "system:node:mac-2", "system:node:mac-2", []string{"mac-2"}, []string{"192.0.2.10", "127.0.0.1"}
	stale := w.decide(other)
	w.is(stale, "", "")
	newer := w.decide(other)
	w.is(newer, "", "")
	w.event()

	w.approve(stale, time.Now())
	w.is(w.again(newer), certificatesv1.CertificateApproved, "")
	w.is(w.decide(other), certificatesv1.CertificateApproved, "")
	w.is(w.decide(serving()), "", "")
	if got := w.joined(); len(got["mac-1"].Addresses) > 0 || len(got["mac-2"].Addresses) != 2 {
		t.Errorf("remembered %+v", got)
	}
}

// refusing is an API server that refuses to read one object, or one kind.
type refusing struct {
	client.Reader
	what string
}

func (r refusing) refuse(what string) error {
	if what != r.what {
		return nil
	}
	return apierrors.NewForbidden(corev1.Resource("x"), what, nil)
}

func (r refusing) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	return errors.Join(r.refuse(key.String()), r.Reader.Get(ctx, key, o, options...))
}

func (r refusing) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	return errors.Join(r.refuse(fmt.Sprintf("%T", list)), r.Reader.List(ctx, list, options...))
}

// A right that is missing is named, with where it is to be had from.
func TestRefused(t *testing.T) {
	for what, says := range map[string]string{
		"*v1.ServiceList":          "let the controller list services",
		"kube-public/cluster-info": "let the controller get *v1.ConfigMap kube-public/cluster-info",
		"default/kubernetes":       "let the controller get *v1.EndpointSlice default/kubernetes",
		"firkin/" + JoinedName:     "ConfigMap vk-firkin-joined of namespace firkin, and let the controller get and update it",
	} {
		w := newWorld(t)
		w.r = newReconciler(w, refusing{w, what}, Options{Namespace: "firkin", Events: w.events, Logger: slog.New(slog.DiscardHandler)})
		csr := joining().object(t)
		if err := w.Create(t.Context(), csr); err != nil {
			t.Fatal(err)
		}
		_, err := w.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(csr)})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "crds/rbac.yaml") {
			t.Errorf("%s: error %v, want it to say %q", what, err, says)
		}
	}
}

// After a restart all that a person has approved is looked at again: what was decided last stays, in whatever order.
func TestWhatWasApprovedLastStays(t *testing.T) {
	nodes := []client.Object{}
	for _, name := range []string{"mac-1", "mac-2"} {
		n := node(name, "firkin://v1", "192.0.2.10")
		nodes = append(nodes, &n)
	}
	q, second := serving(), joining()
	q.user, q.subject.CommonName, q.dns, second.key = "system:node:mac-2", "system:node:mac-2", []string{"mac-2"}, key(t)
	start := time.Now().Add(-time.Hour)
	for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 0, 3, 2, 0, 1, 2, 3}} {
		w := newWorld(t, nodes...)
		all := []*certificatesv1.CertificateSigningRequest{}
		for i, r := range []request{joining(), second, serving(), q} { // the second and the last were approved later
			csr := r.object(t)
			csr.Name = fmt.Sprint("old-", i)
			if err := w.Create(t.Context(), csr); err != nil {
				t.Fatal(err)
			}
			all = append(all, csr)
		}
		for _, i := range order {
			w.approve(all[i], start.Add(time.Duration(i)*time.Minute))
		}
		w.is(w.decide(second), certificatesv1.CertificateApproved, "joins")
		w.is(w.decide(q), certificatesv1.CertificateApproved, "")
		w.is(w.decide(serving()), "", "")
		if got := w.joined(); got["mac-9"].Since.Sub(start).Round(time.Minute) != time.Minute || len(got["mac-1"].Addresses) > 0 {
			t.Errorf("in order %v: remembered %+v", order, got)
		}
	}
}

// A request that waits is looked at less and less often.
func TestWait(t *testing.T) {
	for age, want := range map[time.Duration]time.Duration{0: soon, 10 * time.Second: 2500 * time.Millisecond, time.Minute: 15 * time.Second, time.Hour: late} {
		if got := wait(age, "x").After; got != want {
			t.Errorf("after %s it is looked at in %s, want %s", age, got, want)
		}
	}
}

// When no more names can be remembered, nodes that are there have their certificates all the same, and who has approved
// one by hand is told once, with whom to forget.
func TestNoMoreNames(t *testing.T) {
	full := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "firkin", Name: JoinedName}, Data: map[string]string{}}
	for name := range many() {
		full.Data[name] = `{"key":"x","since":"2026-11-20T00:00:00Z"}`
	}
	for i, times := range []string{`"since":"2026-11-05T00:00:00Z"`, `"since":"2026-11-01T00:00:00Z"`, `"since":"2026-11-01T00:00:00Z","addressesSince":"2026-11-25T00:00:00Z"`} {
		full.Data[fmt.Sprint("node-", 7+i)] = `{"key":"x",` + times + `}`
	}
	first, second, there := node("mac-1", "firkin://v1", "192.0.2.10"), node("mac-2", "firkin://v1", "192.0.2.10", "192.0.2.20"), node("node-0", "firkin://v1")
	w := newWorld(t, full, &first, &second, &there)
	const names = "without a Node are node-8, node-7, node-1, node-10, node-100"
	for _, q := range []request{joining(), serving()} {
		csr := w.decide(q)
		w.is(csr, "", "")
		if e := w.event(); !strings.Contains(e, waitsReason) || q.signer == certificatesv1.KubeAPIServerClientKubeletSignerName && !strings.Contains(e, names) {
			t.Errorf("event %q", e)
		}
		w.approve(csr, time.Now())
		if e := w.event(); !strings.Contains(e, forgetReason) || !strings.HasSuffix(e, names) || !strings.Contains(e, "kubectl -n firkin edit configmap") {
			t.Errorf("event %q", e)
		}
		w.again(csr) // as when it is issued
		if e := w.event(); e != "" {
			t.Errorf("the same is told again: %q", e)
		}
	}
	q := serving()
	q.user, q.subject.CommonName, q.dns, q.ips = "system:node:mac-2", "system:node:mac-2", nil, []string{"192.0.2.20"}
	w.is(w.decide(q), certificatesv1.CertificateApproved, "")
	if got := (Cluster{Nodes: []corev1.Node{there}, Joined: map[string]Joined{"node-0": {}}}).dispensable(); got != "each has a Node" {
		t.Errorf("to forget: %s", got)
	}
}

// What is remembered is bounded, and what somebody wrote there is no name that is free.
func TestRegister(t *testing.T) {
	all := readJoined(&corev1.ConfigMap{Data: map[string]string{"odd": "{", "mac-1": `{"key":"k","addresses":["192.0.2.1"]}`}})
	if all["odd"].Key == "" || all["mac-1"].Key != "k" {
		t.Errorf("read %+v", all)
	}
	full := many()
	if _, err := merge(full, "one-more", Joined{Key: "k"}); err == nil || len(full) != maxJoined {
		t.Errorf("error %v, %d names", err, len(full))
	}
	if changed, err := merge(full, "one-more", Joined{Addresses: []netip.Addr{}}); changed != nil || !errors.Is(err, errFull) || len(full) != maxJoined {
		t.Errorf("a node that is there: %q, %v, %d names", changed, err, len(full))
	}
	if changed, err := merge(full, "node-1", Joined{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}); len(changed) != 1 || err != nil || full["node-1"].Key != "x" {
		t.Errorf("%+v: %q, %v", full["node-1"], changed, err)
	}
	older := Joined{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, AddressesSince: now.Add(-time.Second)}
	if changed, err := merge(full, "node-2", Joined{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.3")}, AddressesSince: now}); len(changed) != 1 || err != nil {
		t.Errorf("%q, %v", changed, err)
	}
	if changed, err := merge(full, "node-2", older); changed != nil || err != nil || full["node-2"].AddressesSince != now {
		t.Errorf("what was approved before changes %q to %+v: %v", changed, full["node-2"], err)
	}
}
