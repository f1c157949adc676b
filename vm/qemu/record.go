// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// recordVersion is the version of machine.json. A driver refuses others.
const recordVersion = 1

// record is what a machine's directory says about it.
type record struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// Ready: the machine was handed to the caller of Create or Restore. Without it
	// the process that made it died on the way, and the machine is refuse.
	Ready  bool      `json:"ready"`
	Config vm.Config `json:"config"`
	// Snapshot is the directory that the machine was restored from.
	Snapshot string           `json:"snapshot,omitempty"`
	Process  process.Identity `json:"process,omitzero"`
	// Stopping: Stop asked the guest to power off, so that this is how it ends.
	Stopping bool `json:"stopping,omitempty"`
}

// maxDetailBytes is what vm.Exit promises.
const maxDetailBytes = 4 << 10

// bounded cuts a text from outside to what an exit's detail may have.
func bounded(s string) string {
	if len(s) > maxDetailBytes {
		s = s[len(s)-maxDetailBytes:]
	}
	return s
}
