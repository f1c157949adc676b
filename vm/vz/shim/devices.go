// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// macAddress is the same in all machines: each has a network of its own, and a restored
// machine must have the saved one's.
var macAddress = net.HardwareAddr{0x52, 0x54, 0x00, 0xf1, 0x4b, 0x01}

// configuration is what the framework makes a machine of. It is a pure function of its
// arguments: files behind the console and the network come later. A change of it changes
// the machine that a guest sees, and wants a new layout.DeviceVersion.
//
// There is no entropy device: not every version of the framework can save one
// (peers: cirruslabs/tart --suspendable leaves it out). There is no memory balloon and no
// shared directory for the same reason.
func configuration(dir string, r layout.Record, identity layout.Identity, slots int) framework.Configuration {
	cfg := r.Config
	c := framework.Configuration{
		GuestOS:           framework.Linux,
		CPUs:              uint(cfg.Shape.VCPUs),
		MemoryBytes:       uint64(cfg.Shape.MemoryBytes),
		MachineIdentifier: identity.MachineIdentifier,
		MAC:               macAddress,
	}
	own := func(name string) string { return filepath.Join(dir, name) }
	if cfg.GuestOS == vm.GuestMacOS {
		c.GuestOS = framework.MacOS
		c.HardwareModel = cfg.MacOS.HardwareModel
		c.AuxiliaryStorage = own(layout.AuxiliaryFile)
		c.Disks = []framework.Disk{{Path: own(layout.DiskFile), Serial: "disk"}}
		return c
	}
	c.Kernel, c.Initramfs, c.CommandLine = cfg.Kit.Kernel, cfg.Kit.Initramfs, commandLine(cfg.Kit.Cmdline)
	for i := range slots {
		path := r.EmptySlot
		if i < len(cfg.Images) && cfg.Images[i] != "" {
			path = cfg.Images[i]
		}
		c.Disks = append(c.Disks, framework.Disk{Path: path, ReadOnly: true, Serial: fmt.Sprintf("slot%d", i)})
	}
	c.Disks = append(c.Disks, framework.Disk{Path: own(layout.ScratchFile), Serial: "scratch"})
	return c
}

// commandLine is the kit's, with what differs here.
func commandLine(kit string) string {
	return strings.TrimSpace(kit + " " + strings.Join([]string{
		"console=hvc0",
		// The framework has no device that tells of a panic, and what it makes of a reset is
		// not documented: a kernel that panics stands still, and the console says why.
		"panic=0",
		// Until a restored machine is refreshed, the processor's random numbers are all the
		// entropy there is.
		"random.trust_cpu=on",
	}, " "))
}

// fingerprint is a digest over everything in a configuration that must be equal at
// restore. Paths are not in it: kernel and initramfs are known by their kit's digest,
// disks by number, order and kind.
func fingerprint(c framework.Configuration, bootDigest string) string {
	type disk struct {
		ReadOnly bool
		Serial   string
	}
	f := struct {
		Devices       int
		GuestOS       framework.GuestOS
		CPUs          uint
		Memory        uint64
		Identifier    []byte
		Boot          string
		CommandLine   string
		HardwareModel []byte
		Disks         []disk
		MAC           string
		Entropy       bool
	}{
		layout.DeviceVersion, c.GuestOS, c.CPUs, c.MemoryBytes, c.MachineIdentifier, bootDigest, c.CommandLine,
		c.HardwareModel, nil, c.MAC.String(), c.Entropy,
	}
	for _, d := range c.Disks {
		f.Disks = append(f.Disks, disk{d.ReadOnly, d.Serial})
	}
	data, err := json.Marshal(f)
	if err != nil {
		panic(fmt.Sprintf("a configuration cannot be written: %v", err)) // it has no such type
	}
	return layout.Digest(data)
}
