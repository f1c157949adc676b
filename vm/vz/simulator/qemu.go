// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"fmt"
	"strconv"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// QEMUOptions choose the emulator.
type QEMUOptions struct {
	// Arch is the guests': "arm64", as on a Mac, or "amd64", which is faster to emulate
	// on an amd64 host. Empty: arm64.
	Arch string
	// Binary is the program. Empty: qemu-system-aarch64 or qemu-system-x86_64, by PATH.
	Binary string
}

const (
	archARM64 = "arm64"
	archAMD64 = "amd64"
)

// qemuDevices is part of what saved files must agree on. Raise it with every change of
// the machine that qemuArguments describes.
const qemuDevices = 1

// Descriptors that QEMU inherits, in the order of exec.Cmd.ExtraFiles.
const (
	qmpDescriptor     = 3
	agentDescriptor   = 4
	networkDescriptor = 5
	consoleDescriptor = 6
)

// firstDiskSlot is the PCI address of the first disk. Those below are taken by fixed
// devices, and 0x1f by the chipset.
const firstDiskSlot = 5

func qemuBinary(o QEMUOptions) string {
	switch {
	case o.Binary != "":
		return o.Binary
	case o.Arch == archAMD64:
		return "qemu-system-x86_64"
	default:
		return "qemu-system-aarch64"
	}
}

// qemuArguments is the command line for a machine of c, without the program's name. The
// devices are those that VZLinuxBootLoader's machines have here: virtio block, network,
// console and, in place of the vsock device, the virtio-serial port that the agent
// knows. There is no panic device: the framework has none either.
func qemuArguments(arch string, c framework.Configuration, incoming bool) []string {
	a := []string{
		"-no-user-config", "-nodefaults", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	add := func(s ...string) { a = append(a, s...) }
	if arch == archAMD64 {
		// 57-bit addresses would be one more level in every emulated page walk.
		add("-machine", "q35,dump-guest-core=off,usb=off,vmport=off,smbus=off,sata=off,hpet=off", "-cpu", "max,la57=off")
	} else {
		// A core without pointer authentication, which costs a multiple to emulate.
		add("-machine", "virt,dump-guest-core=off,gic-version=3", "-cpu", "neoverse-n1")
	}
	// Emulation always: tests must not depend on whether the host has KVM. The buffer of
	// translated code is private memory of every machine.
	add("-accel", "tcg,tb-size=128")
	add("-smp", strconv.FormatUint(uint64(c.CPUs), 10), "-m", fmt.Sprintf("%dM", c.MemoryBytes>>20))
	// A guest that powers off stands still until its end was noticed. One that reboots has
	// ended too: a machine of ours boots once. Unproven on hardware: the framework may
	// boot it again.
	add("-action", "reboot=shutdown,shutdown=pause,panic=none")
	add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpDescriptor), "-mon", "chardev=qmp,mode=control")
	if c.Entropy {
		add("-device", "virtio-rng-pci,addr=0x2")
	}
	add("-device", "virtio-serial-pci,id=serial,max_ports=2,addr=0x3")
	if hasConsole(c) {
		add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", consoleDescriptor), "-device", "virtconsole,bus=serial.0,nr=0,chardev=console")
	}
	add("-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", agentDescriptor))
	add("-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=firkin.agent")
	add("-netdev", fmt.Sprintf("dgram,id=net,local.type=fd,local.str=%d", networkDescriptor))
	add("-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=%s,romfile=,addr=0x4", c.MAC))
	for i, d := range c.Disks {
		readOnly, discard := "off", "unmap"
		if d.ReadOnly {
			readOnly, discard = "on", "ignore"
		}
		add("-blockdev", fmt.Sprintf("driver=raw,node-name=disk%d,read-only=%s,discard=%s,file.driver=file,file.discard=%s,file.filename=%s", i, readOnly, discard, discard, qemuEscape(d.Path)))
		// report: a full host is an I/O error to the guest, not a machine that stands still.
		add("-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%s,werror=report,rerror=report,addr=%#x", i, qemuEscape(d.Serial), firstDiskSlot+i))
	}
	if incoming {
		add("-S", "-incoming", "defer")
		return a
	}
	add("-kernel", c.Kernel)
	if c.Initramfs != "" {
		add("-initrd", c.Initramfs)
	}
	if c.CommandLine != "" {
		add("-append", c.CommandLine)
	}
	return a
}

// qemuEscape writes a value for QEMU's key=value lists, where a comma is doubled.
func qemuEscape(s string) string {
	var b []byte
	for i := range len(s) {
		b = append(b, s[i])
		if s[i] == ',' {
			b = append(b, ',')
		}
	}
	return string(b)
}
