// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-firkin/vk-firkin/provider/identity"
	"github.com/vk-firkin/vk-firkin/provider/kubeletapi"
)

// bootstrapTimeout is how long a node waits for its first certificate, as a kubelet does.
const bootstrapTimeout = 15 * time.Minute

// credentialsDir is where the identity of a node that joined is kept.
func credentialsDir(stateDir string) string { return filepath.Join(stateDir, "credentials") }

// hostName is what a node is called when nobody says.
func hostName() string {
	name, _ := os.Hostname()
	return strings.ToLower(name)
}

// completeIdentity decides as whom the node runs.
func (s *nodeSettings) completeIdentity(fault func(string, ...any)) {
	if s.Kubeconfig != "" && s.Bootstrap != "" {
		fault("--kubeconfig and --bootstrap-kubeconfig: want one of them; the latter is for a node that joins")
	}
	if s.Kubeconfig == "" {
		_, err := os.Stat(identity.KubeconfigPath(credentialsDir(s.StateDir)))
		s.joined = err == nil || s.Bootstrap != ""
	}
	if s.Kubeconfig == "" && !s.joined {
		// A user's own kubeconfig comes last: it is often an administrator's. What a service runs as from
		// now on is not found by what happens to be in the environment of who installs it.
		env := os.Getenv("KUBECONFIG")
		switch {
		case env == "":
			fault("this host has not joined a cluster: run `vk-firkin join`, or give --kubeconfig with a node's identity")
		case s.isService:
			fault("this host has not joined a cluster: run `vk-firkin join`, or give --kubeconfig with a node's identity (KUBECONFIG, which is %s, is taken for a user's own)", env)
		default:
			s.Kubeconfig = env
		}
	}
	if s.NodeName == "" && !s.joined {
		s.NodeName = hostName()
	}
	if problems := validation.IsDNS1123Subdomain(s.NodeName); s.NodeName != "" && len(problems) > 0 {
		fault("--node-name %q: %s", s.NodeName, strings.Join(problems, ", "))
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		fault("--tls-cert-file and --tls-private-key-file: want both or neither")
	}
	if s.SelfSigned && s.TLSCert != "" {
		fault("--self-signed-serving-certificate and --tls-cert-file: want one of them")
	}
}

// clusterConfig is how the API server is reached: as the node that has joined, or as a
// kubeconfig says.
func (n *node) clusterConfig(ctx context.Context) (*rest.Config, error) {
	if !n.joined {
		config, err := clientcmd.BuildConfigFromFlags("", n.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("read --kubeconfig: %w", err)
		}
		trusted := rest.CopyConfig(config)
		if err := rest.LoadTLSFiles(trusted); err != nil {
			return nil, fmt.Errorf("read --kubeconfig: %w", err)
		}
		n.authority = trusted.CAData
		return config, nil
	}
	own, err := n.openIdentity(ctx)
	if err != nil {
		return nil, err
	}
	if n.NodeName != "" && n.NodeName != own.NodeName {
		return nil, fmt.Errorf("--node-name %s: this host has joined as node %s; leave the flag out, or run `vk-firkin join --replace --node-name %s`", n.NodeName, own.NodeName, n.NodeName)
	}
	n.NodeName, n.authority = own.NodeName, own.Authority()
	n.keepers = append(n.keepers, own.Keep)
	n.certificates = append(n.certificates, own.Metrics())
	n.logger.Info("Known to the cluster", "node", n.NodeName, "until", own.Expires())
	return own.Config(), nil
}

// openIdentity reads what this host has joined with, and joins when it is told with what.
func (n *node) openIdentity(ctx context.Context) (*identity.Identity, error) {
	o := identity.Options{Logger: n.log("identity")}
	if n.Bootstrap != "" {
		o.Bootstrap = func() (*rest.Config, error) { return identity.ReadBootstrapKubeconfig(n.Bootstrap) }
	}
	own, err := identity.Open(credentialsDir(n.StateDir), o)
	if o.Bootstrap == nil || err == nil || !errors.Is(err, identity.ErrNotJoined) && !errors.Is(err, identity.ErrExpired) && !errors.Is(err, identity.ErrDamaged) {
		return own, err
	}
	name := n.NodeName
	if name == "" {
		name = hostName()
	}
	n.logger.Info("Joining the cluster", "node", name, "why", err)
	config, err := o.Bootstrap()
	if err != nil {
		return nil, err
	}
	if err := identity.Join(ctx, identity.JoinOptions{
		Dir: credentialsDir(n.StateDir), NodeName: name, Bootstrap: config, Timeout: bootstrapTimeout,
		Waiting: func(request string) { n.logger.Info("Asked for a certificate", "request", request) },
	}); err != nil {
		return nil, fmt.Errorf("join the cluster: %w", err)
	}
	return identity.Open(credentialsDir(n.StateDir), o)
}

// servingCertificates are what the kubelet API is served with: files, one that this node signs,
// or one that the cluster issues.
func (n *node) servingCertificates() (*kubeletapi.Certificates, error) {
	if n.ClientCA == "" && len(n.authority) == 0 {
		return nil, errors.New("--client-ca-file is missing, and the kubeconfig names no authority: without it the API server cannot fetch logs or run commands")
	}
	if n.TLSCert != "" {
		return kubeletapi.OpenCertificates(n.TLSCert, n.TLSKey, n.ClientCA, n.authority)
	}
	var addresses []net.IP
	for text := range strings.SplitSeq(n.ip, ",") {
		addresses = append(addresses, net.ParseIP(text))
	}
	if n.SelfSigned {
		return kubeletapi.ServeWith(identity.SelfSigned(n.NodeName, addresses), n.ClientCA, n.authority)
	}
	serving, err := identity.OpenServing(identity.ServingOptions{
		Dir: credentialsDir(n.StateDir), NodeName: n.NodeName, Addresses: addresses, Client: n.client, Logger: n.log("identity"),
	})
	if err != nil {
		return nil, fmt.Errorf("open serving certificate: %w", err)
	}
	n.keepers = append(n.keepers, serving.Keep)
	n.certificates = append(n.certificates, serving.Metrics())
	return kubeletapi.ServeWith(serving.Certificate, n.ClientCA, n.authority)
}

// showCertificates adds when certificates expire to the metrics.
func (n *node) showCertificates() error {
	for _, c := range n.certificates {
		if err := n.metrics.Registry().Register(c); err != nil {
			return fmt.Errorf("register metrics of certificates: %w", err)
		}
	}
	return nil
}
