// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"path/filepath"
)

// maxSocketPath is the longest path a unix socket address holds on every system we run on: 104
// bytes with the terminating zero on macOS (108 on Linux).
const maxSocketPath = 103

// Layout names every file of a control plane's directory. It is the absolute directory itself.
type Layout string

// NewLayout returns the layout of dir, which need not exist. It fails when the path is so long that
// no unix socket could be opened in it.
func NewLayout(dir string) (Layout, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve control plane directory %q: %w", dir, err)
	}
	l := Layout(abs)
	if n := len(l.EtcdSocket()); n > maxSocketPath {
		return "", fmt.Errorf("control plane directory %q is too long: its socket %q has %d bytes, a unix socket holds %d; choose a path at least %d bytes shorter",
			abs, l.EtcdSocket(), n, maxSocketPath, n-maxSocketPath)
	}
	return l, nil
}

func (l Layout) path(elem ...string) string {
	return filepath.Join(append([]string{string(l)}, elem...)...)
}

// AdminKubeconfig is the kubeconfig of the cluster's administrator (group system:masters).
func (l Layout) AdminKubeconfig() string { return l.path("admin.kubeconfig") }

// CACertificate is the cluster's certificate authority, for servers and for clients.
func (l Layout) CACertificate() string { return l.path("ca.crt") }

// Bin is the folder of symlinks that give the one binary its names; envtest takes it as KUBEBUILDER_ASSETS.
func (l Layout) Bin(name string) string { return l.path("bin", name) }

// Log is the log of one component. The log of the run before has ".previous" appended.
func (l Layout) Log(component string) string { return l.path("logs", component+".log") }

// EtcdData is etcd's data folder.
func (l Layout) EtcdData() string { return l.path("etcd") }

// EtcdSocket is the only client address of etcd.
func (l Layout) EtcdSocket() string { return l.path("etcd.sock") }

// Lock is held for as long as an `up` runs on the directory.
func (l Layout) Lock() string { return l.path("lock") }

// Port holds the API server's last port in decimal, so that kubeconfigs survive a restart.
func (l Layout) Port() string { return l.path("port") }

// PKI is a file among the keys and certificates, which only their owner may read.
func (l Layout) PKI(elem ...string) string {
	return l.path(append([]string{"pki"}, elem...)...)
}

// ComponentKubeconfig is the kubeconfig with which a component of the control plane calls the API server.
func (l Layout) ComponentKubeconfig(component string) string {
	return l.PKI(component + ".kubeconfig")
}

// make creates the folders.
func (l Layout) make() error {
	for _, d := range []string{string(l), l.path("bin"), l.path("logs"), l.EtcdData(), l.PKI(), l.PKI("nodes")} {
		// 0700: the folder holds the keys of the whole cluster, and etcd insists on it for its own.
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("create control plane directory: %w", err)
		}
	}
	return nil
}

// writeFile replaces the file at once, so that no reader ever sees half of it. Without a change it does nothing.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already once renamed
	_, err = f.Write(data)
	if cerr := f.Chmod(mode); err == nil {
		err = cerr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
