// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/certificate"
)

// keepJoined writes what Join keeps.
func keepJoined(t *testing.T, ca *authority, server string, certPEM, keyPEM []byte) string {
	t.Helper()
	dir := t.TempDir()
	kubeconfig, err := renderKubeconfig(server, "", ca.pem, "system:node:mac-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(KubeconfigPath(dir), kubeconfig, 0o600),
		os.WriteFile(filepath.Join(dir, clientFile), append(certPEM, keyPEM...), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpenRefuses(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	good, goodKey := ca.node(t, "mac-1", now.Add(-time.Hour), now.Add(time.Hour))
	expired, expiredKey := ca.node(t, "mac-1", now.Add(-2*time.Hour), now.Add(-time.Hour))
	key := newKey(t)
	admin := ca.sign(t, x509.CertificateRequest{}.Subject, key.Public(), now.Add(-time.Hour), now.Add(time.Hour), x509.ExtKeyUsageClientAuth)
	for name, tt := range map[string]struct {
		cert, key []byte
		change    func(dir string) error
		want      error
	}{
		"expired":             {cert: expired, key: expiredKey, want: ErrExpired},
		"no certificate":      {cert: good, key: goodKey, change: func(dir string) error { return os.Remove(filepath.Join(dir, clientFile)) }, want: ErrDamaged},
		"half a certificate":  {cert: good[:len(good)/2], key: goodKey, want: ErrDamaged},
		"another's key":       {cert: good, key: expiredKey, want: ErrDamaged},
		"no node's":           {cert: admin, key: goodKey, want: ErrDamaged},
		"no kubeconfig":       {cert: good, key: goodKey, change: func(dir string) error { return os.Remove(KubeconfigPath(dir)) }, want: ErrNotJoined},
		"half a kubeconfig":   {cert: good, key: goodKey, change: func(dir string) error { return os.WriteFile(KubeconfigPath(dir), []byte("apiVersion: v"), 0o600) }, want: ErrDamaged},
		"an empty kubeconfig": {cert: good, key: goodKey, change: func(dir string) error { return os.Truncate(KubeconfigPath(dir), 0) }, want: ErrDamaged},
		"an endless kubeconfig": {cert: good, key: goodKey, change: func(dir string) error { return os.Truncate(KubeconfigPath(dir), maxClusterInfo+1) },
			want: ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			dir := keepJoined(t, ca, "https://192.0.2.1:6443", tt.cert, tt.key)
			if tt.change != nil {
				if err := tt.change(dir); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Open(dir, Options{})
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "vk-firkin join") {
				t.Errorf("error %v, want %v and what to do", err, tt.want)
			}
		})
	}
}

// A renewed certificate is used at once, by clients that were made before it: what is open
// was authenticated with the old one.
func TestRenewedCertificateIsUsed(t *testing.T) {
	ca := newAuthority(t)
	var mu sync.Mutex
	var seen []string // guarded by mu
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.TLS.PeerCertificates[0].SerialNumber.String())
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(version.Info{Major: "1"})
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.server(t)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)

	now := time.Now()
	first, firstKey := ca.node(t, "mac-1", now.Add(-time.Hour), now.Add(time.Hour))
	own, err := Open(keepJoined(t, ca, s.URL, first, firstKey), Options{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(own.Config())
	if err != nil {
		t.Fatal(err)
	}
	ask := func() {
		t.Helper()
		if _, err := client.Discovery().ServerVersion(); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	ask()
	second, secondKey := ca.node(t, "mac-1", now.Add(-time.Hour), now.Add(2*time.Hour))
	if _, err := own.store.Update(second, secondKey); err != nil {
		t.Fatal(err)
	}
	ask()
	if seen[0] != seen[1] || seen[1] == seen[2] {
		t.Errorf("certificates were %q: want the first twice, then the second", seen)
	}
	if until := own.Expires(); until.Before(now.Add(90 * time.Minute)) {
		t.Errorf("expires %s", until)
	}
	registry := prometheus.NewRegistry()
	serving, err := OpenServing(ServingOptions{Dir: t.TempDir(), NodeName: "mac-1"})
	if err != nil {
		t.Fatal(err)
	}
	registry.MustRegister(own.Metrics(), serving.Metrics()) // they are told apart
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range families {
		got[f.GetName()] = len(f.GetMetric())
	}
	// Both of the one certificate, and the failures of the other, which is not there yet.
	if want := map[string]int{"vk_firkin_certificate_expiration_timestamp_seconds": 1, "vk_firkin_certificate_renew_failures_total": 2}; !maps.Equal(got, want) {
		t.Errorf("metrics are %v, want %v", got, want)
	}
}

func TestStore(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	certPEM, keyPEM := ca.node(t, "mac-1", now.Add(-time.Hour), now.Add(time.Hour))
	_, otherKey := ca.node(t, "mac-1", now.Add(-time.Hour), now.Add(time.Hour))
	path := filepath.Join(t.TempDir(), "pair.pem")
	s := newStore(path)
	missing := new(certificate.NoCertKeyError)
	if c, err := s.Current(); c != nil || !errors.As(err, &missing) {
		t.Errorf("nothing there: %v, %v", c, err)
	}
	told := 0
	s.onChange(func() { told++ })
	if _, err := s.Update(certPEM, otherKey); err == nil || s.current() != nil || told != 0 {
		t.Errorf("a pair that is none: %v, told %d times", err, told)
	}
	if c, err := s.Update(certPEM, keyPEM); err != nil || c != s.current() || told != 1 {
		t.Fatalf("a pair: %v, told %d times", err, told)
	}
	again, err := newStore(path).Current()
	if err != nil || !bytes.Equal(again.Leaf.Raw, s.current().Leaf.Raw) {
		t.Errorf("read again: %v", err)
	}
	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Another certificate is asked for, as if there were none.
	if c, err := newStore(path).Current(); c != nil || !errors.As(err, &missing) {
		t.Errorf("rubbish: %v, %v", c, err)
	}
	// A disk that does not answer is not a disk without a certificate.
	if c, err := newStore(filepath.Join(path, "below-a-file")).Current(); c != nil || err == nil || errors.As(err, &missing) {
		t.Errorf("unreadable: %v, %v", c, err)
	}
}
