// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package approver decides about the certificates that vk-firkin's nodes ask for.
//
// Kubernetes approves no serving certificate by itself, since it does not know which names and
// addresses are a node's own, and it approves the client certificate of any node name to whoever has a
// bootstrap token. This package knows vk-firkin's nodes, and decides more narrowly:
//
//   - A serving certificate (kubernetes.io/kubelet-serving) goes to the node that asks for itself, for its
//     name and for addresses that its Node has and no other Node.
//   - A client certificate (kubernetes.io/kube-apiserver-client-kubelet) goes to a token of the
//     group that nodes join with, for a name that no Node has. For one that exists a person decides: who has a
//     stolen token must not become a node that has pods.
//
// What it knows to be wrong it denies, with the reason in the request. What others may decide it leaves
// alone. Renewals of client certificates, which a node asks for as itself, are approved by
// kube-controller-manager, so that they do not depend on this controller.
package approver
