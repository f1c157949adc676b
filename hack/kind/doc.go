// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package kind pins the kind with which `make e2e-kind` makes a cluster.
package kind
