// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package kubeletapi serves the part of a kubelet's HTTPS API that the API server
// and monitoring use: container logs, exec, attach, port-forward, the pods of the node,
// statistics, metrics, health.
//
// Routes, parameters, messages and status codes are those of the kubelet
// (k8s.io/kubernetes/pkg/kubelet/server); so is who may use them: whoever the API
// server lets have the node's subresources.
//
// # Exec and attach
//
// SPDY is served by k8s.io/cri-streaming, the library of CRI runtimes. WebSocket is
// our own thin layer over k8s.io/streaming's wsstream, because that library knows
// only protocol version 4, in which a client cannot end standard input and which
// client-go no longer speaks over WebSocket. virtual-kubelet's handlers are not
// used: they share that limit, cannot tell "tail 0" from no tail, and spin when a
// client ends its resize stream.
//
// The command is a process of the guest's agent that dies with the call that
// started it. A client that goes away ends the call. Attach joins a container's first
// process instead, which lives on; its output is not held for a client that does not
// take it, but dropped after 1 MiB.
//
// # Port-forward
//
// The same library serves it by SPDY and by WebSocket's v4.channel.k8s.io. An API server
// may also tunnel SPDY in a WebSocket, which is taken out of it here. Each connection is
// one call of the machine's agent, to its loopback.
package kubeletapi
