// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

const (
	sectorBytes = 512
	// serialBytes: VZVirtioBlockDeviceConfiguration.blockDeviceIdentifier is ASCII of at
	// most 20 bytes (its header).
	serialBytes = 20
	// maxDisks is what the engines have addresses for.
	maxDisks = 20
)

// Opaque data of the framework begins so in the simulator: who makes it up himself is
// found out, as by VZMacMachineIdentifier's initWithDataRepresentation, which returns nil
// for what is none (header).
var (
	identifierMagic = []byte("simulated machine identifier ")
	hardwareMagic   = []byte("simulated hardware model ")
)

// Identifier makes a machine identifier for Configuration.MachineIdentifier, of a Linux
// or a macOS guest.
func Identifier() []byte { return append(slices.Clone(identifierMagic), randomHex(16)...) }

// HardwareModel makes a hardware model for Configuration.HardwareModel, which this host
// supports. Models of equal name are equal.
func HardwareModel(name string) []byte { return append(slices.Clone(hardwareMagic), name...) }

// invalid is what a configuration gets that does not validate.
func invalid(format string, args ...any) error {
	return framework.NewError(framework.CodeInvalidVirtualMachineConfiguration, "Invalid virtual machine configuration. "+format, args...)
}

// rule is one thing that holds of every configuration. Rules look at values only.
type rule struct {
	name  string
	check func(h Host, c framework.Configuration) error
}

// configurationRules are checked in order when a machine is made
// (VZVirtualMachineConfiguration.validateWithError and the initializers of its parts).
var configurationRules = []rule{
	{"CPU count", func(h Host, c framework.Configuration) error {
		// header: between minimumAllowedCPUCount (1) and maximumAllowedCPUCount.
		if c.CPUs < 1 || c.CPUs > h.MaxCPUs {
			return invalid("The number of CPUs, %d, is not between 1 and %d.", c.CPUs, h.MaxCPUs)
		}
		return nil
	}},
	{"memory size", func(h Host, c framework.Configuration) error {
		// header of VZVirtualMachineConfiguration.memorySize: a multiple of 1 MiB, at most
		// maximumAllowedMemorySize.
		if c.MemoryBytes == 0 || c.MemoryBytes%(1<<20) != 0 {
			return invalid("The memory size %d is not a multiple of 1 megabyte.", c.MemoryBytes)
		}
		if c.MemoryBytes > h.MaxMemoryBytes {
			return invalid("The memory size %d exceeds %d.", c.MemoryBytes, h.MaxMemoryBytes)
		}
		return nil
	}},
	{"machine identifier", func(_ Host, c framework.Configuration) error {
		if len(c.MachineIdentifier) > 0 && !bytes.HasPrefix(c.MachineIdentifier, identifierMagic) {
			return invalid("The machine identifier's data representation is invalid.")
		}
		return nil
	}},
	{"boot loader of a Linux guest", func(_ Host, c framework.Configuration) error {
		if c.GuestOS != framework.Linux {
			return nil
		}
		if c.Kernel == "" {
			return invalid("The Linux boot loader has no kernel.")
		}
		if len(c.HardwareModel) > 0 || c.AuxiliaryStorage != "" {
			return invalid("A generic platform has neither hardware model nor auxiliary storage.")
		}
		return readable(c.Kernel, c.Initramfs)
	}},
	{"platform of a macOS guest", func(_ Host, c framework.Configuration) error {
		if c.GuestOS != framework.MacOS {
			return nil
		}
		switch {
		case c.Kernel != "" || c.Initramfs != "" || c.CommandLine != "":
			return invalid("The macOS boot loader takes no kernel.")
		case len(c.HardwareModel) == 0:
			// Code-Hex/vz panics over an empty slice: peers must never pass one.
			return invalid("The Mac platform has no hardware model.")
		case !bytes.HasPrefix(c.HardwareModel, hardwareMagic):
			return invalid("The hardware model is not supported on this host.") // header: isSupported
		case c.AuxiliaryStorage == "":
			return invalid("The Mac platform has no auxiliary storage.")
		case len(c.Disks) == 0:
			return invalid("The macOS boot loader needs a storage device.")
		}
		return nil
	}},
	{"guest OS", func(_ Host, c framework.Configuration) error {
		if c.GuestOS != framework.Linux && c.GuestOS != framework.MacOS {
			return invalid("There is no platform for the guest OS %q.", c.GuestOS)
		}
		return nil
	}},
	{"MAC address", func(_ Host, c framework.Configuration) error {
		// header of VZMACAddress: 48 bits; of VZNetworkDeviceConfiguration: unicast.
		if len(c.MAC) != 6 || c.MAC[0]&1 != 0 {
			return invalid("The MAC address %q is not a unicast address of 48 bits.", c.MAC)
		}
		return nil
	}},
	{"network attachment", func(_ Host, c framework.Configuration) error {
		// header of VZFileHandleNetworkDeviceAttachment: a connected datagram socket;
		// anything else raises NSInvalidArgumentException, which ends the process.
		if c.Network == nil {
			return invalid("The network device has no attachment.")
		}
		if err := datagramSocket(c.Network); err != nil {
			return invalid("The file handle of the network attachment is no connected datagram socket: %v.", err)
		}
		return nil
	}},
	{"disk serial numbers", func(_ Host, c framework.Configuration) error {
		if len(c.Disks) > maxDisks {
			return invalid("%d storage devices are too many.", len(c.Disks))
		}
		for _, d := range c.Disks {
			if len(d.Serial) > serialBytes {
				return invalid("The block device identifier %q is longer than %d bytes.", d.Serial, serialBytes)
			}
			for i := range len(d.Serial) {
				if d.Serial[i] < 0x20 || d.Serial[i] > 0x7e {
					return invalid("The block device identifier %q is not ASCII.", d.Serial)
				}
			}
		}
		return nil
	}},
}

