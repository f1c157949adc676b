// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package systemd runs a real systemd as the first process of namespaces of its own, for
// tests of what it does with our unit. It has the host's files and network, an empty /run,
// no units but stubs and the test's, and control groups of its own; when it ends, all that
// it started ends with it. Linux, and root's to start: elsewhere tests are skipped.
package systemd
