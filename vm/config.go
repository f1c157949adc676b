// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"errors"
	"fmt"
	"time"
)

// Shape is the size of a machine. It is fixed in a snapshot.
type Shape struct {
	VCPUs       int   `json:"vcpus"`
	MemoryBytes int64 `json:"memoryBytes"`
}

// String gives the shape as people and directory names write it: "1x256Mi".
func (s Shape) String() string {
	return fmt.Sprintf("%dx%dMi", s.VCPUs, s.MemoryBytes>>20)
}

// Limits of a shape. The lower memory bound is what the guest kit needs to boot;
// the upper ones only keep absurd requests away from the hypervisor.
const (
	MinMemoryBytes = 128 << 20
	MaxMemoryBytes = 1 << 40
	MaxVCPUs       = 64
)

// Validate reports every fault of the shape, joined, as ErrInvalidConfig.
func (s Shape) Validate() error {
	var errs []error
	if s.VCPUs < 1 || s.VCPUs > MaxVCPUs {
		errs = append(errs, fmt.Errorf("%w: %d vCPUs, want 1 to %d", ErrInvalidConfig, s.VCPUs, MaxVCPUs))
	}
	if s.MemoryBytes < MinMemoryBytes || s.MemoryBytes > MaxMemoryBytes {
		errs = append(errs, fmt.Errorf("%w: %d bytes of memory, want %d to %d", ErrInvalidConfig, s.MemoryBytes, int64(MinMemoryBytes), int64(MaxMemoryBytes)))
	}
	if s.MemoryBytes%(2<<20) != 0 {
		errs = append(errs, fmt.Errorf("%w: %d bytes of memory, want a multiple of 2 MiB", ErrInvalidConfig, s.MemoryBytes))
	}
	return errors.Join(errs...)
}

// Kit is a guest kit on disk: what a machine boots from. See vm/guest/kit for the
// format of the directory. All paths are absolute; the files never change.
type Kit struct {
	// Arch is the guest architecture in GOARCH terms.
	Arch string
	// Digest identifies the content of the kit: "sha256:" and 64 hex digits.
	Digest string
	// Kernel is the kernel image: bzImage on amd64, uncompressed Image on arm64.
	Kernel string
	// Initramfs holds the agent and the modules it loads.
	Initramfs string
	// Scratch is a sparse, formatted, empty ext4 image: the first content of every
	// scratch disk. Its size is Features.ScratchBytes.
	Scratch string
	// Cmdline is the kernel command line. A driver may append to it.
	Cmdline string
}

// GuestOS is the operating system of a machine's guest.
type GuestOS string

// Guest operating systems. The empty string is Linux.
const (
	GuestLinux GuestOS = "linux"
	GuestMacOS GuestOS = "macos"
)

// MacOS is an installation of macOS: what a machine of GuestMacOS boots from. The files
// are absolute paths and never change: every machine gets clones of its own, disk and
// auxiliary storage together, since they are of no use without each other.
type MacOS struct {
	// Digest identifies the installation: "sha256:" and 64 hex digits.
	Digest string
	// Disk is the raw image of the system's disk.
	Disk string
	// AuxiliaryStorage is what the boot loader keeps beside it.
	AuxiliaryStorage string
	// HardwareModel and MachineIdentifier are the framework's opaque data.
	HardwareModel     []byte
	MachineIdentifier []byte
}

// Config is what a machine is made of.
type Config struct {
	Shape Shape
	// GuestOS is GuestLinux when empty.
	GuestOS GuestOS `json:",omitempty"`
	// Kit boots a Linux guest.
	Kit Kit
	// MacOS boots a macOS guest, which has no image slots: Images is empty then.
	MacOS *MacOS `json:",omitempty"`
	// Images are the files behind the image slots, in slot order, absolute paths,
	// each exactly Features.SlotBytes long and unchanged until the machine is
	// deleted. Fewer than Features.ImageSlots leave the others empty; more are
	// ErrInvalidConfig. An empty string leaves that slot empty.
	Images []string
	// Saveable: the machine may be saved. It costs a private copy of its memory
	// where the driver otherwise shares it with a snapshot.
	Saveable bool
}

