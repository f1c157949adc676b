// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package framework is the seam between vk-firkin's own logic and Apple's
// Virtualization.framework: the few calls that a machine needs, and no more.
//
// Below it are two implementations. vm/vz/apple calls github.com/Code-Hex/vz/v3 one to
// one and exists on darwin/arm64 with cgo only. vm/vz/simulator enforces the
// framework's documented rules on any host, over QEMU or over nothing. Everything that
// decides anything is above it, in vm/vz.
//
// The package imports only the standard library.
package framework

import (
	"fmt"
	"net"
	"os"
)

// Framework makes virtual machines. It is safe for concurrent use.
type Framework interface {
	// Host tells what the machines run on. It may change while the process lives: the
	// screen is locked, a user logs out.
	Host() (Host, error)

	// NewIdentifier makes a fresh machine identifier for a guest of this kind:
	// VZGenericMachineIdentifier, or VZMacMachineIdentifier.
	NewIdentifier(os GuestOS) ([]byte, error)

	// New validates a configuration and makes a machine of it, stopped. The files that
	// cfg names are opened and, but for read-only disks, are this machine's alone.
	// cfg.Network and cfg.Console stay the caller's to close, and must stay open while
	// the machine lives.
	//
	// Errors are *Error: CodeInvalidVirtualMachineConfiguration, and whatever the framework says of
	// disks it cannot open.
	New(cfg Configuration) (Machine, error)
}

// Machine is one VZVirtualMachine. The framework wants its calls one at a time, from
// one queue: implementations do that themselves, callers may call from anywhere. No
// call can be cancelled; each returns when the framework's completion handler has run.
type Machine interface {
	// State is the machine's state now.
	State() State

	// Changes delivers states as the machine enters them, the last one last; steps on
	// the way may be left out when nobody reads. It is never closed.
	Changes() <-chan State

	// SaveRestoreSupport asks whether a machine of this configuration can be saved
	// (validateSaveRestoreSupport, macOS 14). Nil: it can.
	SaveRestoreSupport() error

	// Start boots a stopped machine. *Error: CodeInvalidVirtualMachineState,
	// CodeVirtualMachineLimitExceeded, CodeInternal.
	Start() error

	// Pause and Resume: running to paused and back.
	Pause() error
	Resume() error

	// RequestStop presses the guest's power button; the guest may ignore it.
	RequestStop() error

	// Stop ends the machine at once, as pulling the plug does. The state is stopped
	// when it returns.
	Stop() error

	// Save writes memory and devices of a paused machine to a new file and leaves it
	// paused. The machine's disks are not in it. *Error: CodeSave,
	// CodeInvalidVirtualMachineState.
	Save(path string) error

	// Restore loads such a file into a stopped machine that was never started and whose
	// configuration is the saved one's. The machine is paused then. *Error:
	// CodeRestore, CodeInvalidVirtualMachineState.
	Restore(path string) error

	// Connect opens a stream to a vsock port that the guest listens on. The error is
	// ErrNoListener when nothing listens. It may block as long as the guest does not
	// answer, as in a paused machine.
	Connect(port uint32) (net.Conn, error)

	// Close releases what the machine holds in this process. The framework has no call
	// for it: its machines end with their process. It stops a machine that runs.
	Close() error
}

// GuestOS is what runs in a machine.
type GuestOS string

// Guest operating systems.
const (
	Linux GuestOS = "linux"
	MacOS GuestOS = "macos"
)

// Configuration is what a machine is made of. Whatever is in it but the content of
// files must be equal when a saved machine is restored.
type Configuration struct {
	// GuestOS decides platform and boot loader: Linux gives VZGenericPlatform and
	// VZLinuxBootLoader, MacOS gives VZMacPlatform, VZMacOSBootLoader, a display of
	// 1920x1200, a Mac keyboard and a Mac trackpad.
	GuestOS     GuestOS
	CPUs        uint
	MemoryBytes uint64
	// MachineIdentifier is the framework's opaque identifier (Framework.NewIdentifier).
	MachineIdentifier []byte

	// Kernel, Initramfs and CommandLine boot a Linux guest.
	Kernel, Initramfs, CommandLine string

	// HardwareModel and AuxiliaryStorage belong to a macOS guest's installation.
	HardwareModel    []byte
	AuxiliaryStorage string

	// Disks are virtio block devices in order; raw images.
	Disks []Disk
	// MAC is the address of the one virtio network device.
	MAC net.HardwareAddr
	// Network is a connected datagram socket that carries Ethernet frames: the device's
	// VZFileHandleNetworkDeviceAttachment.
	Network *os.File
	// ConsoleIn and ConsoleOut are the ends of the guest's console (a virtio console,
	// hvc0). Both nil: none, as macOS guests have.
	ConsoleIn, ConsoleOut *os.File
	// Entropy adds a virtio entropy device; not all versions can save it.
	Entropy bool
}

// Disk is one virtio block device.
type Disk struct {
	Path     string
	ReadOnly bool
	// Serial is what the guest sees as the disk's serial number, at most 20 bytes.
	Serial string
}

// State is a VZVirtualMachineState. The numbers are Apple's.
type State int

// The framework's states.
const (
	StateStopped State = iota
	StateRunning
	StatePaused
	StateError
	StateStarting
	StatePausing
	StateResuming
	StateStopping
	StateSaving
	StateRestoring
)

var stateNames = [...]string{"stopped", "running", "paused", "error", "starting", "pausing", "resuming", "stopping", "saving", "restoring"}

// String is the state's name in Apple's words.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("state %d", int(s))
	}
	return stateNames[s]
}

// Host is what machines run on.
type Host struct {
	// OSVersion is the product version, "14.5"; OSBuild its build, "23F79". A saved
	// machine is not read by an older build, and after an upgrade perhaps not at all.
	OSVersion, OSBuild string
	// ID is a stable identifier of this host and the user account: both are what a
	// saved file is encrypted to.
	ID string
	// ScreenLocked: the console session's screen is locked. Restoring fails then, with
	// the error of a file of another host.
	ScreenLocked bool
	// Accelerator names for people how guest code is executed: "vz", "simulator".
	Accelerator string
	// SingleConn: Connect reaches vm.AgentPort only, one stream at a time. The
	// framework's vsock has no such limit, the simulator's stand-in for it has.
	SingleConn bool
	// SaveRestore: the host can save and restore machines at all: macOS 14 on Apple
	// silicon.
	SaveRestore bool
}