func readable(paths ...string) error {
	for _, path := range paths {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return invalid("The boot loader is invalid: %v.", err)
		}
		info, err := f.Stat()
		f.Close()
		if err != nil || !info.Mode().IsRegular() {
			return invalid("The boot loader is invalid: %s is not a file.", path)
		}
	}
	return nil
}

// held is an opened file of a machine with its claim.
type held struct {
	file  *os.File
	claim *claim
}

func (h held) release() {
	if h.file != nil {
		h.file.Close()
	}
	h.claim.release()
}

// openDisk opens one storage device's image and makes it the machine's own.
func (s *simulator) openDisk(d framework.Disk) (held, error) {
	h, err := s.openExclusive(d.Path, d.ReadOnly)
	if errors.Is(err, errTaken) {
		// mvm #549: this error, with this text. One that writes wants the image alone, and
		// nobody reads beside it.
		return held{}, invalid("The storage device attachment is invalid.")
	}
	if err != nil {
		// The framework's own code when the image is missing: unproven on hardware.
		return held{}, framework.NewError(framework.CodeInvalidDiskImage, "Invalid disk image. %v.", err)
	}
	info, err := h.file.Stat()
	switch {
	case err != nil:
		err = framework.NewError(framework.CodeInvalidDiskImage, "Invalid disk image. %v.", err)
	case !info.Mode().IsRegular():
		err = framework.NewError(framework.CodeInvalidDiskImage, "Invalid disk image. %s is not a file.", d.Path)
	case info.Size() == 0 || info.Size()%sectorBytes != 0:
		// header of VZDiskImageStorageDeviceAttachment: a raw image's size is a multiple of
		// 512 bytes.
		err = framework.NewError(framework.CodeInvalidDiskImage, "Invalid disk image. The size %d of %s is not a multiple of %d bytes.", info.Size(), d.Path, sectorBytes)
	}
	if err != nil {
		h.release()
		return held{}, err
	}
	return h, nil
}

// openAuxiliary opens a macOS guest's auxiliary storage, which is always written.
func (s *simulator) openAuxiliary(path string) (held, error) {
	h, err := s.openExclusive(path, false)
	if errors.Is(err, errTaken) {
		// vphone-cli #87: this error, with this text, when another machine has it.
		return held{}, invalid("Failed to lock auxiliary storage.")
	}
	if err != nil {
		return held{}, invalid("The auxiliary storage is invalid: %v.", err)
	}
	return h, nil
}

func (s *simulator) openExclusive(path string, readOnly bool) (held, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return held{}, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return held{}, err
	}
	c, err := s.claim("file-"+fileKey(info), readOnly)
	if err != nil {
		f.Close()
		return held{}, fmt.Errorf("%s: %w", path, err)
	}
	return held{f, c}, nil
}

// saveSupport is validateSaveRestoreSupportWithError: nil, or why a machine of this
// configuration can be neither saved nor restored on h.
func saveSupport(h Host, c framework.Configuration) error {
	if !h.savesAndRestores() {
		return framework.ErrUnsupportedOS
	}
	// Not on all versions (Code-Hex/vz #209 leaves it out; wraithbox X02 saves with one on
	// macOS 27): Host.SavesEntropy.
	if c.Entropy && !h.SavesEntropy {
		return invalid("The entropy device does not support saving and restoring.")
	}
	return nil
}
