// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package control tests, with the build tag e2e, the resources and the controller of warm
// pools on a real API server: what it accepts and refuses, who may write what, and
// how controllers take over from each other. Its nodes are objects that the tests write;
// it needs the control plane and bin/vk-firkin, and no machines.
package control
