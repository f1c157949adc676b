// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Sh is /bin/sh of the busybox in the test images. It hands over to busybox's shell, but for
// "sh -c env": the shell of Debian 12's busybox (1.35) drops the variables whose names are no
// identifiers, such as a ConfigMap's "data-1", where that of the upstream image (1.37) keeps them,
// and specs look for them in that command's output.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	program, args := "/bin/busybox", os.Args
	if len(args) == 3 && args[1] == "-c" && args[2] == "env" {
		args = []string{"env"}
	}
	err := syscall.Exec(program, args, os.Environ())
	fmt.Fprintln(os.Stderr, "sh:", err)
	os.Exit(127)
}
