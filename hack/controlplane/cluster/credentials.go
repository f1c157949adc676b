// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// nodeName is what Kubernetes accepts as the name of a Node: a DNS-1123 subdomain. Slashes and dots
// alone are refused by it, so that the name is safe as a file name.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// NodeCredentials says for which node credentials are made, and where they go.
type NodeCredentials struct {
	// Dir is the directory of a control plane on which `up` has run once.
	Dir string
	// Name is the node's name.
	Name string
	// IPs are the addresses at which the API server finds the node.
	IPs []net.IP
	// Out is the folder that receives kubeconfig, kubelet.crt, kubelet.key and client-ca.crt.
	Out string
}

// WriteNodeCredentials gives a node the rights of a kubelet: a kubeconfig with the identity
// system:node:NAME, the serving certificate that the API server trusts for logs and exec, and the authority
// with which the node checks the API server's client certificate. It can be repeated: certificates that still
// fit are kept (they are stored with the control plane), and the API server's current port is taken over. It
// needs no running control plane.
func WriteNodeCredentials(c NodeCredentials) error {
	if !nodeName.MatchString(c.Name) || len(c.Name) > 253 {
		return fmt.Errorf("node name %q: not a DNS-1123 subdomain (lower case letters, digits, '-' and '.')", c.Name)
	}
	l, err := NewLayout(c.Dir)
	if err != nil {
		return err
	}
	port, err := readPort(l)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no control plane in %s: run `controlplane up --dir %s` first", l, l)
	}
	if err != nil {
		return err
	}
	caPEM, err := os.ReadFile(l.PKI("ca.crt"))
	if err != nil {
		return fmt.Errorf("read the authority of the control plane: %w", err)
	}
	caKeyPEM, err := os.ReadFile(l.PKI("ca.key"))
	if err != nil {
		return fmt.Errorf("read the authority of the control plane: %w", err)
	}
	ca, err := parsePair(caPEM, caKeyPEM)
	if err != nil {
		return fmt.Errorf("read the authority of the control plane: %w", err)
	}
	for _, dir := range []string{l.PKI("nodes", c.Name), c.Out} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create folder for credentials of node %q: %w", c.Name, err)
		}
	}
	now := time.Now()
	client, err := ensurePair(l.PKI("nodes", c.Name, "client"), nodeClientSpec(c.Name), ca, now)
	if err != nil {
		return err
	}
	serving, err := ensurePair(l.PKI("nodes", c.Name, "serving"), nodeServingSpec(c.Name, c.IPs), ca, now)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{"kubeconfig", kubeconfig(serverURL(port), nodeUserPrefix+c.Name, ca.certPEM, client.certPEM, client.keyPEM), 0o600},
		{"kubelet.key", serving.keyPEM, 0o600},
		{"kubelet.crt", serving.certPEM, 0o644},
		{"client-ca.crt", ca.certPEM, 0o644},
	} {
		if err := writeFile(filepath.Join(c.Out, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	return nil
}
