// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package layout is what lies on disk for a machine of the vz driver and for its
// snapshots: names, records, and what must be equal for a machine to be restored. The
// node writes a machine's record, its shim what it knows; both read.
package layout

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// Files of a machine's directory, beside the control socket.
const (
	// RecordFile is written by the node before the shim starts, and again when the
	// machine is handed over.
	RecordFile = "machine.json"
	// IdentityFile is written by the shim before the machine starts.
	IdentityFile = "identity.json"
	// ExitFile is written once, by the shim or, when that is gone, by the node.
	ExitFile = "exit.json"
	// ScratchFile is the machine's own disk, raw.
	ScratchFile = "scratch.img"
	// DiskFile and AuxiliaryFile are those of a macOS guest.
	DiskFile      = "disk.img"
	AuxiliaryFile = "auxiliary.img"
	// ConsoleFile and ConsoleBefore hold the end of the console.
	ConsoleFile   = "console"
	ConsoleBefore = "console.before"
)

// Files of a snapshot. Disks have the names that they have in a machine's directory.
const (
	// SnapshotFile is written last.
	SnapshotFile = "vz.json"
	// StateFile is what the framework saves: memory and devices, encrypted to the host.
	StateFile = "machine.vzstate"
)

// RecordVersion and SnapshotVersion are the versions of these records. Others are
// refused, never guessed at.
const (
	RecordVersion   = 1
	SnapshotVersion = 1
)

// DeviceVersion counts the changes of the devices that a machine has and of its kernel's
// command line: snapshots made before a change are not restored after it.
const DeviceVersion = 1

// Record is what the node writes about a machine.
type Record struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// Ready: the machine was handed to the caller of Create or Restore. Without it the
	// process that made it died on the way, and the machine is refuse.
	Ready  bool      `json:"ready"`
	Config vm.Config `json:"config"`
	// EmptySlot is the file behind image slots without an image.
	EmptySlot string `json:"emptySlot"`
	// Snapshot is the directory that the machine is restored from. Empty: it boots.
	Snapshot string `json:"snapshot,omitempty"`
	// Compatibility is the driver's Features.Compatibility.
	Compatibility string `json:"compatibility"`
	// Shim is the machine's process.
	Shim process.Identity `json:"shim,omitzero"`
}

// Identity is what the framework wants to be equal at restore and nobody chooses.
type Identity struct {
	MachineIdentifier []byte `json:"machineIdentifier"`
}

// Snapshot is what a snapshot's own record says.
type Snapshot struct {
	Version       int        `json:"version"`
	Compatibility string     `json:"compatibility"`
	DeviceVersion int        `json:"deviceVersion"`
	Shape         vm.Shape   `json:"shape"`
	GuestOS       vm.GuestOS `json:"guestOS"`
	// BootDigest is that of the guest kit, or of the macOS installation.
	BootDigest string   `json:"bootDigest"`
	Identity   Identity `json:"identity"`
	// Configuration is the digest of the framework's configuration.
	Configuration string `json:"configuration"`
	// Sizes are those of the other files, by name.
	Sizes map[string]int64 `json:"sizes"`
	// Digest is over all of the above: a changed record is not believed.
	Digest string `json:"digest"`
}

// Sum computes the record's digest.
func (s Snapshot) Sum() string {
	s.Digest = ""
	data, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("a snapshot's record cannot be written: %v", err)) // it has no such type
	}
	return Digest(data)
}

// Digest is "sha256:" and the SHA-256 of data.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// BootDigest is what a configuration boots from.
func BootDigest(cfg vm.Config) string {
	if cfg.GuestOS == vm.GuestMacOS && cfg.MacOS != nil {
		return cfg.MacOS.Digest
	}
	return cfg.Kit.Digest
}

// guestOS is the guest's operating system with the default filled in.
func guestOS(cfg vm.Config) vm.GuestOS {
	if cfg.GuestOS == "" {
		return vm.GuestLinux
	}
	return cfg.GuestOS
}

