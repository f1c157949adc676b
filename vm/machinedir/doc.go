// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package machinedir is what drivers keep in a machine's directory, and how: small JSON
// records that are replaced in one step, cloned disks, unix sockets. Failures for want of
// space wrap vm.ErrNoSpace.
package machinedir
