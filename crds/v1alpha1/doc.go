// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the API of warm pools: SnapshotTemplate says what a machine is
// prepared with, WarmPool how many machines of a template stand ready, NodeLedger what
// one node is to keep and what it has.
//
// +kubebuilder:object:generate=true
// +groupName=firkin.dev
package v1alpha1
