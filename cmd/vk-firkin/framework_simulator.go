// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build vzsim

package main

import (
	"errors"
	"os"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// simulatedHost names the folder of the simulated Mac, and simulatedArch its guests'
// architecture. Shims inherit them.
const (
	simulatedHost = "FIRKIN_SIMULATED_HOST"
	simulatedArch = "FIRKIN_SIMULATED_ARCH"
)

// newFramework is the simulator: a program built with the tag vzsim is for tests, and is
// the product but for what is below the seam.
func newFramework() (framework.Framework, func() (framework.Host, error), error) {
	dir := os.Getenv(simulatedHost)
	if dir == "" {
		return nil, nil, errors.New("this vk-firkin simulates Virtualization.framework: " + simulatedHost + " must name the folder of the simulated Mac")
	}
	f, err := simulator.Open(simulator.Options{HostDir: dir, Engine: simulator.QEMU(simulator.QEMUOptions{Arch: os.Getenv(simulatedArch)})})
	if err != nil {
		return nil, nil, err
	}
	return f, f.Host, nil
}
