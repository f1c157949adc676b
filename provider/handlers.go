// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// handlerTarget is the run of a container that a probe or a hook is about.
type handlerTarget struct {
	pod       *corev1.Pod
	container *corev1.Container
	// id is the run's in the machine.
	id   string
	hold *machineHold
}

// runHook runs a lifecycle hook to its end, or until ctx ends. The error says for people what
// the hook did: it becomes an event's text.
func (e *environment) runHook(context.Context, handlerTarget, *corev1.LifecycleHandler) error {
	return nil
}
