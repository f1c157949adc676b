// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/kubeletapi"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
)

// node is a node with containers and logs as a test wants them.
type node struct {
	mu      sync.Mutex
	targets map[string]provider.Target                                                        // guarded by mu; by namespace/pod/container
	read    func(context.Context, provider.ContainerRef, podlog.ReadOptions, io.Writer) error // guarded by mu
	logs    map[provider.ContainerRef]bool                                                    // guarded by mu
	spec    corev1.PodSpec                                                                    // guarded by mu; of every pod
}

func (n *node) Target(namespace, pod, container string) (provider.Target, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, ok := n.targets[namespace+"/"+pod+"/"+container]
	if !ok {
		return provider.Target{}, fmt.Errorf("container %q in pod %q: %w", container, pod, provider.ErrNotFound)
	}
	return t, nil
}

func (n *node) Pods() []*corev1.Pod {
	pod := func(name string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.PodStatus{Phase: phase}}
	}
	return []*corev1.Pod{pod("a", corev1.PodRunning), pod("b", corev1.PodSucceeded)}
}

func (n *node) Machine(namespace, pod string) (provider.PodMachine, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := provider.PodMachine{}
	for name, t := range n.targets {
		if strings.HasPrefix(name, namespace+"/"+pod+"/") {
			m.Targets, m.Dial = append(m.Targets, t), t.Dial
			m.Pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod, UID: t.PodUID}, Spec: n.spec}
		}
	}
	if m.Pod == nil {
		return m, fmt.Errorf("pod %q: %w", pod, provider.ErrNotFound)
	}
	return m, nil
}

func (n *node) Machines() []provider.PodMachine {
	m, err := n.Machine("ns", "p")
	if err != nil {
		return nil
	}
	return []provider.PodMachine{m}
}

func (n *node) Read(ctx context.Context, c provider.ContainerRef, opts podlog.ReadOptions, w io.Writer) error {
	n.mu.Lock()
	read := n.read
	n.mu.Unlock()
	return read(ctx, c, opts, w)
}

func (n *node) Exists(c provider.ContainerRef) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.logs[c]
}

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue makes a certificate for 127.0.0.1 and a user.
func (a *authority) issue(t *testing.T, name string, groups ...string) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

// server is a running server and what a client needs to reach it.
type server struct {
	node     *node
	url      string
	ca       *authority
	certFile string
	keyFile  string
	// reviews are the subresources and verbs that the API server was asked about.
	mu      sync.Mutex
	reviews []string // guarded by mu
}

// newServer runs a server for the node "n1". The API server behind it knows the
// token "good" as user "tina"; it lets user "api" do everything, and "tina" get
// pods and metrics.
func newServer(t *testing.T, change ...func(*kubeletapi.Options)) *server {
	t.Helper()
	s := &server{node: &node{targets: map[string]provider.Target{}, logs: map[provider.ContainerRef]bool{}}, ca: newAuthority(t)}
	dir := t.TempDir()
	s.certFile, s.keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	cert, key := s.ca.issue(t, "node")
	caFile := filepath.Join(dir, "ca.crt")
	for name, data := range map[string][]byte{s.certFile: cert, s.keyFile: key, caFile: s.ca.pem} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client := s.apiServer(t)
	certs, err := kubeletapi.OpenCertificates(s.certFile, s.keyFile, caFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	access, err := kubeletapi.NewDelegated("n1", client, certs)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "test_gauge"}, func() float64 { return 7 }))
	opts := kubeletapi.Options{
		Containers: s.node, Logs: s.node, Access: access, Certificates: certs, Metrics: registry,
		Stats: func(context.Context) (*statsv1alpha1.Summary, int, error) {
			return &statsv1alpha1.Summary{
				Node: statsv1alpha1.NodeStats{NodeName: "n1", Fs: &statsv1alpha1.FsStats{}},
				Pods: []statsv1alpha1.PodStats{{Containers: []statsv1alpha1.ContainerStats{{Name: "c", Rootfs: &statsv1alpha1.FsStats{}}}}},
			}, 0, nil
		},
	}
	for _, c := range change {
		c(&opts)
	}
	api, err := kubeletapi.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "https://" + lis.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- api.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("server did not end")
		}
	})
	return s
}

