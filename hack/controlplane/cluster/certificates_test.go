// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var testNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func testAuthority(t *testing.T) *pair {
	t.Helper()
	ca, err := issue(certificateSpec{commonName: "test", usage: usageCA}, nil, testNow)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestIssuedCertificatesAreAccepted(t *testing.T) {
	ca, other := testAuthority(t), testAuthority(t)
	loopback := net.IPv4(127, 0, 0, 1)
	for name, tc := range map[string]struct {
		spec    certificateSpec
		host    string // for servers
		subject string
		usage   x509.ExtKeyUsage
		refused x509.ExtKeyUsage
	}{
		"API server by address": {apiServerSpec(), "127.0.0.1", "CN=kube-apiserver", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		"API server by service": {
			apiServerSpec(), "kubernetes.default.svc", "CN=kube-apiserver", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth,
		},
		"API server by service address": {
			apiServerSpec(), "10.96.0.1", "CN=kube-apiserver", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth,
		},
		"administrator": {
			clientSpec(userAdmin, groupMasters), "", "CN=kubernetes-admin,O=system:masters",
			x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth,
		},
		"node as client": {
			nodeClientSpec("mac-1"), "", "CN=system:node:mac-1,O=system:nodes",
			x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth,
		},
		"node as server by address": {
			nodeServingSpec("mac-1", []net.IP{loopback}), "127.0.0.1", "CN=system:node:mac-1,O=system:nodes",
			x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth,
		},
		"node as server by name": {
			nodeServingSpec("mac-1", []net.IP{loopback}), "mac-1", "CN=system:node:mac-1,O=system:nodes",
			x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := issue(tc.spec, ca, testNow)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.cert.Subject.String(); got != tc.subject {
				t.Errorf("subject = %q, want %q", got, tc.subject)
			}
			verify := func(authority *pair, host string, usage x509.ExtKeyUsage, at time.Time) error {
				roots := x509.NewCertPool()
				roots.AddCert(authority.cert)
				_, err := p.cert.Verify(x509.VerifyOptions{
					DNSName: host, Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
				})
				return err
			}
			if err := verify(ca, tc.host, tc.usage, testNow); err != nil {
				t.Errorf("not accepted: %v", err)
			}
			if verify(ca, tc.host, tc.refused, testNow) == nil {
				t.Error("accepted for the other end of a connection")
			}
			if verify(other, tc.host, tc.usage, testNow) == nil {
				t.Error("accepted under a foreign authority")
			}
			if verify(ca, "elsewhere.example", tc.usage, testNow) == nil {
				t.Error("accepted for a foreign name")
			}
			if verify(ca, tc.host, tc.usage, testNow.Add(leafValidity+time.Minute)) == nil {
				t.Error("accepted after its end")
			}
		})
	}
}

func TestFits(t *testing.T) {
	ca, other := testAuthority(t), testAuthority(t)
	spec := nodeServingSpec("mac-1", []net.IP{net.IPv4(127, 0, 0, 1)})
	p, err := issue(spec, ca, testNow)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		spec      certificateSpec
		authority *pair
		now       time.Time
		want      string // part of the difference; empty: fits
	}{
		"same":              {spec, ca, testNow, ""},
		"other node":        {nodeServingSpec("mac-2", spec.ips), ca, testNow, "subject"},
		"other group":       {certificateSpec{commonName: spec.commonName, usage: usageServer}, ca, testNow, "subject"},
		"other usage":       {nodeClientSpec("mac-1"), ca, testNow, "usage"},
		"other address":     {nodeServingSpec("mac-1", []net.IP{net.IPv4(10, 0, 0, 1)}), ca, testNow, "names"},
		"one more address":  {nodeServingSpec("mac-1", append([]net.IP{net.IPv6loopback}, spec.ips...)), ca, testNow, "names"},
		"other authority":   {spec, other, testNow, "another authority"},
		"clock set back":    {spec, ca, testNow.Add(-2 * backdate), "valid from"},
		"soon to end":       {spec, ca, testNow.Add(leafValidity - renewBefore + time.Minute), "valid from"},
		"still long enough": {spec, ca, testNow.Add(leafValidity - renewBefore - time.Minute), ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.spec.fits(p.cert, tc.authority.cert, tc.now)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("does not fit: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("err = %v, want one about %q", err, tc.want)
			}
		})
	}
}

func TestEnsurePairKeepsWhatFitsAndReplacesWhatDoesNot(t *testing.T) {
	ca := testAuthority(t)
	base := filepath.Join(t.TempDir(), "x")
	ensure := func(s certificateSpec) *pair {
		t.Helper()
		p, err := ensurePair(base, s, ca, testNow)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := ensure(nodeClientSpec("a"))
	if again := ensure(nodeClientSpec("a")); string(again.certPEM) != string(first.certPEM) {
		t.Error("a certificate that fits was replaced")
	}
	second := ensure(nodeClientSpec("b"))
	if second.cert.Subject.CommonName != "system:node:b" {
		t.Errorf("subject %q after the spec changed", second.cert.Subject)
	}
	if err := os.WriteFile(base+".crt", second.certPEM[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	third := ensure(nodeClientSpec("b"))
	// What a crash between the two files leaves.
	if err := os.WriteFile(base+".key", second.keyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	fourth := ensure(nodeClientSpec("b"))
	if string(third.certPEM) == string(second.certPEM) || string(fourth.certPEM) == string(third.certPEM) {
		t.Error("a damaged pair was kept")
	}
	if info, err := os.Stat(base + ".key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
}

func TestIdentitiesAreKeptOnReuse(t *testing.T) {
	l := testLayout(t)
	read := func(now time.Time) map[string]string {
		t.Helper()
		if _, err := ensureIdentities(l, now); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{}
		entries, err := os.ReadDir(l.PKI())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				data, err := os.ReadFile(l.PKI(e.Name()))
				if err != nil {
					t.Fatal(err)
				}
				files[e.Name()] = string(data)
			}
		}
		return files
	}
	first := read(testNow)
	for name, data := range read(testNow.Add(24 * time.Hour)) {
		if first[name] != data {
			t.Errorf("%s changed on reuse", name)
		}
	}
	later := read(testNow.Add(leafValidity))
	if later["ca.crt"] != first["ca.crt"] || later["service-account.key"] != first["service-account.key"] {
		t.Error("the authority or the service account key changed when only leaves had ended")
	}
	if later["apiserver.crt"] == first["apiserver.crt"] {
		t.Error("a certificate at its end was kept")
	}
}
