// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package charts tests what of the Helm chart can be tested without Helm: that its copies are
// those of the repository, that its values are documented, and that the metrics it shows exist.
// test/e2e/chart renders and installs it.
package charts
