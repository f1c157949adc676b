// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package status is what a node tells the people of its host about itself: the form of
// vk-firkin status -o json, which scripts read, and the refusals that a node remembers.
package status