// apiServer runs the part of an API server that access is decided by.
func (s *server) apiServer(t *testing.T) kubernetes.Interface {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		review := &authenticationv1.TokenReview{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}}
		json.NewDecoder(r.Body).Decode(review)
		if review.Spec.Token == "good" {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: "tina"}}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(review)
	})
	mux.HandleFunc("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", func(w http.ResponseWriter, r *http.Request) {
		review := &authorizationv1.SubjectAccessReview{TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SubjectAccessReview"}}
		json.NewDecoder(r.Body).Decode(review)
		a := review.Spec.ResourceAttributes
		s.mu.Lock()
		s.reviews = append(s.reviews, strings.Join([]string{review.Spec.User, a.Verb, a.Resource, a.Name, a.Subresource}, " "))
		s.mu.Unlock()
		review.Status.Allowed = review.Spec.User == "api" || review.Spec.User == "tina" && a.Verb == "get" && (a.Subresource == "pods" || a.Subresource == "metrics")
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(review)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL, ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// config is a client's configuration: with a certificate for user, or with a token.
func (s *server) config(t *testing.T, user, token string) *rest.Config {
	t.Helper()
	c := &rest.Config{Host: s.url, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: s.ca.pem}}
	if user != "" {
		c.CertData, c.KeyData = s.ca.issue(t, user, "masters")
	}
	return c
}

func (s *server) get(t *testing.T, c *rest.Config, path string) (int, string) {
	t.Helper()
	return s.do(t, c, http.MethodGet, path)
}

func (s *server) do(t *testing.T, c *rest.Config, method, path string) (int, string) {
	t.Helper()
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

func TestWhoMayDoWhat(t *testing.T) {
	s := newServer(t)
	stranger := newAuthority(t)
	foreign := s.config(t, "", "")
	foreign.CertData, foreign.KeyData = stranger.issue(t, "api")
	for name, c := range map[string]struct {
		config *rest.Config
		method string
		path   string
		want   int
	}{
		"nobody":                          {s.config(t, "", ""), "GET", "/healthz", 401},
		"unknown token":                   {s.config(t, "", "bad"), "GET", "/healthz", 401},
		"certificate of a stranger":       {foreign, "GET", "/healthz", 401},
		"certificate":                     {s.config(t, "api", ""), "GET", "/healthz", 200},
		"certificate without rights":      {s.config(t, "eve", ""), "GET", "/healthz", 403},
		"token, may":                      {s.config(t, "", "good"), "GET", "/metrics", 200},
		"token, may by the finer right":   {s.config(t, "", "good"), "GET", "/pods", 200},
		"token, may not":                  {s.config(t, "", "good"), "GET", "/stats/summary", 403},
		"token, may not exec":             {s.config(t, "", "good"), "POST", "/exec/ns/p/c?command=x&output=1", 403},
		"path tricks":                     {s.config(t, "", "good"), "GET", "/pods/../containerLogs/ns/p/c", 403},
		"other method":                    {s.config(t, "api", ""), "DELETE", "/pods", 405},
		"unknown path":                    {s.config(t, "api", ""), "GET", "/checkpoint/x", 404},
		"attach to a container not there": {s.config(t, "api", ""), "POST", "/attach/ns/p/c?output=1", 404},
		"attach without streams":          {s.config(t, "api", ""), "POST", "/attach/ns/p/c", 400},
		"port-forward to a pod not there": {s.config(t, "api", ""), "POST", "/portForward/ns/p", 404},
		"port-forward without the right":  {s.config(t, "eve", ""), "GET", "/portForward/ns/p", 403},
		"no command":                      {s.config(t, "api", ""), "POST", "/exec/ns/p/c?output=1", 400},
		"no streams":                      {s.config(t, "api", ""), "POST", "/exec/ns/p/c?command=x", 400},
		"exec in a container not there":   {s.config(t, "api", ""), "POST", "/exec/ns/p/c?command=x&output=1", 404},
		"log of a container not there":    {s.config(t, "api", ""), "GET", "/containerLogs/ns/p/c", 404},
		"log with a query that is absurd": {s.config(t, "api", ""), "GET", "/containerLogs/ns/p/c?tailLines=-1", 422},
	} {
		t.Run(name, func(t *testing.T) {
			if got, body := s.do(t, c.config, c.method, c.path); got != c.want {
				t.Errorf("got %d, want %d: %s", got, c.want, body)
			}
		})
	}
}

// TestExecNeedsCreate: a WebSocket handshake is a GET, and must not be let through
// by the right to look.
func TestExecNeedsCreate(t *testing.T) {
	s := newServer(t)
	if got, body := s.get(t, s.config(t, "eve", ""), "/exec/ns/p/c?command=x&output=1"); got != 403 {
		t.Fatalf("got %d: %s", got, body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := strings.Join(s.reviews, ", "); got != "eve create nodes n1 proxy" {
		t.Fatalf("the API server was asked for %q", got)
	}
}

func TestAnswersAreCached(t *testing.T) {
	s := newServer(t)
	for range 3 {
		if got, body := s.get(t, s.config(t, "", "good"), "/metrics"); got != 200 || !strings.Contains(body, "test_gauge 7") {
			t.Fatalf("got %d: %s", got, body)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reviews) != 1 {
		t.Fatalf("the API server was asked %d times: %q", len(s.reviews), s.reviews)
	}
}

func TestPodsAndStats(t *testing.T) {
	s := newServer(t)
	api := s.config(t, "api", "")
	for path, want := range map[string]string{"/pods": "a b", "/pods/": "a b", "/runningpods/": "a"} {
		code, body := s.get(t, api, path)
		var list corev1.PodList
		if err := json.Unmarshal([]byte(body), &list); err != nil || code != 200 || list.Kind != "PodList" {
			t.Fatalf("%s: %d, %v, %s", path, code, err, body)
		}
		var names []string
		for _, p := range list.Items {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	var summary statsv1alpha1.Summary
	if code, body := s.get(t, api, "/stats/summary"); code != 200 || json.Unmarshal([]byte(body), &summary) != nil || summary.Node.NodeName != "n1" {
		t.Errorf("/stats/summary: %d, %s", code, body)
	}
	if code, body := s.get(t, api, "/stats/summary?only_cpu_and_memory=true"); code != 200 || strings.Contains(body, "rootfs") || !strings.Contains(body, `"name":"c"`) {
		t.Errorf("only CPU and memory: %d, %s", code, body)
	}
}

func TestServingCertificateIsReloaded(t *testing.T) {
	s := newServer(t)
	serial := func() string {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(s.ca.pem)
		conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := serial(); got != "node" {
		t.Fatalf("first certificate is %q", got)
	}
	cert, key := s.ca.issue(t, "node renewed")
	for name, data := range map[string][]byte{s.keyFile: key, s.certFile: cert} {
		tmp := name + ".new"
		if err := errors.Join(os.WriteFile(tmp, data, 0o600), os.Rename(tmp, name)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); serial() != "node renewed"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the renewed certificate is not served")
		}
	}
}
