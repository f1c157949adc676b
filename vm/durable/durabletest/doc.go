// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package durabletest is a disk for tests that breaks when it is told to: it fails, fills
// up, stalls, or goes away with its host at operation N. Every runs a test for each N.
// Conformance is what every durable.FS does.
package durabletest
