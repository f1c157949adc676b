// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !vzsim && darwin && arm64 && cgo

package main

import (
	"context"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz/apple"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

// hostTimeout bounds the commands that tell what this Mac is.
const hostTimeout = 30 * time.Second

// newFramework is Apple's framework on this Mac, and what is known of the Mac.
func newFramework() (framework.Framework, func() (framework.Host, error), error) {
	m := mac.This()
	host := func() (framework.Host, error) {
		ctx, cancel := context.WithTimeout(context.Background(), hostTimeout)
		defer cancel()
		return m.Host(ctx)
	}
	return apple.New(host), host, nil
}
