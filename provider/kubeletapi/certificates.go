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

// Certificates are the files that TLS is served with. They are read again when they
// change on disk; a change that makes no valid pair is ignored until it does.
type Certificates struct {
	serving  *dynamiccertificates.DynamicCertKeyPairContent
	clientCA *dynamiccertificates.DynamicFileCAContent

	mu        sync.Mutex
	cert, key []byte           // guarded by mu; what parsed was made of
	parsed    *tls.Certificate // guarded by mu
}

// OpenCertificates reads the serving pair and the authorities of client
// certificates, all PEM files.
func OpenCertificates(certFile, keyFile, clientCAFile string) (*Certificates, error) {
	serving, err := dynamiccertificates.NewDynamicServingContentFromFiles("kubelet-api", certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("read serving certificate %q and key %q: %w", certFile, keyFile, err)
	}
	clientCA, err := dynamiccertificates.NewDynamicCAContentFromFile("kubelet-api-clients", clientCAFile)
	if err != nil {
		return nil, fmt.Errorf("read client certificate authorities %q: %w", clientCAFile, err)
	}
	return &Certificates{serving: serving, clientCA: clientCA}, nil
}

// config asks for a client certificate and does not verify it: a client may have a
// bearer token instead. Access decides.
func (c *Certificates) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current() },
	}
}

func (c *Certificates) current() (*tls.Certificate, error) {
	cert, key := c.serving.CurrentCertKeyContent()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parsed == nil || !bytes.Equal(cert, c.cert) || !bytes.Equal(key, c.key) {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("parse serving certificate: %w", err)
		}
		c.cert, c.key, c.parsed = cert, key, &pair
	}
	return c.parsed, nil
}

// watch reads the files again when they change, until ctx ends.
func (c *Certificates) watch(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { c.serving.Run(ctx, 1) })
	wg.Go(func() { c.clientCA.Run(ctx, 1) })
	wg.Wait()
}
