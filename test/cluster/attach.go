// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/vk-firkin/vk-firkin/crds"
)

// AttachOptions say which cluster is used, and how this host looks from it.
type AttachOptions struct {
	// Kubeconfig is what the variable KUBECONFIG has: a path, or several. Its current context must have the
	// rights of an administrator.
	Kubeconfig string
	// Kubectl is the command; empty: kubectl.
	Kubectl []string
	// NodeIP is where the API server reaches this host, 127.0.0.1 by default.
	NodeIP string
	// Dir is where credentials are written.
	Dir string
}

// attached is a cluster that somebody else runs. Whatever is made in it is noted, to be removed.
type attached struct {
	kubectl []string
	nodeIP  string
	nodes   []string
	// own tells that the resources were there already: the cluster's, to be left as they are.
	own bool
}

// Attach uses a cluster that runs already, with what its kubeconfig gives and nothing else. Pods of the stories
// name no node: one whose other nodes take pods too is refused.
func Attach(ctx context.Context, o AttachOptions) (*ControlPlane, error) {
	if len(o.Kubectl) == 0 {
		o.Kubectl = []string{"kubectl"}
	}
	o.NodeIP = cmp.Or(o.NodeIP, "127.0.0.1")
	if net.ParseIP(o.NodeIP) == nil {
		return nil, fmt.Errorf("%q is not the address of this host", o.NodeIP)
	}
	c := &ControlPlane{Dir: filepath.Join(o.Dir, "cp"), attached: &attached{kubectl: o.Kubectl, nodeIP: o.NodeIP}}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	// One file with one context, which stays what it is when the user changes theirs.
	view := exec.CommandContext(ctx, o.Kubectl[0], append(slices.Clone(o.Kubectl[1:]), "config", "view", "--raw", "--minify", "--flatten")...)
	view.Env = append(os.Environ(), "KUBECONFIG="+o.Kubeconfig)
	var complaints bytes.Buffer
	view.Stderr = &complaints
	config, err := view.Output()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig %s with %s: %w: %s", o.Kubeconfig, o.Kubectl[0], err, complaints.Bytes())
	}
	c.Kubeconfig = filepath.Join(c.Dir, "admin.kubeconfig")
	if err := os.WriteFile(c.Kubeconfig, config, 0o600); err != nil {
		return nil, err
	}
	if err := c.writeAuthority(); err != nil {
		return nil, err
	}
	out, err := c.Output(ctx, "get", "nodes", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("ask the cluster of %s for its nodes: %w", o.Kubeconfig, err)
	}
	var nodes corev1.NodeList
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		return nil, fmt.Errorf("nodes of the cluster: %w", err)
	}
	if others := takingPods(nodes.Items); len(others) > 0 {
		return nil, fmt.Errorf("pods of the stories name no node, and would come to %s too: use a cluster that is for tests (hack/e2e-kind.sh makes one), "+
			"or keep them away (kubectl cordon, or a taint with the effect NoSchedule)", strings.Join(others, ", "))
	}
	_, err = c.Output(ctx, "get", "crd", "snapshottemplates.firkin.dev", "warmpools.firkin.dev", "nodeledgers.firkin.dev")
	c.attached.own = err == nil
	return c, nil
}

// Attached tells that somebody else runs the cluster: its processes and its authority's key are out of reach.
func (c *ControlPlane) Attached() bool { return c.attached != nil }

// NodeIP is the address of this host's nodes where their options name none.
func (c *ControlPlane) NodeIP() string {
	if c.attached != nil {
		return c.attached.nodeIP
	}
	return "127.0.0.1"
}

// takingPods are the nodes to which a pod comes that tolerates nothing but the taint of our own.
func takingPods(nodes []corev1.Node) []string {
	var names []string
	for _, n := range nodes {
		kept := n.Spec.Unschedulable || slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
			return t.Effect != corev1.TaintEffectPreferNoSchedule && t.Key != "firkin.dev/machine"
		})
		if !kept {
			names = append(names, n.Name)
		}
	}
	return names
}

// writeAuthority writes the certificate of the cluster's authority to where the embedded control plane has its own.
func (c *ControlPlane) writeAuthority() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	if len(config.CAData) == 0 {
		return errors.New("the kubeconfig has no certificate authority (certificate-authority-data): nodes could not know the cluster by it")
	}
	return os.WriteFile(filepath.Join(c.Dir, "ca.crt"), config.CAData, 0o600)
}

// HasController tells whether a controller of this project runs in the cluster, as the chart has it.
func (c *ControlPlane) HasController(ctx context.Context) (bool, error) {
	out, err := c.Output(ctx, "get", "deployments", "-A", "-l", "app.kubernetes.io/name=vk-firkin,app.kubernetes.io/component=controller",
		"-o", "jsonpath={.items[*].status.availableReplicas}")
	return strings.Trim(out, "0 \n") != "", err
}

// controllerRights makes the controller's ClusterRole alone, for a cluster that has the rest by the chart: what
// belongs to the release stays the release's.
func (c *ControlPlane) controllerRights(ctx context.Context) error {
	all, err := crds.All()
	if err != nil {
		return err
	}
	for _, object := range all {
		if object.GetKind() != "ClusterRole" || object.GetName() != controllerName {
			continue
		}
		if _, err := c.Output(ctx, "get", "clusterrole", controllerName); err == nil {
			return nil
		}
		manifest, err := yaml.Marshal(object.Object)
		if err != nil {
			return err
		}
		create := c.Kubectl(ctx, "create", "-f", "-")
		create.Stdin = bytes.NewReader(manifest)
		if out, err := create.CombinedOutput(); err != nil {
			return fmt.Errorf("make the controller's rights: %w: %s", err, out)
		}
		return nil
	}
	return fmt.Errorf("the manifests have no ClusterRole %s", controllerName)
}

// claim notes a node that is about to be made, and refuses one that is somebody else's.
func (c *ControlPlane) claim(ctx context.Context, name string) error {
	if c.attached == nil || slices.Contains(c.attached.nodes, name) {
		return nil
	}
	out, err := c.Output(ctx, "get", "node", name, "--ignore-not-found", "-o", "name")
	if err != nil {
		return err
	}
	if out != "" {
		return fmt.Errorf("the cluster has a node %s already: delete it if it is left from an earlier run (kubectl delete node %s)", name, name)
	}
	c.attached.nodes = append(c.attached.nodes, name)
	return nil
}

// detach removes the nodes that were made.
func (c *ControlPlane) detach(ctx context.Context) error {
	if len(c.attached.nodes) == 0 {
		return nil
	}
	_, err := c.Output(ctx, append([]string{"delete", "node", "--ignore-not-found"}, c.attached.nodes...)...)
	return err
}
