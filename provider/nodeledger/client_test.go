// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider/nodeledger"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// server speaks what the real API server does, as far as a node asks for it, and
// refuses everything else: those are all the rights that a node has.
type server struct {
	mu     sync.Mutex
	ledger *v1alpha1.NodeLedger
	asked  []string
	events chan any
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	watching := r.URL.Query().Get("watch") != ""
	call := r.Method + " " + r.URL.Path
	if f := r.URL.Query().Get("fieldSelector"); f != "" {
		call += " " + f
	}
	if !slices.Contains(s.asked, call) {
		s.asked = append(s.asked, call)
	}
	const ledgers = "/apis/firkin.dev/v1alpha1/nodeledgers"
	w.Header().Set("Content-Type", "application/json")
	switch {
	case watching:
		s.mu.Unlock()
		if r.URL.Query().Get("sendInitialEvents") != "" {
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
			return
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		if r.URL.Path != ledgers {
			<-r.Context().Done()
			return
		}
		for {
			select {
			case e := <-s.events:
				_ = json.NewEncoder(w).Encode(e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	case r.Method == http.MethodGet && r.URL.Path == ledgers:
		list := &v1alpha1.NodeLedgerList{TypeMeta: metav1.TypeMeta{APIVersion: "firkin.dev/v1alpha1", Kind: "NodeLedgerList"}}
		list.ResourceVersion = "1"
		_ = json.NewEncoder(w).Encode(list)
	case r.Method == http.MethodGet && r.URL.Path == "/apis/firkin.dev/v1alpha1/snapshottemplates":
		spec := templateSpec()
		list := &v1alpha1.SnapshotTemplateList{TypeMeta: metav1.TypeMeta{APIVersion: "firkin.dev/v1alpha1", Kind: "SnapshotTemplateList"},
			Items: []v1alpha1.SnapshotTemplate{{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "app"}, Spec: spec}}}
		list.ResourceVersion = "1"
		_ = json.NewEncoder(w).Encode(list)
	case r.Method == http.MethodPost && r.URL.Path == ledgers, r.Method == http.MethodPut && r.URL.Path == ledgers+"/"+node+"/status":
		l := &v1alpha1.NodeLedger{}
		if err := json.NewDecoder(r.Body).Decode(l); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			break
		}
		l.ResourceVersion, l.UID = l.ResourceVersion+"1", "uid"
		s.ledger = l
		_ = json.NewEncoder(w).Encode(l)
	default:
		w.WriteHeader(http.StatusForbidden)
	}
	s.mu.Unlock()
}

// The real client against a real HTTP server: paths, selectors, bodies and events.
func TestClient(t *testing.T) {
	s := &server{events: make(chan any, 1)}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	kube := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, UID: "node-uid"}})
	client, err := nodeledger.NewClient(&rest.Config{Host: web.URL}, kube)
	if err != nil {
		t.Fatal(err)
	}
	sup := newSupply()
	k, err := nodeledger.New(nodeledger.Options{API: client, NodeName: node, Supply: sup, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx := t.Context()
	wg.Go(func() { k.Run(ctx) })
	t.Cleanup(wg.Wait) // after the test's context has ended

	eventually(t, "the template is known", func() bool { _, err := k.Template("team", "app"); return err == nil })
	sup.change(func(st *warmpool.Status) { st.Account.Capacity.MilliCPU = 1500 })
	eventually(t, "a status is reported", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.ledger != nil && s.ledger.Status.Capacity.CPU.String() == "1500m"
	})
	s.mu.Lock()
	changed := s.ledger.DeepCopy()
	s.mu.Unlock()
	changed.TypeMeta = metav1.TypeMeta{APIVersion: "firkin.dev/v1alpha1", Kind: "NodeLedger"}
	changed.Spec, changed.Generation, changed.ResourceVersion = *ledgerSpec(target("app")), 2, "9"
	s.events <- map[string]any{"type": "ADDED", "object": changed}
	eventually(t, "targets are kept", func() bool { return slices.Equal(sup.pools(), []string{"team/app=2"}) })

	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.asked)
	want := []string{
		"GET /apis/firkin.dev/v1alpha1/nodeledgers metadata.name=node-a",
		"GET /apis/firkin.dev/v1alpha1/snapshottemplates",
		"POST /apis/firkin.dev/v1alpha1/nodeledgers",
		"PUT /apis/firkin.dev/v1alpha1/nodeledgers/node-a/status",
	}
	if !slices.Equal(s.asked, want) {
		t.Errorf("asked %q", s.asked)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
