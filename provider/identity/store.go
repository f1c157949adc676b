// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"k8s.io/client-go/util/certificate"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// maxPair bounds a file with a certificate and its key: what is in it came over the network.
const maxPair = 256 << 10

// store keeps a certificate and its key in one file. It implements certificate.Store: the file store
// of that package keeps every pair that it was ever given and renames a link before its folder is synced.
type store struct {
	path string
	fs   durable.FS

	mu      sync.Mutex
	latest  *tls.Certificate // guarded by mu
	changed func()           // guarded by mu; told after a change
}

var _ certificate.Store = (*store)(nil)

func newStore(path string) *store { return &store{path: path, fs: durable.Host} }

// Current implements certificate.Store. What cannot be read as a pair is none: another is asked for.
func (s *store) Current() (*tls.Certificate, error) {
	c, err := s.read()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		missing := certificate.NoCertKeyError(err.Error())
		return nil, &missing
	}
	return c, err
}

// read returns the pair on disk: fs.ErrNotExist when there is none, ErrDamaged when it is no pair.
func (s *store) read() (*tls.Certificate, error) {
	data, err := durable.ReadFile(s.fs, s.path, maxPair)
	if errors.Is(err, durable.ErrCorrupt) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	c, err := parsePair(data, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, s.path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = c
	return c, nil
}

// Update implements certificate.Store.
func (s *store) Update(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	c, err := parsePair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	if err := durable.Replace(s.fs, s.path, slices.Concat(certPEM, []byte("\n"), keyPEM), durable.Synced); err != nil {
		return nil, fmt.Errorf("keep certificate: %w", err)
	}
	s.mu.Lock()
	s.latest = c
	changed := s.changed
	s.mu.Unlock()
	if changed != nil {
		changed()
	}
	return c, nil
}

// current is the pair that was read or written last; nil: none yet.
func (s *store) current() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest
}

func (s *store) onChange(changed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = changed
}

// parsePair reads a certificate with the key that belongs to it.
func parsePair(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &c, nil
}
