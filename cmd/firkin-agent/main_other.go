// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "firkin-agent: runs only as PID 1 of a Linux guest; the agent for macOS guests is not written yet")
	os.Exit(1)
}
