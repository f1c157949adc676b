// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package simulator

import (
	"errors"
	"os"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// errNoQEMU: that QEMU ends with the process that made it is Linux's PR_SET_PDEATHSIG.
var errNoQEMU = errors.New("the simulator runs QEMU on Linux only")

// QEMU is an engine of Linux hosts. Here Open refuses it.
func QEMU(QEMUOptions) Engine { return noQEMU{} }

type noQEMU struct{}

func (noQEMU) ready() error     { return errNoQEMU }
func (noQEMU) version() string  { return "" }
func (noQEMU) singleConn() bool { return true }

func (noQEMU) boot(framework.Configuration, func(error)) (guest, error) { return nil, errNoQEMU }

func (noQEMU) load(framework.Configuration, *os.File, func(error)) (guest, error) {
	return nil, errNoQEMU
}
