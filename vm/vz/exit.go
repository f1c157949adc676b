// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// maxDetailBytes is what vm.Exit promises.
const maxDetailBytes = 4 << 10

// kill ends the shim's process, and the machine with it. How the machine ended is
// written down before, unless that is known.
func (m *machine) kill() error {
	m.recordExit(vm.Exit{Reason: vm.ExitStopped, Time: time.Now().UTC(), Detail: "ended by force: its shim did not answer"})
	return m.process.Kill()
}

// recordExit writes down how the machine has ended and returns what is written there: the
// first exit counts, be it this one or another's who ends the machine at the same time.
func (m *machine) recordExit(exit vm.Exit) vm.Exit {
	err := machinedir.WriteJSONOnce(m.driver.machines.FS, m.dir, layout.ExitFile, exit)
	if errors.Is(err, fs.ErrExist) {
		if known, ok := m.knownExit(); ok {
			return known
		}
		// What is there is none.
		err = machinedir.NoteJSON(m.driver.machines.FS, m.dir, layout.ExitFile, exit)
	}
	if err != nil {
		// On a full disk a machine must still be stoppable.
		m.driver.log.Warn("Cannot record the exit of the machine", "machine", m.id, "err", err)
	}
	return exit
}

// knownExit is the exit that is written down.
func (m *machine) knownExit() (exit vm.Exit, ok bool) {
	if err := machinedir.ReadJSON(m.driver.machines.FS, m.dir, layout.ExitFile, &exit); err != nil || exit.Reason == "" {
		return vm.Exit{}, false
	}
	exit.Detail = bounded(exit.Detail)
	return exit, true
}

// recordedExit is how the machine has ended: as its shim, or whoever killed that, has
// written down; else by the death of its shim, which is written down now.
func (m *machine) recordedExit(died string) vm.Exit {
	if exit, ok := m.knownExit(); ok {
		return exit
	}
	return m.recordExit(vm.Exit{Reason: vm.ExitCrashed, Time: time.Now().UTC(), Detail: bounded(died)})
}

// bounded is a detail that comes back from the record as it was written: a rune that was
// cut would not.
func bounded(detail string) string {
	detail = strings.ToValidUTF8(detail, "?")
	return strings.ToValidUTF8(detail[:min(len(detail), maxDetailBytes)], "")
}
