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
// the server serves them. Idempotent. Of a cluster that has them by the chart it changes nothing.
func (c *ControlPlane) InstallAPI(ctx context.Context) error {
	if c.attached != nil && c.attached.own {
		return c.controllerRights(ctx)
	}
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

const controllerName = "vk-firkin-controller"

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
	return c.AccountKubeconfig(ctx, "kube-system", "vk-firkin-controller", filepath.Join(dir, "controller.kubeconfig"))
}

// AccountKubeconfig writes a kubeconfig of a service account, good for a day, to path and returns it.
func (c *ControlPlane) AccountKubeconfig(ctx context.Context, namespace, account, path string) (string, error) {
	token, err := c.Output(ctx, "create", "token", account, "-n", namespace, "--duration=24h")
	if err != nil {
		return "", fmt.Errorf("make a token of %s: %w", account, err)
	}
	admin, err := os.ReadFile(c.Kubeconfig)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path, admin, 0o600); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"config", "set-credentials", account, "--token=" + strings.TrimSpace(token)},
		{"config", "set-context", "--current", "--user=" + account},
	} {
		set := c.Kubectl(ctx, append(args, "--kubeconfig="+path)...)
		if out, err := set.CombinedOutput(); err != nil {
			return "", fmt.Errorf("write the kubeconfig of %s: %w: %s", account, err, out)
		}
	}
	return path, nil
}
