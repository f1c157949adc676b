// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	corev1 "k8s.io/api/core/v1"
)

// terminationMessagePath is where a container leaves its last words; "" when it has no such
// file. macOS has nothing below /dev but devices, so that what the API server gives every
// container is not there.
func terminationMessagePath(c *corev1.Container, macOS bool) string {
	if macOS && c.TerminationMessagePath == corev1.TerminationMessagePathDefault {
		return ""
	}
	return c.TerminationMessagePath
}
