// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
)

// What every machine of this driver has. A change of anything here or in
// arguments changes the machine that a guest sees: raise deviceVersion with it, so
// that snapshots made before are rebuilt and not restored.
const (
	deviceVersion = 1

	imageSlots = 4
	// slotBytes: no image is larger, and an ext4 of this size keeps its group
	// descriptors within one block group.
	slotBytes int64 = 64 << 30
	// scratchBytes is the size of the kit's scratch file.
	scratchBytes int64 = 16 << 30
	// consoleBytes is what vm.Consoler promises; QEMU wants a power of two.
	consoleBytes = 64 << 10
	// translationMiB bounds TCG's buffer of translated code, which is private memory of every
	// machine, as far as it is used. When it is full, QEMU throws all of it away: with 32 the
	// code of one container's making did not fit, and every start translated it anew, which
	// made it four times as slow. QEMU's own default grows with the host, up to 1 GiB.
	translationMiB = 128
	// macAddress is the same in all machines: each has a network of its own.
	macAddress = "52:54:00:f1:4b:01"
)

// Accelerators.
const (
	acceleratorTCG = "tcg"
	acceleratorKVM = "kvm"
)

// Numbers of the descriptors that QEMU inherits, in the order of exec.Cmd.ExtraFiles.
const (
	qmpDescriptor   = 3
	agentDescriptor = 4
	stateDescriptor = 5
)

// Names inside a machine's directory. QEMU runs in it and gets them as they are,
// so no path of the host's is part of its own files' names.
const (
	recordFile  = "machine.json"
	exitFile    = "exit.json"
	consoleFile = "console"
	qmpSocket   = "qmp.sock"
	agentSocket = "agent.sock"
	scratchFile = "scratch.qcow2"
	memoryFile  = "memory"
	stateFile   = "saved-state"
)

// launch is everything that decides a machine's command line.
type launch struct {
	arch        string
	accelerator string
	shape       vm.Shape
	kit         vm.Kit
	// images has one path per slot, none empty.
	images [imageSlots]string
	// memory is the memory file and shared how it is mapped. Empty: anonymous.
	memory string
	shared bool
	// parentScratch is the snapshot's scratch that the machine's own lies over.
	// Empty: directly over the kit's.
	parentScratch string
	// incoming: wait for a device state instead of booting the kernel.
	incoming bool
}

// arguments is the command line for l, without the program's name. It is a pure
// function of l.
func arguments(l launch) []string {
	var a []string
	add := func(s ...string) { a = append(a, s...) }

	add("-no-user-config", "-nodefaults", "-display", "none")
	add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	add("-machine", machineType(l.arch))
	if l.accelerator == acceleratorTCG {
		add("-accel", "tcg,tb-size="+strconv.Itoa(translationMiB))
	} else {
		add("-accel", l.accelerator)
	}
	add("-cpu", cpuModel(l.arch, l.accelerator))
	add("-smp", strconv.Itoa(l.shape.VCPUs))
	add("-m", fmt.Sprintf("%dM", l.shape.MemoryBytes>>20))
	if l.memory == "" {
		add("-object", fmt.Sprintf("memory-backend-ram,id=ram,size=%d", l.shape.MemoryBytes))
	} else {
		add("-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=%s", l.shape.MemoryBytes, escape(l.memory), onOff(l.shared)))
	}

	// A guest that ends stands still until a driver has recorded how. A reboot is an
	// end: a machine boots once.
	add("-action", "reboot=shutdown,shutdown=pause,panic=pause")

	// The console goes to a ring in QEMU's memory: a guest cannot fill the disk.
	add("-chardev", fmt.Sprintf("ringbuf,id=console,size=%d", consoleBytes), "-serial", "chardev:console")
	add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpDescriptor), "-mon", "chardev=qmp,mode=control")
	add("-device", "pvpanic-pci,addr=0x2")
	add("-device", "virtio-serial-pci,id=serial,max_ports=2,addr=0x3")
	add("-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", agentDescriptor))
	add("-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=firkin.agent")

	for i, image := range l.images {
		name := fmt.Sprintf("slot%d", i)
		add("-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=on,file.driver=file,file.filename=%s", name, escape(image)))
		add("-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,addr=%#x", name, name, 4+i))
	}

	add("-blockdev", "driver=raw,node-name=kit,read-only=on,file.driver=file,file.filename="+escape(l.kit.Scratch))
	backing := "kit"
	if l.parentScratch != "" {
		add("-blockdev", "driver=qcow2,node-name=parent,read-only=on,backing=kit,file.driver=file,file.filename="+escape(l.parentScratch))
		backing = "parent"
	}
	add("-blockdev", "driver=qcow2,node-name=scratch,backing="+backing+",discard=unmap,file.driver=file,file.discard=unmap,file.filename="+scratchFile)
	// report: a full host is an I/O error to the guest, not a machine that stands still.
	add("-device", "virtio-blk-pci,drive=scratch,serial=scratch,werror=report,rerror=report,addr=0x8")

	// Without IPv6: its router would wake idle guests with announcements.
	add("-netdev", "user,id=net,ipv6=off")
	add("-device", "virtio-net-pci,netdev=net,mac="+macAddress+",romfile=,addr=0x9")

	if l.incoming {
		// No kernel: it is in the guest's memory already, and QEMU would keep a
		// private copy of the file.
		add("-S", "-incoming", "defer")
	} else {
		add("-kernel", l.kit.Kernel, "-initrd", l.kit.Initramfs, "-append", kernelCommandLine(l.kit))
	}
	return a
}

func machineType(arch string) string {
	if arch == "arm64" {
		return "virt,memory-backend=ram,dump-guest-core=off,gic-version=3"
	}
	return "q35,memory-backend=ram,dump-guest-core=off,usb=off,vmport=off,smbus=off,sata=off,hpet=off"
}

func cpuModel(arch, accelerator string) string {
	switch {
	case accelerator == acceleratorKVM:
		return "host"
	case arch == "arm64":
		// A real core without pointer authentication, which costs a multiple to emulate.
		return "neoverse-n1"
	default:
		// 57-bit addresses would be one more level in every emulated page walk.
		return "max,la57=off"
	}
}

// kernelCommandLine is the kit's, which names the console and what to do on a
// panic. Until a restored machine is refreshed, the processor's random numbers are
// all the entropy there is.
func kernelCommandLine(kit vm.Kit) string {
	return strings.TrimSpace(kit.Cmdline + " random.trust_cpu=on")
}

// binaryName is the name of QEMU's program for guests of arch.
func binaryName(arch string) string {
	if arch == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// escape writes a value for QEMU's key=value lists, where a comma is doubled.
func escape(s string) string {
	var b []byte
	for i := range len(s) {
		b = append(b, s[i])
		if s[i] == ',' {
			b = append(b, ',')
		}
	}
	return string(b)
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
