// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package metricsserver pins the metrics-server that `make test-top` builds and points at a node.
package metricsserver
