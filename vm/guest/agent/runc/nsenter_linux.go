// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package runc

// The part of libcontainer that enters namespaces before the Go runtime starts.
import _ "github.com/opencontainers/runc/libcontainer/nsenter"

const haveNsenter = true
