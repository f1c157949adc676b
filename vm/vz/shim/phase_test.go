// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

func TestStateOf(t *testing.T) {
	up := map[framework.State]vm.State{
		framework.StateStopped: vm.StateExited, framework.StateError: vm.StateExited,
		framework.StateRunning: vm.StateRunning, framework.StateStarting: vm.StateRunning,
		framework.StatePausing: vm.StateRunning, framework.StateStopping: vm.StateRunning,
		framework.StatePaused: vm.StatePaused, framework.StateResuming: vm.StatePaused,
		framework.StateSaving: vm.StatePaused, framework.StateRestoring: vm.StatePaused,
		framework.State(-1): "", framework.StateRestoring + 1: "",
	}
	for s, want := range up {
		for _, p := range []phase{phaseNew, phaseStarting, phaseUp, phaseEnding, phaseExited} {
			want := want
			switch {
			case p < phaseUp:
				want = ""
			case p > phaseUp:
				want = vm.StateExited
			}
			got, err := stateOf(p, s)
			if got != want || (want == "") != errors.Is(err, vm.ErrUnavailable) || want != "" && err != nil {
				t.Errorf("phase %d, %s: %q, %v, want %q", p, s, got, err, want)
			}
		}
	}
}

func TestExitOf(t *testing.T) {
	for _, c := range []struct {
		state   framework.State
		asked   bool
		console string
		want    vm.ExitReason // empty: it has not ended
		detail  string
	}{
		{state: framework.StateStopped, want: vm.ExitGuest, detail: "the guest powered off"},
		{state: framework.StateStopped, asked: true, want: vm.ExitStopped, detail: "when asked"},
		{state: framework.StateError, want: vm.ExitCrashed, detail: "has failed"},
		{state: framework.StateError, asked: true, want: vm.ExitCrashed, detail: "has failed"},
		{state: framework.StateRunning},
		{state: framework.StateRunning, asked: true},
		{state: framework.StatePaused},
		{state: framework.StateStarting}, {state: framework.StatePausing}, {state: framework.StateResuming},
		{state: framework.StateStopping}, {state: framework.StateSaving}, {state: framework.StateRestoring},
		{state: framework.StateRunning, console: panicMarker + ": no init\r\nmore", want: vm.ExitCrashed, detail: panicMarker + ": no init"},
		{state: framework.StateRunning, console: panicMarker, want: vm.ExitCrashed, detail: panicMarker},
		{state: framework.StateStopped, asked: true, console: "x " + panicMarker + ": late", want: vm.ExitCrashed, detail: ": late"},
		{state: framework.StateRunning, console: "Kernel panic - not synced"},
	} {
		exit, ok := exitOf(c.state, c.asked, c.console)
		if ok != (c.want != "") || exit.Reason != c.want || !strings.HasSuffix(exit.Detail, c.detail) {
			t.Errorf("%+v: %+v, %v", c, exit, ok)
		}
	}
}
