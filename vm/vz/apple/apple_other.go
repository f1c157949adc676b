// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !(darwin && arm64 && cgo)

package apple

import (
	"errors"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// errNotBuilt tells what to do about it, since on a Mac it is the build that is at fault.
var errNotBuilt = errors.New("this binary has no Virtualization.framework: it was not built on a Mac with Apple silicon and CGO_ENABLED=1 (make build does that)")

// New gives a framework whose every call fails: this binary was built without it.
func New(func() (framework.Host, error)) framework.Framework { return unavailable{} }

// NewMachineIdentifier fails: this binary was built without the framework.
func NewMachineIdentifier() ([]byte, error) { return nil, errNotBuilt }

// NewMacMachineIdentifier fails: this binary was built without the framework.
func NewMacMachineIdentifier() ([]byte, error) { return nil, errNotBuilt }

type unavailable struct{}

func (unavailable) Host() (framework.Host, error) { return framework.Host{}, errNotBuilt }

func (unavailable) New(framework.Configuration) (framework.Machine, error) { return nil, errNotBuilt }

func (unavailable) NewIdentifier(framework.GuestOS) ([]byte, error) { return nil, errNotBuilt }
