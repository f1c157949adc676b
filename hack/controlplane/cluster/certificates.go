// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"time"
)

const (
	caValidity   = 10 * 365 * 24 * time.Hour
	leafValidity = 365 * 24 * time.Hour
	// renewBefore: a directory reused within the last month of a certificate gets a new one.
	renewBefore = 30 * 24 * time.Hour
	// backdate keeps a machine whose clock is slow from refusing a fresh certificate.
	backdate = time.Hour
)

// usage says which end of a TLS connection a certificate is for.
type usage int

const (
	usageCA usage = iota
	usageServer
	usageClient
)

// certificateSpec is what a certificate says, without its key and its dates.
type certificateSpec struct {
	commonName    string
	organizations []string
	usage         usage
	dnsNames      []string
	ips           []net.IP
}

// pair is a certificate with its key, both also as the PEM they are stored as.
type pair struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
	keyPEM  []byte
}

// Names in the certificates that Kubernetes gives a meaning to.
const (
	userAdmin             = "kubernetes-admin"
	userControllerManager = "system:kube-controller-manager" // bound by RBAC's bootstrap policy
	userScheduler         = "system:kube-scheduler"          // bound by RBAC's bootstrap policy
	userKubeletClient     = "kube-apiserver-kubelet-client"  // bound by us to system:kubelet-api-admin
	userFrontProxy        = "front-proxy-client"             // the one name aggregated API servers trust
	groupMasters          = "system:masters"
	groupNodes            = "system:nodes"
	nodeUserPrefix        = "system:node:"
)

func apiServerSpec() certificateSpec {
	return certificateSpec{
		commonName: "kube-apiserver",
		usage:      usageServer,
		dnsNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local",
		},
		// The second is the first address of serviceCIDR, which the kubernetes Service always gets.
		ips: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(kubernetesServiceIP)},
	}
}

func clientSpec(user string, groups ...string) certificateSpec {
	return certificateSpec{commonName: user, organizations: groups, usage: usageClient}
}

func nodeClientSpec(node string) certificateSpec {
	return clientSpec(nodeUserPrefix+node, groupNodes)
}

func nodeServingSpec(node string, ips []net.IP) certificateSpec {
	return certificateSpec{
		commonName:    nodeUserPrefix + node,
		organizations: []string{groupNodes},
		usage:         usageServer,
		dnsNames:      []string{node},
		ips:           ips,
	}
}

// template renders the spec as an unsigned certificate that is valid around now.
func (s certificateSpec) template(serial *big.Int, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: s.commonName, Organization: s.organizations},
		NotBefore:             now.Add(-backdate).UTC(),
		NotAfter:              now.Add(leafValidity).UTC(),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		DNSNames:              s.dnsNames,
		IPAddresses:           s.ips,
	}
	switch s.usage {
	case usageCA:
		t.NotAfter = now.Add(caValidity).UTC()
		t.IsCA = true
		t.KeyUsage |= x509.KeyUsageCertSign
	case usageServer:
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case usageClient:
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	return t
}

