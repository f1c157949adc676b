// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/base64"
	"fmt"
)

// kubeconfig renders a kubeconfig with one cluster and one user. Certificates are inside, so the file
// can be copied anywhere. user and server come from this program and are plain in YAML.
func kubeconfig(server, user string, caPEM, certPEM, keyPEM []byte) []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: vk-firkin
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %q
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: vk-firkin
  context:
    cluster: vk-firkin
    user: %q
current-context: vk-firkin
`, server, b64(caPEM), user, b64(certPEM), b64(keyPEM), user)
}

// serverURL is the API server's address on loopback.
func serverURL(port int) string {
	return fmt.Sprintf("https://127.0.0.1:%d", port)
}
