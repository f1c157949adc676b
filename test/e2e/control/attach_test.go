// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package control

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// A cluster that somebody else runs is used by its kubeconfig alone: nodes get certificates of it, one that is somebody
// else's is left alone, and those that were made are gone at the end.
func TestAttach(t *testing.T) {
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "only.kubeconfig")
	text, err := os.ReadFile(plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kubeconfig, text, 0o600); err != nil {
		t.Fatal(err)
	}
	options := cluster.AttachOptions{
		Kubeconfig: kubeconfig, Kubectl: []string{os.Getenv("FIRKIN_CONTROLPLANE"), "kubectl"}, NodeIP: "192.0.2.7", Dir: filepath.Join(dir, "a"),
	}
	foreign := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "foreign"}, Spec: corev1.NodeSpec{Unschedulable: true}}
	if err := admin.Create(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, foreign) })
	c, err := cluster.Attach(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.PrepareNode(t.Context(), cluster.NodeOptions{Name: "foreign", Dir: dir}); err == nil || !strings.Contains(err.Error(), "has a node foreign already") {
		t.Errorf("a node that is somebody else's: %v", err)
	}
	if there, err := c.HasController(t.Context()); there || err != nil {
		t.Errorf("the cluster has a controller: %v, %v", there, err)
	}

	n, err := c.PrepareNode(t.Context(), cluster.NodeOptions{Name: "attached", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if n.IP != "192.0.2.7" {
		t.Errorf("the node's address is %s", n.IP)
	}
	own := filepath.Join(dir, "attached")
	serving, err := tls.LoadX509KeyPair(filepath.Join(own, "kubelet.crt"), filepath.Join(own, "kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}
	authority := x509.NewCertPool()
	if ca, err := os.ReadFile(filepath.Join(own, "client-ca.crt")); err != nil || !authority.AppendCertsFromPEM(ca) {
		t.Fatalf("the authority of the API server's clients: %v", err)
	}
	for _, name := range []string{"192.0.2.7", "attached"} { // the API server finds it by either
		if _, err := serving.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: authority}); err != nil {
			t.Errorf("the serving certificate is not good for %s: %v", name, err)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(own, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	asNode, err := newClient(config)
	if err != nil {
		t.Fatal(err)
	}
	// NodeRestriction lets it make its own, and no other.
	if err := asNode.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "attached"}}); err != nil {
		t.Errorf("the node makes itself: %v", err)
	}

	// It takes pods now, and so would those of another run's stories.
	options.Dir = filepath.Join(dir, "b")
	if _, err := cluster.Attach(t.Context(), options); err == nil || !strings.Contains(err.Error(), "would come to attached too") {
		t.Errorf("attached beside a node that takes pods: %v", err)
	}
	c.Stop()
	if out := kubectl(t, "get", "nodes", "-o", "name"); strings.Contains(out, "attached") || !strings.Contains(out, "node/foreign") {
		t.Errorf("the nodes that are left: %s", out)
	}
	if out := kubectl(t, "get", "csr", "-o", "name"); strings.Contains(out, "vk-firkin-e2e-") {
		t.Errorf("requests are left: %s", out)
	}
}
