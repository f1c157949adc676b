// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package chart tests, with the build tag e2e, the Helm chart with a real Helm: what it renders
// for each release of Kubernetes that it supports, which needs no cluster, and a release's life on a real
// API server, from install to uninstall. It needs bin/helm and bin/vk-firkin, the second part the
// control plane too, and no machines.
package chart
