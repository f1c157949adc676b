// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package runc

const haveNsenter = false
