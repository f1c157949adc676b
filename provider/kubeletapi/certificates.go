// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"sync"

	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// Certificates are what TLS is served with, and what authorities of client certificates are
// believed. Files are read again when they change on disk; a change that makes no valid pair is ignored until it does.
type Certificates struct {
	serving  func() (*tls.Certificate, error)
	clientCA dynamiccertificates.CAContentProvider
	watches  []func(ctx context.Context)
}

// OpenCertificates serves with a pair of PEM files. The authorities of client certificates
// are as for ServeWith.
func OpenCertificates(certFile, keyFile, clientCAFile string, clientCA []byte) (*Certificates, error) {
	files, err := dynamiccertificates.NewDynamicServingContentFromFiles("kubelet-api", certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("read serving certificate %q and key %q: %w", certFile, keyFile, err)
	}
	parsed := &parsedPair{content: files}
	c, err := ServeWith(parsed.current, clientCAFile, clientCA)
	if err != nil {
		return nil, err
	}
	c.watches = append(c.watches, func(ctx context.Context) { files.Run(ctx, 1) })
	return c, nil
}

// ServeWith serves with what a function says at the time. The authorities of client
// certificates are those of a PEM file, or, when none is named, the given ones.
func ServeWith(serving func() (*tls.Certificate, error), clientCAFile string, clientCA []byte) (*Certificates, error) {
	c := &Certificates{serving: serving}
	if clientCAFile == "" {
		static, err := dynamiccertificates.NewStaticCAContent("kubelet-api-clients", clientCA)
		if err != nil {
			return nil, fmt.Errorf("read client certificate authorities: %w", err)
		}
		c.clientCA = static
		return c, nil
	}
	files, err := dynamiccertificates.NewDynamicCAContentFromFile("kubelet-api-clients", clientCAFile)
	if err != nil {
		return nil, fmt.Errorf("read client certificate authorities %q: %w", clientCAFile, err)
	}
	c.clientCA = files
	c.watches = append(c.watches, func(ctx context.Context) { files.Run(ctx, 1) })
	return c, nil
}

// config asks for a client certificate and does not verify it: a client may have a
// bearer token instead. Access decides.
func (c *Certificates) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.serving() },
	}
}

// parsedPair parses a pair once for each of its contents.
type parsedPair struct {
	content dynamiccertificates.CertKeyContentProvider

	mu        sync.Mutex
	cert, key []byte           // guarded by mu; what parsed was made of
	parsed    *tls.Certificate // guarded by mu
}

func (p *parsedPair) current() (*tls.Certificate, error) {
	cert, key := p.content.CurrentCertKeyContent()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parsed == nil || !bytes.Equal(cert, p.cert) || !bytes.Equal(key, p.key) {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("parse serving certificate: %w", err)
		}
		p.cert, p.key, p.parsed = cert, key, &pair
	}
	return p.parsed, nil
}

// watch reads files again when they change, until ctx ends.
func (c *Certificates) watch(ctx context.Context) {
	var wg sync.WaitGroup
	for _, watch := range c.watches {
		wg.Go(func() { watch(ctx) })
	}
	wg.Wait()
}
