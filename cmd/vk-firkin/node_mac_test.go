// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

func conditionOf(t *testing.T, list []provider.HostCondition, kind corev1.NodeConditionType) provider.HostCondition {
	t.Helper()
	for _, c := range list {
		if c.Type == kind {
			return c
		}
	}
	t.Fatalf("no condition %s in %+v", kind, list)
	return provider.HostCondition{}
}

// The virtual machines of others are told when they stay, not when a machine of ours
// comes or goes while they are counted.
func TestMacWatchCountsWhatStays(t *testing.T) {
	const kind = "firkin.dev/UnknownVirtualMachines"
	guests, ours := 0, []int{0}
	w := &macWatch{
		state: func(context.Context) mac.State {
			return mac.State{Guests: mac.Known[[]mac.Process]{Value: make([]mac.Process, guests)}}
		},
		machines: func(context.Context) (int, error) {
			n := ours[0]
			if len(ours) > 1 {
				ours = ours[1:]
			}
			return n, nil
		},
	}
	for i, step := range []struct {
		guests int
		ours   []int // before and after
		want   corev1.ConditionStatus
	}{
		{0, []int{0}, "False"},
		{3, []int{2, 3}, "False"}, // one is being made
		{3, []int{3, 2}, "False"}, // one is being deleted
		{4, []int{3}, "False"},    // one ended and its process is still there
		{3, []int{3}, "False"},
		{5, []int{3}, "False"}, // two are not ours: seen once
		{5, []int{3}, "True"},
		{4, []int{3}, "True"},
		{3, []int{3}, "False"},
	} {
		guests, ours = step.guests, step.ours
		if c := conditionOf(t, w.examine(t.Context()), kind); c.Status != step.want {
			t.Errorf("step %d: %+v, want %s", i, c, step.want)
		}
	}
}

func TestMacWatch(t *testing.T) {
	w := &macWatch{user: "ci",
		state: func(context.Context) mac.State {
			return mac.State{
				Screen:     mac.Known[mac.Screen]{Value: mac.Screen{Locked: true}},
				GUISession: mac.Known[bool]{Value: true}, Keychain: mac.Known[mac.Keychain]{Err: errors.New("silence")},
			}
		},
		machines: func(context.Context) (int, error) { return 0, errors.New("no driver") },
	}
	list := w.examine(t.Context())
	for kind, want := range map[corev1.NodeConditionType]provider.HostCondition{
		"firkin.dev/ScreenLocked":           {Status: "True", Reason: "ScreenLocked", Message: "sysadminctl"},
		"firkin.dev/GUISessionMissing":      {Status: "False", Reason: "GUISessionPresent", Message: "user ci"},
		"firkin.dev/KeychainLocked":         {Status: "Unknown", Reason: "NotKnown", Message: "silence"},
		"firkin.dev/UnknownVirtualMachines": {Status: "Unknown", Reason: "NotKnown", Message: "no driver"},
	} {
		if c := conditionOf(t, list, kind); c.Status != want.Status || c.Reason != want.Reason || !strings.Contains(c.Message, want.Message) {
			t.Errorf("got %+v, want %+v", c, want)
		}
	}
}

// Only a Mac is examined.
func TestExamination(t *testing.T) {
	if got := (&node{}).examination() != nil; got != (runtime.GOOS == "darwin") {
		t.Errorf("examined: %v on %s", got, runtime.GOOS)
	}
}
