// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// TestRecycledPID: the number of a machine's process belongs to another one by now. Whatever is
// done to the machine, that one is not signalled.
func TestRecycledPID(t *testing.T) {
	for name, change := range map[string]func(*process.Identity){
		"started at another time": func(i *process.Identity) { i.StartTicks-- },
		"of another boot":         func(i *process.Identity) { i.Boot = "before" },
		"another program":         func(i *process.Identity) { i.Executable = "/usr/bin/qemu-system-x86_64" },
	} {
		for _, ending := range []bool{false, true} { // its end was recorded, and not brought about
			victim, program := sleeper(t, t.TempDir())
			handle, err := process.Open(victim.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			defer handle.Close()
			root := t.TempDir()
			d := &Driver{log: slog.New(slog.DiscardHandler), binary: program, machines: machinedir.NewRegistry[*machine](filepath.Join(root, "machines"))}
			dir := d.machines.Dir("old")
			r := record{Version: recordVersion, ID: "old", Ready: true, Process: handle.Identity()}
			change(&r.Process)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := machinedir.WriteJSON(durable.Host, dir, recordFile, r); err != nil {
				t.Fatal(err)
			}
			if ending {
				if err := machinedir.WriteJSON(durable.Host, dir, exitFile, vm.Exit{Reason: vm.ExitStopped, Time: time.Now()}); err != nil {
					t.Fatal(err)
				}
			}
			m, err := d.Load(t.Context(), "old")
			if err != nil {
				t.Fatalf("%s: load: %v", name, err)
			}
			if state, err := m.State(t.Context()); err != nil || state != vm.StateExited {
				t.Errorf("%s: the machine is %q, %v", name, state, err)
			}
			if err := m.Stop(t.Context(), 0); err != nil {
				t.Errorf("%s: stop: %v", name, err)
			}
			if err := m.Delete(t.Context()); err != nil {
				t.Errorf("%s: delete: %v", name, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if p, err := process.Find(handle.Identity()); err != nil {
				t.Errorf("%s, ending %t: a process that has nothing to do with the machine: %v", name, ending, err)
			} else {
				p.Close()
			}
		}
	}
}
