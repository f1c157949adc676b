// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// JoinedName is the ConfigMap, in the namespace of the controller's lease, that remembers who joined.
const JoinedName = "vk-firkin-joined"

const (
	// maxJoined bounds what one ConfigMap remembers, whose limit is 1 MiB: an entry has at most a
	// name of 253 bytes and maxAddresses addresses of 39, and 200 bytes usually.
	maxJoined = 1000
	// maxAddresses bounds those of one certificate.
	maxAddresses = 8
)

// Joined is what is remembered of a name that a certificate was approved for. It outlives the request,
// which the cluster deletes after an hour, and the Node: who has the certificate can use and renew it without either.
type Joined struct {
	// Key is the SHA-256 of the public key that joined; empty for a node that is known by its addresses only.
	Key string `json:"key,omitempty"`
	// Addresses are those of the serving certificate that was approved last.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Since is when the key joined.
	Since time.Time `json:"since,omitzero"`
}

// keyOf tells public keys apart.
func keyOf(request *x509.CertificateRequest) string {
	sum := sha256.Sum256(request.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// readJoined reads the ConfigMap. What cannot be read is somebody's all the same.
func readJoined(m *corev1.ConfigMap) map[string]Joined {
	joined := make(map[string]Joined, len(m.Data))
	for name, text := range m.Data {
		var j Joined
		if json.Unmarshal([]byte(text), &j) != nil {
			j = Joined{Key: "unreadable"}
		}
		joined[name] = j
	}
	return joined
}

// merge adds what a decision makes known of a name. changed: there is something to write.
func merge(joined map[string]Joined, name string, news Joined) (changed bool, err error) {
	before, known := joined[name]
	if !known && len(joined) >= maxJoined {
		if news.Key == "" { // a node that is there has its certificate all the same
			return false, nil
		}
		return false, errFull
	}
	after := before
	if news.Key != "" && news.Key != before.Key {
		after.Key, after.Since = news.Key, news.Since
	}
	if news.Addresses != nil {
		after.Addresses = news.Addresses
	}
	joined[name] = after
	return !known || after.Key != before.Key || !slices.Equal(after.Addresses, before.Addresses), nil
}

var errFull = fmt.Errorf("%d names of nodes are remembered, which is all that is: remove those that are gone for good", maxJoined)

// register is the ConfigMap in which names are remembered. It is read from the API server each time: a
// copy that is behind would give a name twice.
type register struct {
	live      client.Reader
	writer    client.Writer
	namespace string
}

// read returns the ConfigMap as it is, an empty one when there is none.
func (r *register) read(ctx context.Context) (*corev1.ConfigMap, error) {
	m := &corev1.ConfigMap{}
	err := r.live.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: JoinedName}, m)
	if apierrors.IsNotFound(err) {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: JoinedName}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read who joined: %w", err)
	}
	return m, nil
}

// write remembers a name, on top of what was read. A conflict means that another one wrote meanwhile.
func (r *register) write(ctx context.Context, m *corev1.ConfigMap, name string, news Joined) error {
	joined := readJoined(m)
	changed, err := merge(joined, name, news)
	if err != nil {
		return fmt.Errorf("remember node %s: %w (kubectl -n %s edit configmap %s)", name, err, r.namespace, JoinedName)
	}
	if !changed {
		return nil
	}
	text, err := json.Marshal(joined[name])
	if err != nil {
		return err
	}
	m = m.DeepCopy()
	m.Data = maps.Clone(m.Data)
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	m.Data[name] = string(text)
	if m.ResourceVersion != "" {
		err = r.writer.Update(ctx, m)
	} else {
		err = r.writer.Create(ctx, m)
	}
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("remember node %s: %w: make the ConfigMap %s of namespace %s, and let the controller get and update it, as the chart and crds/rbac.yaml do", name, err, JoinedName, r.namespace)
	}
	return fmt.Errorf("remember node %s: %w", name, err)
}
