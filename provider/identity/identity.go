// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/connrotation"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Identity is that of a node that has joined. Its certificate is renewed while Keep runs.
type Identity struct {
	// NodeName is the name that the certificate gives.
	NodeName string

	store     *store
	config    *rest.Config
	authority []byte
	bootstrap func() (*rest.Config, error) // nil: there is none
	counters  *counters
	logger    *slog.Logger
}

// Options of an Identity.
type Options struct {
	// Bootstrap may ask for a certificate when the node's own has expired; nil means that nobody does.
	Bootstrap func() (*rest.Config, error)
	// Logger; nil means silence.
	Logger *slog.Logger
}

// Open reads what Join has kept. ErrNotJoined: nothing; ErrExpired and ErrDamaged: nothing of use.
func Open(dir string, o Options) (*Identity, error) {
	path := KubeconfigPath(dir)
	data, err := durable.ReadFile(durable.Host, path, maxClusterInfo)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, remedy(ErrNotJoined, "there is no %s: run `vk-firkin join`", path)
	case errors.Is(err, durable.ErrCorrupt):
		return nil, remedy(ErrDamaged, "%w: run `vk-firkin join` again", err)
	case err != nil:
		return nil, fmt.Errorf("read the node's kubeconfig: %w", err)
	}
	server, trust, err := clusterOf(data)
	if err != nil {
		return nil, remedy(ErrDamaged, "%s: %w: run `vk-firkin join` again", path, err)
	}
	i := &Identity{store: newStore(filepath.Join(dir, clientFile)), bootstrap: o.Bootstrap, counters: newCounters("client"), logger: o.Logger}
	if i.logger == nil {
		i.logger = slog.New(slog.DiscardHandler)
	}
	current, err := i.store.read()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, remedy(ErrDamaged, "%w: run `vk-firkin join` again", err)
	case errors.Is(err, ErrDamaged):
		return nil, fmt.Errorf("%w: run `vk-firkin join` again", err)
	case err != nil:
		return nil, err
	case time.Now().After(current.Leaf.NotAfter):
		return nil, remedy(ErrExpired, "at %s, since this host could not renew it before: run `vk-firkin join` again, with a new token", current.Leaf.NotAfter.Format(time.RFC3339))
	}
	if i.NodeName, err = nameOf(current.Leaf); err != nil {
		return nil, remedy(ErrDamaged, "%s: %w: run `vk-firkin join` again", path, err)
	}
	i.counters.expires(current.Leaf)
	if err := i.dial(server, trust); err != nil {
		return nil, err
	}
	return i, nil
}

// clusterOf is where the cluster of a kubeconfig is. Its user is in a file beside it, which is
// read as the store of certificates.
func clusterOf(kubeconfig []byte) (server string, trust rest.TLSClientConfig, err error) {
	config, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return "", trust, err
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil || config.Clusters[current.Cluster] == nil {
		return "", trust, errors.New("it names no cluster")
	}
	c := config.Clusters[current.Cluster]
	if len(c.CertificateAuthorityData) == 0 {
		return "", trust, errors.New("it has no certificate-authority-data, which vk-firkin join writes there")
	}
	return c.Server, rest.TLSClientConfig{CAData: c.CertificateAuthorityData, ServerName: c.TLSServerName}, CheckServer(c.Server)
}

// dial makes the configuration of clients. All share connections, each of which is
// authenticated by the certificate that it was opened with: all are closed when another one is there.
func (i *Identity) dial(server string, t rest.TLSClientConfig) error {
	tlsConfig, err := rest.TLSConfigFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: t.CAData, ServerName: t.ServerName}})
	if err != nil {
		return fmt.Errorf("trust the cluster's authority: %w", err)
	}
	tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if c := i.store.current(); c != nil {
			return c, nil
		}
		return &tls.Certificate{}, nil // the server says that it does not know us
	}
	// As client-go's own transport has them.
	dialer := connrotation.NewDialer((&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext)
	i.authority = t.CAData
	i.config = &rest.Config{
		Host: server,
		Transport: utilnet.SetTransportDefaults(&http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, TLSClientConfig: tlsConfig,
			MaxIdleConnsPerHost: 25, DialContext: dialer.DialContext,
		}),
	}
	i.store.onChange(func() {
		c := i.store.current().Leaf
		i.counters.expires(c)
		i.logger.Info("Renewed the node's certificate; connections to the API server are opened anew", "expires", c.NotAfter)
		dialer.CloseAll()
	})
	return nil
}

// Config is how clients reach the API server, as the node, whatever its certificate is at the time.
func (i *Identity) Config() *rest.Config { return rest.CopyConfig(i.config) }

// Authority is the cluster's, as PEM.
func (i *Identity) Authority() []byte { return i.authority }

// Expires is when the node's certificate does.
func (i *Identity) Expires() time.Time { return i.store.current().Leaf.NotAfter }

// Keep renews the certificate, at 70 to 90 % of its time, until ctx ends.
func (i *Identity) Keep(ctx context.Context) error {
	own, err := kubernetes.NewForConfig(i.config)
	if err != nil {
		return err
	}
	return keep(ctx, &certificate.Config{
		Name:       "client-certificate",
		SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
		GetUsages:  certificate.DefaultKubeletClientGetUsages,
		Template:   clientTemplate(i.NodeName),
		ClientsetFn: func(current *tls.Certificate) (kubernetes.Interface, error) {
			switch {
			case current != nil:
				return own, nil
			case i.bootstrap != nil:
				config, err := i.bootstrap()
				if err != nil {
					return nil, err
				}
				return kubernetes.NewForConfig(config)
			}
			return nil, remedy(ErrExpired, "at %s, since this host could not renew it before: stop this node, run `vk-firkin join` again with a new token, and start it", i.Expires().Format(time.RFC3339))
		},
		CertificateStore:        i.store,
		CertificateRenewFailure: i.counters,
	})
}

// keep runs a certificate manager until ctx ends. The manager reports to klog what goes wrong.
func keep(ctx context.Context, config *certificate.Config) error {
	manager, err := certificate.NewManager(config)
	if err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	manager.Start()
	<-ctx.Done()
	// It has no way to wait for it; what it holds is a request at most.
	manager.Stop()
	return nil
}
