// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// phase is where a machine is in its life. It only grows.
type phase int

const (
	phaseNew phase = iota
	phaseStarting
	phaseUp
	phaseEnding
	phaseExited
)

// stateOf tells a machine's state in vm's words. Being paused includes what the
// framework does to a paused machine, and running what it does to a running one: the
// steps on the way are nobody's business but the framework's.
func stateOf(p phase, s framework.State) (vm.State, error) {
	switch p {
	case phaseNew, phaseStarting:
		return "", fmt.Errorf("%w: it is being made", vm.ErrUnavailable)
	case phaseEnding, phaseExited:
		return vm.StateExited, nil
	case phaseUp:
	}
	switch s {
	case framework.StateRunning, framework.StateStarting, framework.StatePausing, framework.StateStopping:
		return vm.StateRunning, nil
	case framework.StatePaused, framework.StateResuming, framework.StateSaving, framework.StateRestoring:
		return vm.StatePaused, nil
	case framework.StateStopped, framework.StateError:
		return vm.StateExited, nil
	default:
		return "", fmt.Errorf("%w: the framework says %s", vm.ErrUnavailable, s)
	}
}

// panicMarker is how the Linux kernel announces its end on the console.
const panicMarker = "Kernel panic - not syncing"

// exitOf tells how a guest ended by itself: from the framework's state, whether it had
// been asked to, and what the console says. ok is false while it has not.
func exitOf(s framework.State, asked bool, console string) (exit vm.Exit, ok bool) {
	if i := strings.LastIndex(console, panicMarker); i >= 0 {
		line, _, _ := strings.Cut(console[i:], "\n")
		return vm.Exit{Reason: vm.ExitCrashed, Detail: "the guest's kernel panicked: " + strings.TrimSpace(line)}, true
	}
	switch {
	case s == framework.StateError:
		return vm.Exit{Reason: vm.ExitCrashed, Detail: "Virtualization.framework reports that the machine has failed"}, true
	case s == framework.StateStopped && asked:
		return vm.Exit{Reason: vm.ExitStopped, Detail: "the guest powered off when asked"}, true
	case s == framework.StateStopped:
		return vm.Exit{Reason: vm.ExitGuest, Detail: "the guest powered off"}, true
	}
	return vm.Exit{}, false
}