// State is what a machine does, in CRI's words where it has them.
type State string

// The states of a machine.
const (
	// StateRunning: the vCPUs run.
	StateRunning State = "running"
	// StatePaused: memory is there, the vCPUs stand still.
	StatePaused State = "paused"
	// StateExited: it will never run again; Wait tells how it ended.
	StateExited State = "exited"
)

// ExitReason tells how a machine ended.
type ExitReason string

// The ways a machine ends.
const (
	// ExitStopped: by Stop or Delete.
	ExitStopped ExitReason = "stopped"
	// ExitGuest: the guest powered off or rebooted by itself.
	ExitGuest ExitReason = "guest"
	// ExitCrashed: the guest's kernel panicked or the hypervisor died.
	ExitCrashed ExitReason = "crashed"
)

// Exit is how and when a machine ended.
type Exit struct {
	Reason ExitReason `json:"reason"`
	Time   time.Time  `json:"time"`
	// Detail is for people: a signal, a message of the hypervisor. At most 4 KiB.
	Detail string `json:"detail,omitempty"`
}

// MaxIDBytes bounds an id so that a machine's sockets keep under the 104 bytes
// that macOS allows for a unix socket's path.
const MaxIDBytes = 32

// ValidateID checks that id is usable as a machine's id: 1 to MaxIDBytes of
// [a-z0-9-], starting with a letter or digit. The error is ErrInvalidConfig.
func ValidateID(id string) error {
	if len(id) == 0 || len(id) > MaxIDBytes {
		return fmt.Errorf("%w: id %q has %d bytes, want 1 to %d", ErrInvalidConfig, id, len(id), MaxIDBytes)
	}
	for i, c := range []byte(id) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (c != '-' || i == 0) {
			return fmt.Errorf("%w: id %q, want only a-z, 0-9 and inner dashes", ErrInvalidConfig, id)
		}
	}
	return nil
}

// Validate reports every fault of the configuration that can be seen without
// touching the disk, joined, as ErrInvalidConfig.
func (c Config) Validate(f Features) error {
	if c.GuestOS == GuestMacOS {
		return errors.Join(c.Shape.Validate(), c.validateMacOS(f))
	}
	errs := []error{c.Shape.Validate()}
	if c.GuestOS != "" && c.GuestOS != GuestLinux {
		errs = append(errs, fmt.Errorf("%w: guest operating system %q, want linux or macos", ErrInvalidConfig, c.GuestOS))
	}
	if c.Kit.Arch != f.Arch {
		errs = append(errs, fmt.Errorf("%w: guest kit is for %q, this driver runs %q", ErrInvalidConfig, c.Kit.Arch, f.Arch))
	}
	if c.Kit.Kernel == "" || c.Kit.Initramfs == "" || c.Kit.Scratch == "" || c.Kit.Digest == "" {
		errs = append(errs, fmt.Errorf("%w: guest kit is incomplete", ErrInvalidConfig))
	}
	if len(c.Images) > f.ImageSlots {
		errs = append(errs, fmt.Errorf("%w: %d images for %d image slots", ErrInvalidConfig, len(c.Images), f.ImageSlots))
	}
	return errors.Join(errs...)
}

func (c Config) validateMacOS(f Features) error {
	var errs []error
	if f.MacOSGuests == 0 {
		errs = append(errs, fmt.Errorf("%w: this driver on this host runs no macOS guests", ErrInvalidConfig))
	}
	if m := c.MacOS; m == nil || m.Digest == "" || m.Disk == "" || m.AuxiliaryStorage == "" || len(m.HardwareModel) == 0 || len(m.MachineIdentifier) == 0 {
		errs = append(errs, fmt.Errorf("%w: the macOS installation is incomplete", ErrInvalidConfig))
	}
	if len(c.Images) > 0 {
		errs = append(errs, fmt.Errorf("%w: %d images for a macOS guest, which has no image slots", ErrInvalidConfig, len(c.Images)))
	}
	return errors.Join(errs...)
}
