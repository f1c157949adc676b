// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// TestRecycledPID: the number of a shim's process belongs to another one by now. Whatever is
// done to the machine, that one is not signalled.
func TestRecycledPID(t *testing.T) {
	program, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*process.Identity){
		"started at another time": func(i *process.Identity) { i.StartTicks-- },
		"of another boot":         func(i *process.Identity) { i.Boot = "before" },
		"another program":         func(i *process.Identity) { i.Executable = "/usr/local/bin/vk-firkin" },
	} {
		for _, ending := range []bool{false, true} { // its end was recorded, and not brought about
			victim := exec.CommandContext(t.Context(), program, "1000")
			victim.Dir = t.TempDir()
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			handle, err := process.Open(victim.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			d := &Driver{log: slog.New(slog.DiscardHandler), program: program, opts: Options{StopTimeout: time.Second}, machines: machinedir.NewRegistry[*machine](filepath.Join(t.TempDir(), "machines"))}
			dir := d.machines.Dir("old")
			r := layout.Record{Version: layout.RecordVersion, ID: "old", Ready: true, Shim: handle.Identity()}
			change(&r.Shim)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := machinedir.WriteJSON(durable.Host, dir, layout.RecordFile, r); err != nil {
				t.Fatal(err)
			}
			if ending {
				if err := machinedir.WriteJSON(durable.Host, dir, layout.ExitFile, vm.Exit{Reason: vm.ExitStopped, Time: time.Now()}); err != nil {
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
			if err := handle.Kill(); err != nil {
				t.Error(err)
			}
			handle.Wait()
			_ = victim.Wait()
			handle.Close()
		}
	}
}
