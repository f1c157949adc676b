// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSelfSigned(t *testing.T) {
	serve := SelfSigned("mac-1", []net.IP{net.ParseIP("192.0.2.10"), net.ParseIP("2001:db8::10")})
	c, err := serve()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mac-1", "192.0.2.10", "2001:db8::10"} {
		if err := c.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if again, err := serve(); err != nil || again != c {
		t.Errorf("asked again: another one, %v", err)
	}
}

// Until the cluster has issued one there is none, and that is said; an old one is none either.
func TestServingCertificate(t *testing.T) {
	ca := newAuthority(t)
	o := ServingOptions{Dir: filepath.Join(t.TempDir(), "credentials"), NodeName: "mac-1", Addresses: []net.IP{net.ParseIP("192.0.2.10")}}
	open := func() *Serving {
		t.Helper()
		s, err := OpenServing(o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	if _, err := s.Certificate(); !errors.Is(err, ErrNoServing) {
		t.Errorf("at first: %v", err)
	}
	if got := s.template(); got.Subject.CommonName != "system:node:mac-1" || len(got.DNSNames) != 1 || got.DNSNames[0] != "mac-1" || len(got.IPAddresses) != 1 {
		t.Errorf("asks for %+v", got)
	}
	for name, tt := range map[string]struct {
		until time.Duration
		want  error
	}{"good": {until: time.Hour}, "expired": {until: -time.Minute, want: ErrNoServing}} {
		now := time.Now()
		certPEM, keyPEM := ca.node(t, "mac-1", now.Add(-time.Hour), now.Add(tt.until))
		if _, err := s.store.Update(certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Serving{s, open()} { // the latter as after a restart
			if c, err := s.Certificate(); !errors.Is(err, tt.want) || err == nil && c.Leaf.Subject.CommonName != "system:node:mac-1" {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(o.Dir, servingFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open().Certificate(); !errors.Is(err, ErrNoServing) {
		t.Errorf("rubbish on disk: %v", err)
	}
}
