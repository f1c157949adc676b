// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vk-firkin/vk-firkin/crds"
)

// InstallAPI makes the cluster know vk-firkin's resources and rights, and returns when
// the server serves them. Idempotent.
func (c *ControlPlane) InstallAPI(ctx context.Context) error {
	apply := c.Kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-f", "-")
	apply.Stdin = bytes.NewReader(crds.YAML())
	if out, err := apply.CombinedOutput(); err != nil {
		return fmt.Errorf("install resources: %w: %s", err, out)
	}
	if _, err := c.Output(ctx, "wait", "--for=condition=Established", "--timeout=60s", "crd",
		"snapshottemplates.firkin.dev", "warmpools.firkin.dev", "nodeledgers.firkin.dev"); err != nil {
		return fmt.Errorf("wait for resources: %w", err)
	}
	return nil
}

// controllerAccount is who the controller is in the cluster: a service account that
// has the controller's rights and no more.
const controllerAccount = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: vk-firkin-controller, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: vk-firkin-controller}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: vk-firkin-controller}
subjects: [{kind: ServiceAccount, name: vk-firkin-controller, namespace: kube-system}]
`

// controllerKubeconfig writes a kubeconfig of the controller's own service account to dir.
func (c *ControlPlane) controllerKubeconfig(ctx context.Context, dir string) (string, error) {
	apply := c.Kubectl(ctx, "apply", "-f", "-")
	apply.Stdin = strings.NewReader(controllerAccount)
	if out, err := apply.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make the controller's account: %w: %s", err, out)
	}
	token, err := c.Output(ctx, "create", "token", "vk-firkin-controller", "-n", "kube-system", "--duration=24h")
	if err != nil {
		return "", fmt.Errorf("make the controller's token: %w", err)
	}
	admin, err := os.ReadFile(c.Kubeconfig)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "controller.kubeconfig")
	if err := os.WriteFile(path, admin, 0o600); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"config", "set-credentials", "controller", "--token=" + strings.TrimSpace(token)},
		{"config", "set-context", "--current", "--user=controller"},
	} {
		set := c.Kubectl(ctx, append(args, "--kubeconfig="+path)...)
		if out, err := set.CombinedOutput(); err != nil {
			return "", fmt.Errorf("write the controller's kubeconfig: %w: %s", err, out)
		}
	}
	return path, nil
}
