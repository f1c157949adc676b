// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// ErrNoServing says that the kubelet API has no certificate yet.
var ErrNoServing = errors.New("this node has no serving certificate yet: look at `kubectl get csr`; `vk-firkin controller` approves the request when its names and addresses are the Node's")

// ServingOptions say what a serving certificate is for.
type ServingOptions struct {
	// Dir is the folder of the credentials.
	Dir string
	// NodeName and Addresses are what the API server reaches the node by.
	NodeName  string
	Addresses []net.IP
	// Client is the node's own: the request is granted to the node that it names only.
	Client kubernetes.Interface
	// Logger; nil means silence.
	Logger *slog.Logger
}

// Serving is the certificate of the kubelet API that the cluster has issued. It is asked for
// and renewed while Keep runs.
type Serving struct {
	o        ServingOptions
	store    *store
	counters *counters
}

// OpenServing reads the certificate of an earlier time, if there is one.
func OpenServing(o ServingOptions) (*Serving, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := durable.MakeDir(durable.Host, o.Dir, durable.Synced); err != nil {
		return nil, fmt.Errorf("make folder of credentials: %w", err)
	}
	s := &Serving{o: o, store: newStore(filepath.Join(o.Dir, servingFile)), counters: newCounters("serving")}
	current, err := s.store.Current()
	missing := new(certificate.NoCertKeyError)
	if err != nil && !errors.As(err, &missing) {
		return nil, err
	}
	if current != nil {
		s.counters.expires(current.Leaf)
	}
	s.store.onChange(func() {
		c := s.store.current().Leaf
		s.counters.expires(c)
		o.Logger.Info("Got a serving certificate", "names", c.DNSNames, "addresses", c.IPAddresses, "expires", c.NotAfter)
	})
	return s, nil
}

// Certificate is the one to serve with now.
func (s *Serving) Certificate() (*tls.Certificate, error) {
	c := s.store.current()
	if c == nil || time.Now().After(c.Leaf.NotAfter) {
		return nil, ErrNoServing
	}
	return c, nil
}

// Keep asks for the certificate and renews it, until ctx ends.
func (s *Serving) Keep(ctx context.Context) error {
	return keep(ctx, &certificate.Config{
		Name:       "serving-certificate",
		SignerName: certificatesv1.KubeletServingSignerName,
		GetUsages:  certificate.DefaultKubeletServingGetUsages,
		// A template that is a function is compared with the certificate; one that has other addresses is asked for anew.
		GetTemplate: s.template,
		ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) { return s.o.Client, nil },

		CertificateStore:        s.store,
		CertificateRenewFailure: s.counters,
	})
}

// template is what the node asks for: nothing but what its Node says.
func (s *Serving) template() *x509.CertificateRequest {
	return &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: userPrefix + s.o.NodeName, Organization: []string{group}},
		DNSNames:    []string{s.o.NodeName},
		IPAddresses: s.o.Addresses,
	}
}

// selfSignedFor is how long a certificate is good that GenerateSelfSignedCertKey makes, a
// year, less the time in which another one should be there.
const selfSignedFor = 300 * 24 * time.Hour

// SelfSigned makes certificates that nobody has to approve, and that the API server can only use when it
// does not verify those of nodes. Each is made anew when the last one is old.
func SelfSigned(nodeName string, addresses []net.IP) func() (*tls.Certificate, error) {
	var mu sync.Mutex
	var made *tls.Certificate // guarded by mu
	return func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if made != nil && time.Since(made.Leaf.NotBefore) < selfSignedFor {
			return made, nil
		}
		certPEM, keyPEM, err := cert.GenerateSelfSignedCertKey(nodeName, addresses, nil)
		if err != nil {
			return nil, fmt.Errorf("make self-signed certificate: %w", err)
		}
		made, err = parsePair(certPEM, keyPEM)
		return made, err
	}
}
