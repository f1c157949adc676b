// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

func TestGuestExit(t *testing.T) {
	for _, c := range []struct {
		name, run, reason, console string
		stopping                   bool
		want                       vm.ExitReason
		detail                     string
	}{
		{name: "powers off", run: runShutdown, reason: "guest-shutdown", want: vm.ExitGuest, detail: "powered off"},
		{name: "reboots", run: runShutdown, reason: "guest-reset", want: vm.ExitGuest, detail: "rebooted"},
		{name: "stopped", run: runShutdown, reason: "guest-shutdown", stopping: true, want: vm.ExitStopped},
		{name: "event missed", run: runShutdown, want: vm.ExitGuest},
		{name: "panic device", run: runPanicked, want: vm.ExitCrashed},
		{name: "panic and reboot", run: runShutdown, reason: "guest-reset", console: "x\nKernel panic - not syncing: boom\r\nmore", want: vm.ExitCrashed, detail: "not syncing: boom"},
		{name: "panic while stopping", run: runShutdown, reason: "guest-reset", console: "Kernel panic - not syncing: boom", stopping: true, want: vm.ExitCrashed},
		{name: "prints a panic, powers off", run: runShutdown, reason: "guest-shutdown", console: "Kernel panic - not syncing: a lie", want: vm.ExitGuest},
		{name: "hypervisor's error", run: runInternal, want: vm.ExitCrashed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := guestExit(c.run, c.reason, c.stopping, c.console)
			if got.Reason != c.want || !strings.Contains(got.Detail, c.detail) || got.Detail == "" {
				t.Errorf("exit is %+v, want reason %q and detail with %q", got, c.want, c.detail)
			}
		})
	}
	if got := guestExit(runPanicked, "", false, "Kernel panic - not syncing: "+strings.Repeat("x", 1<<20)); len(got.Detail) > maxDetailBytes {
		t.Errorf("the guest made a detail of %d bytes", len(got.Detail))
	}
}

func TestCPUIdentity(t *testing.T) {
	const info = "processor\t: 0\nvendor_id\t: V\nmodel name\t: M\nstepping\t: 1\ncpu MHz\t\t: %d\nflags\t\t: a b\n\nprocessor\t: 1\nmodel name\t: other\n"
	first, second := cpuIdentity(fmt.Sprintf(info, 1000)), cpuIdentity(fmt.Sprintf(info, 2000))
	if first != "V|M|1|a b" || first != second {
		t.Errorf("identity is %q and %q, want one that ignores frequency and other processors", first, second)
	}
}

func TestRecordKeepsIdentity(t *testing.T) {
	want := record{Version: recordVersion, ID: "a", Created: time.Unix(1, 0).UTC(), Ready: true, Process: process.Identity{PID: 7, StartTicks: 8, Boot: "b", Executable: "/x"}}
	dir := t.TempDir()
	if err := machinedir.WriteJSON(durable.Host, dir, recordFile, want); err != nil {
		t.Fatal(err)
	}
	var got record
	if err := machinedir.ReadJSON(durable.Host, dir, recordFile, &got); err != nil || got.Process != want.Process {
		t.Errorf("identity is %+v, %v, want %+v", got.Process, err, want.Process)
	}
}
