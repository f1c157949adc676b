// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// hasRival tells whether a machine other than id may live that has this identifier: one
// that was restored from the same snapshot, or the one that was saved. The framework was
// seen to refuse a restore for that alone, with the error of a file that cannot be read
// (wraithbox X02, macOS guests), and then the snapshot is whole. What cannot be found out
// counts as a rival: a snapshot is judged when nothing else can be to blame.
func (d *Driver) hasRival(id string, identifier []byte) bool {
	entries, err := os.ReadDir(filepath.Join(d.opts.StateDir, "machines"))
	if err != nil {
		return true
	}
	for _, e := range entries {
		if e.Name() != id && vm.ValidateID(e.Name()) == nil && d.hasIdentifier(e.Name(), identifier) && d.mayLive(e.Name()) {
			return true
		}
	}
	return false
}

// hasIdentifier: a machine without a record of it is not made yet.
func (d *Driver) hasIdentifier(id string, identifier []byte) bool {
	var identity layout.Identity
	err := machinedir.ReadJSON(d.machines.FS, d.machines.Dir(id), layout.IdentityFile, &identity)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	return err != nil || bytes.Equal(identity.MachineIdentifier, identifier)
}

// mayLive tells whether a machine's process may still be there, without adopting it.
func (d *Driver) mayLive(id string) bool {
	m, known, making := d.machines.Lookup(id)
	if making {
		return true
	}
	if known && m.process != nil {
		return !m.hasExited()
	}
	var r layout.Record
	if err := machinedir.ReadJSON(d.machines.FS, d.machines.Dir(id), layout.RecordFile, &r); err != nil || !r.Ready {
		// Never made completely: its shim may be there, and nobody knows its number.
		left, err := process.In(d.machines.Dir(id), d.program)
		for _, p := range left {
			p.Close()
		}
		return err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0
	}
	p, err := process.Find(r.Shim)
	if err == nil {
		p.Close()
	}
	return !errors.Is(err, process.ErrGone)
}
