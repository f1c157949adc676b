// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package arch holds the rules of the repository that no compiler checks: which
// package may depend on which, for linux and for darwin, and what every file and
// package must begin with.
package arch
