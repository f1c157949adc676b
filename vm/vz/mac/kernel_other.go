// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !darwin

package mac

import "errors"

var errNoMac = errors.New("this is no Mac")

// kernel answers nothing: this is no Mac.
type kernel struct{}

// String implements Sysctls.
func (kernel) String(string) (string, error) { return "", errNoMac }

// Uint32 implements Sysctls.
func (kernel) Uint32(string) (uint32, error) { return 0, errNoMac }

func fileSystem(string) (string, error) { return "", errNoMac }
