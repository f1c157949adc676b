// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import "github.com/vk-firkin/vk-firkin/vm/vz/framework"

// NewIdentifier is part of framework.Framework. Apple's are property lists of some 70
// bytes; whoever looks into one is wrong.
func (*simulator) NewIdentifier(framework.GuestOS) ([]byte, error) { return Identifier(), nil }
