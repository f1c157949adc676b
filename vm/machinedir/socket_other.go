// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package machinedir

import "path/filepath"

// withShortPath calls use with dir/name. Here a socket's path is limited to 104
// bytes and there is no way around it.
func withShortPath(dir, name string, use func(path string) error) error {
	return use(filepath.Join(dir, name))
}
