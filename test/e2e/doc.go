// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package e2e tells what vk-firkin does as the stories of its users: one file a
// story, kubectl as the client, a real control plane, real machines.
//
// By default the stories run against the embedded control plane (hack/controlplane)
// and one node process of this host; everything listens on loopback. The build tag
// is e2e; `make test-e2e` sets the environment:
//
//	FIRKIN_BIN_DIR       folder with vk-firkin
//	FIRKIN_KIT_DIR       folder with the guest kits, one subfolder an architecture
//	FIRKIN_CONTROLPLANE  the control plane's multi-call binary
//	FIRKIN_E2E_DIR       optional: keep everything here instead of a temporary folder
//
// KUBECONFIG, when it is set, chooses another cluster, whose kubectl is KUBECTL or that of the PATH. Then
// FIRKIN_NODE_IP is where its API server reaches this host (default 127.0.0.1).
package e2e