// Disks are the files that belong to a machine and to its snapshots.
func Disks(cfg vm.Config) []string {
	if guestOS(cfg) == vm.GuestMacOS {
		return []string{DiskFile, AuxiliaryFile}
	}
	return []string{ScratchFile}
}

// NewSnapshot begins the record of a snapshot of a machine.
func NewSnapshot(r Record, identity Identity, configuration string) Snapshot {
	return Snapshot{
		Version:       SnapshotVersion,
		Compatibility: r.Compatibility,
		DeviceVersion: DeviceVersion,
		Shape:         r.Config.Shape,
		GuestOS:       guestOS(r.Config),
		BootDigest:    BootDigest(r.Config),
		Identity:      identity,
		Configuration: configuration,
		Sizes:         map[string]int64{},
	}
}

// ReadSnapshot reads the record of the snapshot in dir and checks that a machine of
// this configuration can be restored from it, as far as that can be told without the
// framework and without reading the files. Errors are vm.ErrSnapshotInvalid;
// vm.ErrUnavailable when the files may be whole but could not be looked at.
func ReadSnapshot(dir string, cfg vm.Config, compatibility string) (Snapshot, error) {
	var s Snapshot
	invalid := func(format string, args ...any) (Snapshot, error) {
		return s, fmt.Errorf("%w: "+format, append([]any{vm.ErrSnapshotInvalid}, args...)...)
	}
	data, err := machinedir.ReadRecord(durable.Host, dir, SnapshotFile)
	if err != nil {
		return s, fmt.Errorf("%w: read %s: %w", blame(err), SnapshotFile, err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return invalid("%s: %w", SnapshotFile, err)
	}
	if s.Version != SnapshotVersion {
		return invalid("it has version %d, this program reads %d", s.Version, SnapshotVersion)
	}
	// Not its digest alone: a change that JSON does not care for is a damage as well.
	if written, err := machinedir.EncodeJSON(s); err != nil || s.Digest != s.Sum() || !bytes.Equal(written, data) {
		return invalid("its record %s is damaged", SnapshotFile)
	}
	switch {
	case s.Compatibility != compatibility:
		return invalid("it was made by another host, another build of its operating system, or another driver")
	case s.DeviceVersion != DeviceVersion:
		return invalid("it was made with devices of version %d, this program makes %d", s.DeviceVersion, DeviceVersion)
	case s.Shape != cfg.Shape:
		return invalid("it has shape %s, want %s", s.Shape, cfg.Shape)
	case s.GuestOS != guestOS(cfg):
		return invalid("its guest is %s, want %s", s.GuestOS, guestOS(cfg))
	case s.BootDigest != BootDigest(cfg):
		return invalid("it was made from %s, want %s", s.BootDigest, BootDigest(cfg))
	case len(s.Identity.MachineIdentifier) == 0:
		return invalid("it has no machine identifier")
	}
	for _, name := range append([]string{StateFile}, Disks(cfg)...) {
		want, ok := s.Sizes[name]
		if !ok {
			return invalid("its record does not know %s", name)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return s, fmt.Errorf("%w: %w", blame(err), err)
		}
		if !info.Mode().IsRegular() || info.Size() != want {
			return invalid("%s has %d bytes, want %d", name, info.Size(), want)
		}
	}
	return s, nil
}

// hostErrors are about the host or the account, and say nothing of the file that was to
// be read.
var hostErrors = []error{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.EPERM, syscall.EINTR, syscall.EAGAIN,
	syscall.ESTALE, syscall.ETIMEDOUT,
}

// blame is the kind of an error of reading a snapshot's file: a snapshot that could not be
// read for want of a descriptor is whole, and must not be quarantined.
func blame(err error) error {
	for _, h := range hostErrors {
		if errors.Is(err, h) {
			return vm.ErrUnavailable
		}
	}
	return vm.ErrSnapshotInvalid
}
