// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
)

// What a node that joins by a token finds the cluster by, as kubeadm makes it: a ConfigMap that anybody
// may read, with the server's address and its authority. The control plane signs it for every bootstrap token, so
// that who has a token can tell whether it was changed on its way.
const (
	clusterInfoRole = `{
  "apiVersion": "rbac.authorization.k8s.io/v1",
  "kind": "Role",
  "metadata": {"name": "firkin-cluster-info", "namespace": "kube-public"},
  "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get"]}]
}`
	clusterInfoBinding = `{
  "apiVersion": "rbac.authorization.k8s.io/v1",
  "kind": "RoleBinding",
  "metadata": {"name": "firkin-cluster-info", "namespace": "kube-public"},
  "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "firkin-cluster-info"},
  "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous"}]
}`
)

// clusterInfo is the ConfigMap.
func clusterInfo(server string, caPEM []byte) ([]byte, error) {
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: ""
  cluster:
    server: %s
    certificate-authority-data: %s
`, server, base64.StdEncoding.EncodeToString(caPEM))
	return json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]string{"name": "cluster-info", "namespace": "kube-public"},
		"data":     map[string]string{"kubeconfig": kubeconfig},
	})
}

// publishClusterInfo makes the ConfigMap and the right to read it. One that exists is replaced: the server may have
// moved to another port.
func (a *apiClient) publishClusterInfo(ctx context.Context, caPEM []byte) error {
	const (
		maps = "/api/v1/namespaces/kube-public/configmaps"
		rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-public"
	)
	object, err := clusterInfo(a.server, caPEM)
	if err != nil {
		return fmt.Errorf("write cluster-info: %w", err)
	}
	// The namespace is made by the API server a moment after it is ready.
	if err := poll(ctx, maps, func() error { return a.create(ctx, maps, object) }); err != nil {
		return err
	}
	if err := poll(ctx, maps+"/cluster-info", func() error {
		status, answer, err := a.do(ctx, http.MethodPut, maps+"/cluster-info", object)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s: %s", status, http.StatusText(status), answer)
		}
		return err
	}); err != nil {
		return err
	}
	for path, object := range map[string]string{rbac + "/roles": clusterInfoRole, rbac + "/rolebindings": clusterInfoBinding} {
		if err := poll(ctx, path, func() error { return a.create(ctx, path, []byte(object)) }); err != nil {
			return err
		}
	}
	return nil
}
