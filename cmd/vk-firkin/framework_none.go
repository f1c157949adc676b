// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !vzsim && !(darwin && arm64 && cgo)

package main

import (
	"fmt"
	"runtime"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// newFramework: there is none here.
func newFramework() (framework.Framework, func() (framework.Host, error), error) {
	hint := "it needs macOS 14 or later on Apple silicon; --driver qemu works on Linux"
	if runtime.GOOS == "darwin" {
		hint = "this vk-firkin was built without cgo: make build on a Mac with Xcode's command line tools makes one that has it"
	}
	return nil, nil, fmt.Errorf("%w: no Virtualization.framework in this program for %s/%s; %s", vm.ErrNotSupported, runtime.GOOS, runtime.GOARCH, hint)
}
