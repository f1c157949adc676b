// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"fmt"
	"os"
)

// withShortPath calls use with a path of dir/name that fits a socket's address
// (108 bytes) however long dir is: through an open descriptor of the directory.
func withShortPath(dir, name string, use func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}
