// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package chart tests, with the build tag e2e, the Helm chart with a real Helm: what it renders
// for each release of Kubernetes that it supports, which needs no cluster, a release's life on a real
// API server, from install to uninstall, and the same with the controller in a machine of this project's own
// node. It needs bin/helm and bin/vk-firkin, all but the first part the control plane too, and the last the guest kits.
package chart