// fits tells whether cert already says what the spec wants, is signed by the authority (nil: by
// itself) and does not need to be renewed at now. The error names the first difference.
func (s certificateSpec) fits(cert *x509.Certificate, authority *x509.Certificate, now time.Time) error {
	want := s.template(cert.SerialNumber, now)
	if cert.Subject.CommonName != want.Subject.CommonName || !slices.Equal(cert.Subject.Organization, want.Subject.Organization) {
		return fmt.Errorf("subject is %q", cert.Subject)
	}
	if cert.IsCA != want.IsCA || !slices.Equal(cert.ExtKeyUsage, want.ExtKeyUsage) {
		return errors.New("usage differs")
	}
	if !slices.Equal(cert.DNSNames, want.DNSNames) || !slices.EqualFunc(cert.IPAddresses, want.IPAddresses, net.IP.Equal) {
		return errors.New("names differ")
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter.Add(-renewBefore)) {
		return fmt.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
	if authority == nil {
		authority = cert
	}
	if err := cert.CheckSignatureFrom(authority); err != nil {
		return fmt.Errorf("signed by another authority: %w", err)
	}
	return nil
}

// issue makes a new key and its certificate, signed by the authority (nil: by itself).
func issue(s certificateSpec, authority *pair, now time.Time) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of %q: %w", s.commonName, err)
	}
	// 127 bits: RFC 5280 allows 20 bytes and wants a positive, unpredictable number.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("generate serial number of %q: %w", s.commonName, err)
	}
	template := s.template(serial, now)
	parent, signer := template, crypto.Signer(key)
	if authority != nil {
		parent, signer = authority.cert, authority.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %q: %w", s.commonName, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key of %q: %w", s.commonName, err)
	}
	return parsePair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func parseKey(keyPEM []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("key is not PEM")
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

func parsePair(certPEM, keyPEM []byte) (*pair, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return nil, errors.New("certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("key does not belong to the certificate")
	}
	return &pair{cert: cert, key: key, certPEM: certPEM, keyPEM: keyPEM}, nil
}

// ensurePair returns the pair stored at base+".crt" and base+".key". It issues and stores a new one
// when there is none, when it is damaged, or when it no longer says what the spec wants.
func ensurePair(base string, s certificateSpec, authority *pair, now time.Time) (*pair, error) {
	certPEM, certErr := os.ReadFile(base + ".crt")
	keyPEM, keyErr := os.ReadFile(base + ".key")
	if certErr == nil && keyErr == nil {
		var parent *x509.Certificate
		if authority != nil {
			parent = authority.cert
		}
		if p, err := parsePair(certPEM, keyPEM); err == nil && s.fits(p.cert, parent, now) == nil {
			return p, nil
		}
	}
	p, err := issue(s, authority, now)
	if err != nil {
		return nil, err
	}
	// The key first: a crash between the two leaves a pair that does not match, which is issued again.
	if err := writeFile(base+".key", p.keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(base+".crt", p.certPEM, 0o644); err != nil {
		return nil, err
	}
	return p, nil
}

// ensureServiceAccountKeys stores the key that signs service account tokens and its public half.
func ensureServiceAccountKeys(l Layout) error {
	keyPEM, err := os.ReadFile(l.PKI("service-account.key"))
	if err == nil {
		_, err = parseKey(keyPEM)
	}
	if err != nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("generate service account key: %w", err)
		}
		if keyPEM, err = encodeKey(key); err != nil {
			return fmt.Errorf("encode service account key: %w", err)
		}
		if err := writeFile(l.PKI("service-account.key"), keyPEM, 0o600); err != nil {
			return err
		}
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return fmt.Errorf("parse service account key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	return writeFile(l.PKI("service-account.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}

// identities are the pairs that the control plane itself uses.
type identities struct {
	ca                *pair
	admin             *pair
	controllerManager *pair
	scheduler         *pair
}

// ensureIdentities stores every key and certificate of the control plane; those that still fit are kept.
func ensureIdentities(l Layout, now time.Time) (identities, error) {
	var ids identities
	ca, err := ensurePair(l.PKI("ca"), certificateSpec{commonName: "vk-firkin control plane", usage: usageCA}, nil, now)
	if err != nil {
		return ids, err
	}
	// A CA of its own: whoever it signs may speak for any user at the API server.
	proxyCA, err := ensurePair(l.PKI("front-proxy-ca"), certificateSpec{commonName: "vk-firkin front proxy", usage: usageCA}, nil, now)
	if err != nil {
		return ids, err
	}
	ids.ca = ca
	for _, e := range []struct {
		name      string
		spec      certificateSpec
		authority *pair
		to        **pair
	}{
		{"apiserver", apiServerSpec(), ca, nil},
		{"apiserver-kubelet-client", clientSpec(userKubeletClient), ca, nil},
		{"front-proxy-client", clientSpec(userFrontProxy), proxyCA, nil},
		{"admin", clientSpec(userAdmin, groupMasters), ca, &ids.admin},
		{"controller-manager", clientSpec(userControllerManager), ca, &ids.controllerManager},
		{"scheduler", clientSpec(userScheduler), ca, &ids.scheduler},
	} {
		p, err := ensurePair(l.PKI(e.name), e.spec, e.authority, now)
		if err != nil {
			return ids, err
		}
		if e.to != nil {
			*e.to = p
		}
	}
	if err := ensureServiceAccountKeys(l); err != nil {
		return ids, err
	}
	return ids, writeFile(l.CACertificate(), ca.certPEM, 0o644)
}
