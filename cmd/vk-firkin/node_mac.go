// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/doctor"
	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

// examination examines the host for the node's conditions: on a Mac what doctor checks
// and may change, elsewhere nothing.
func (n *node) examination() func(context.Context) []provider.HostCondition {
	if runtime.GOOS != "darwin" {
		return nil
	}
	w := &macWatch{state: mac.This().State, user: doctor.ThisHost{}.User(), machines: func(ctx context.Context) (int, error) {
		list, err := n.driver.List(ctx)
		return len(list), err
	}}
	return w.examine
}

// macWatch examines a Mac again and again.
type macWatch struct {
	state    func(context.Context) mac.State
	machines func(context.Context) (int, error)
	user     string
	// before is how many virtual machines of others the last examination saw.
	before int
}

func (w *macWatch) examine(ctx context.Context) []provider.HostCondition {
	ours, err := w.machines(ctx)
	s := w.state(ctx)
	if err == nil {
		// Machines come and go meanwhile.
		var later int
		later, err = w.machines(ctx)
		ours = max(ours, later)
	}
	if err != nil && s.Guests.Err == nil {
		s.Guests.Err = fmt.Errorf("list machines: %w", err)
	}
	now := max(0, len(s.Guests.Value)-ours)
	// A machine that just ended may leave its process for a moment: what counts is what
	// stays until the next examination.
	others := min(now, w.before)
	w.before = now
	var list []provider.HostCondition
	for _, c := range doctor.Conditions(s, w.user, others) {
		h := provider.HostCondition{Type: corev1.NodeConditionType(c.Type), Status: corev1.ConditionFalse, Reason: c.Reason, Message: c.Message}
		switch {
		case c.Unknown:
			h.Status = corev1.ConditionUnknown
		case c.Problem:
			h.Status = corev1.ConditionTrue
		}
		list = append(list, h)
	}
	return list
}
