// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package identity is how a node comes to its credentials and keeps them: it finds a cluster
// by a bootstrap token, asks it for a client certificate as system:node:NAME, and
// renews that and the certificate of the kubelet API before they expire.
//
// The order is a kubelet's: the token allows nothing but to ask for a certificate; the
// certificate allows what the Node authorizer allows that node. Requests, waiting and renewal are those of
// client-go (util/certificate); this package finds the cluster, keeps the files, and
// says what to do when something is refused.
//
// A folder holds all of it, readable by its owner only:
//
//	kubeconfig   where the cluster is; it names the two below
//	client.pem   certificate and key of the node, replaced at each renewal
//	ca.crt       the cluster's authority
//	serving.pem  certificate and key of the kubelet API
//	request.key  the key of a request that is not answered yet
//
// Each is replaced in one step and synced: after a crash there is the old one or the new
// one, and a token that has expired meanwhile is not needed again.
package identity
