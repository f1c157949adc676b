// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package helm pins the Helm that `make helm` builds, with which the chart is checked and installed.
package helm
