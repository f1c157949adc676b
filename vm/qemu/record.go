// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// recordVersion is the version of machine.json. A driver refuses others.
const recordVersion = 1

// maxRecordBytes bounds the JSON files of machines and snapshots: paths and
// numbers, a few KiB.
const maxRecordBytes = 1 << 20

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
	Snapshot string   `json:"snapshot,omitempty"`
	Process  identity `json:"process,omitzero"`
	// Stopping: Stop asked the guest to power off, so that this is how it ends.
	Stopping bool `json:"stopping,omitempty"`
}

// identity tells a process from every other one that ever had its number.
type identity struct {
	PID int `json:"pid"`
	// StartTicks is the start time in clock ticks since the host booted.
	StartTicks uint64 `json:"startTicks"`
	// Boot is the host's boot id.
	Boot string `json:"boot"`
	// Executable is the program's resolved path.
	Executable string `json:"executable"`
}

// writeJSON replaces dir/name in one step. It does not sync: see the package
// comment.
func writeJSON(dir, name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	temp := filepath.Join(dir, "."+name+".new")
	if err := os.WriteFile(temp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, noSpace(err))
	}
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("write %s: %w", name, noSpace(err))
	}
	return nil
}

// readJSON reads a file of at most maxRecordBytes into v.
func readJSON(dir, name string, v any) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err != nil {
		return err
	}
	if len(data) > maxRecordBytes {
		return fmt.Errorf("%s has more than %d bytes", name, maxRecordBytes)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// noSpace adds vm.ErrNoSpace to errors that mean it.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.ENOMEM) {
		return fmt.Errorf("%w: %w", vm.ErrNoSpace, err)
	}
	return err
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
