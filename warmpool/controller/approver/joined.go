// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
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
	// maxNamed bounds the names in an event.
	maxNamed = 5
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
	// AddressesSince is when the addresses were approved, or the last of them was given to another node.
	AddressesSince time.Time `json:"addressesSince,omitzero"`
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

// merge adds what a decision makes known of a name. changed: the names of which there is something to write.
func merge(joined map[string]Joined, name string, news Joined) (changed []string, err error) {
	before, known := joined[name]
	if !known && len(joined) >= maxJoined {
		return nil, errFull
	}
	after := before
	if news.Key != "" && news.Key != before.Key && !news.Since.Before(before.Since) {
		after.Key, after.Since = news.Key, news.Since
	}
	if news.Addresses != nil && !news.AddressesSince.Before(before.AddressesSince) {
		var addresses []netip.Addr
		if addresses, changed = take(joined, name, news); len(changed) > 0 || !slices.Equal(addresses, before.Addresses) {
			after.Addresses, after.AddressesSince = addresses, news.AddressesSince
		}
	}
	joined[name] = after
	if !known || after.Key != before.Key || !after.AddressesSince.Equal(before.AddressesSince) || !slices.Equal(after.Addresses, before.Addresses) {
		changed = append(changed, name)
	}
	return changed, nil
}

// take makes addresses one name's alone: from those that had them before, and not from one that was given them later.
// Else who had an address would dispute it for ever, whatever a person decides. Loopback addresses are everybody's.
func take(joined map[string]Joined, name string, news Joined) (addresses []netip.Addr, changed []string) {
	addresses = slices.Clone(news.Addresses)
	for other, j := range joined {
		if other == name {
			continue
		}
		in := func(all []netip.Addr) func(netip.Addr) bool {
			return func(a netip.Addr) bool { return !a.IsLoopback() && slices.Contains(all, a) }
		}
		if j.AddressesSince.After(news.AddressesSince) {
			addresses = slices.DeleteFunc(addresses, in(j.Addresses))
		} else if rest := slices.DeleteFunc(slices.Clone(j.Addresses), in(addresses)); len(rest) < len(j.Addresses) {
			j.Addresses, j.AddressesSince = rest, news.AddressesSince
			joined[other] = j
			changed = append(changed, other)
		}
	}
	return addresses, changed
}

// dispensable names some that are remembered and have no Node, those of which nothing was heard for longest first.
func (c Cluster) dispensable() string {
	type entry struct {
		name string
		last time.Time
	}
	var all []entry
	for name, j := range c.Joined {
		last := j.Since
		if j.AddressesSince.After(last) {
			last = j.AddressesSince
		}
		all = append(all, entry{name, last})
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.name, b.name)) })
	var names []string
	for _, e := range all {
		if len(names) == maxNamed {
			break
		}
		if find(c.Nodes, e.name) == nil {
			names = append(names, e.name)
		}
	}
	if len(names) == 0 {
		return "each has a Node"
	}
	return "without a Node are " + strings.Join(names, ", ")
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
		return nil, fmt.Errorf("read who joined: %w", ExplainJoined(err, r.namespace))
	}
	return m, nil
}

// write remembers a name, on top of what was read. A conflict means that another one wrote meanwhile.
func (r *register) write(ctx context.Context, m *corev1.ConfigMap, name string, news Joined) (changed bool, err error) {
	joined := readJoined(m)
	names, err := merge(joined, name, news)
	if err != nil {
		return false, fmt.Errorf("remember node %s: %w (kubectl -n %s edit configmap %s)", name, err, r.namespace, JoinedName)
	}
	if len(names) == 0 {
		return false, nil
	}
	m = m.DeepCopy()
	m.Data = maps.Clone(m.Data)
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	for _, n := range names {
		text, err := json.Marshal(joined[n])
		if err != nil {
			return false, err
		}
		m.Data[n] = string(text)
	}
	if m.ResourceVersion != "" {
		err = r.writer.Update(ctx, m)
	} else {
		err = r.writer.Create(ctx, m)
	}
	if err != nil {
		return false, fmt.Errorf("remember node %s: %w", name, ExplainJoined(err, r.namespace))
	}
	return true, nil
}
