// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator_test

import (
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// TestConfigurationRules breaks each rule of a configuration.
func TestConfigurationRules(t *testing.T) {
	t.Parallel()
	broken := map[string]bool{}
	for _, c := range []struct {
		rule, name string
		macOS      bool
		breakIt    func(t *testing.T, c *framework.Configuration)
		want       framework.Code // 0: CodeInvalidVirtualMachineConfiguration
	}{
		{rule: "CPU count", name: "none", breakIt: func(_ *testing.T, c *framework.Configuration) { c.CPUs = 0 }},
		{rule: "CPU count", name: "too many", breakIt: func(_ *testing.T, c *framework.Configuration) { c.CPUs = 17 }},
		{rule: "memory size", name: "none", breakIt: func(_ *testing.T, c *framework.Configuration) { c.MemoryBytes = 0 }},
		{rule: "memory size", name: "half a MiB", breakIt: func(_ *testing.T, c *framework.Configuration) { c.MemoryBytes += 1 << 19 }},
		{rule: "memory size", name: "too much", breakIt: func(_ *testing.T, c *framework.Configuration) { c.MemoryBytes = 65 << 30 }},
		{rule: "machine identifier", name: "made up", breakIt: func(_ *testing.T, c *framework.Configuration) { c.MachineIdentifier = []byte("mine") }},
		{rule: "boot loader of a Linux guest", name: "no kernel", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Kernel = "" }},
		{rule: "boot loader of a Linux guest", name: "kernel missing", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Kernel += ".gone" }},
		{rule: "boot loader of a Linux guest", name: "kernel is a directory", breakIt: func(t *testing.T, c *framework.Configuration) { c.Kernel = t.TempDir() }},
		{rule: "boot loader of a Linux guest", name: "initramfs missing", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Initramfs += ".gone" }},
		{rule: "boot loader of a Linux guest", name: "hardware model", breakIt: func(_ *testing.T, c *framework.Configuration) { c.HardwareModel = simulator.HardwareModel("x") }},
		{rule: "platform of a macOS guest", name: "kernel", macOS: true, breakIt: func(t *testing.T, c *framework.Configuration) { c.Kernel = write(t, "kernel", nil) }},
		{rule: "platform of a macOS guest", name: "no hardware model", macOS: true, breakIt: func(_ *testing.T, c *framework.Configuration) { c.HardwareModel = nil }},
		{rule: "platform of a macOS guest", name: "made up hardware model", macOS: true, breakIt: func(_ *testing.T, c *framework.Configuration) { c.HardwareModel = []byte("mine") }},
		{rule: "platform of a macOS guest", name: "no auxiliary storage", macOS: true, breakIt: func(_ *testing.T, c *framework.Configuration) { c.AuxiliaryStorage = "" }},
		{rule: "platform of a macOS guest", name: "auxiliary storage missing", macOS: true, breakIt: func(_ *testing.T, c *framework.Configuration) { c.AuxiliaryStorage += ".gone" }},
		{rule: "platform of a macOS guest", name: "no disk", macOS: true, breakIt: func(_ *testing.T, c *framework.Configuration) { c.Disks = nil }},
		{rule: "guest OS", name: "another", breakIt: func(_ *testing.T, c *framework.Configuration) { c.GuestOS = "plan9" }},
		{rule: "MAC address", name: "none", breakIt: func(_ *testing.T, c *framework.Configuration) { c.MAC = nil }},
		{rule: "MAC address", name: "multicast", breakIt: func(_ *testing.T, c *framework.Configuration) { c.MAC = net.HardwareAddr{3, 0, 0, 0, 0, 1} }},
		{rule: "MAC address", name: "64 bits", breakIt: func(_ *testing.T, c *framework.Configuration) { c.MAC = make(net.HardwareAddr, 8) }},
		{rule: "network attachment", name: "none", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Network = nil }},
		{rule: "network attachment", name: "a file", breakIt: func(t *testing.T, c *framework.Configuration) { c.Network = temporary(t) }},
		{rule: "network attachment", name: "a stream", breakIt: func(t *testing.T, c *framework.Configuration) { c.Network = socket(t, syscall.SOCK_STREAM) }},
		{rule: "network attachment", name: "not connected", breakIt: func(t *testing.T, c *framework.Configuration) { c.Network = socket(t, syscall.SOCK_DGRAM) }},
		{rule: "network attachment", name: "closed", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Network.Close() }},
		{rule: "disk serial numbers", name: "21 bytes", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Disks[0].Serial = strings.Repeat("x", 21) }},
		{rule: "disk serial numbers", name: "not ASCII", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Disks[0].Serial = "ü" }},
		{rule: "disk serial numbers", name: "too many disks", breakIt: func(_ *testing.T, c *framework.Configuration) {
			c.Disks = slices.Repeat(c.Disks[:1], simulator.MaxDisks+1)
		}},
		{name: "disk missing", want: framework.CodeInvalidDiskImage, breakIt: func(_ *testing.T, c *framework.Configuration) { c.Disks[0].Path += ".gone" }},
		{name: "disk is a directory", want: framework.CodeInvalidDiskImage, breakIt: func(t *testing.T, c *framework.Configuration) { c.Disks[0].Path = t.TempDir() }},
		{name: "disk is empty", want: framework.CodeInvalidDiskImage, breakIt: func(t *testing.T, c *framework.Configuration) { c.Disks[0].Path = write(t, "disk", nil) }},
		{name: "disk of 513 bytes", want: framework.CodeInvalidDiskImage, breakIt: func(t *testing.T, c *framework.Configuration) {
			c.Disks[0].Path = write(t, "disk", make([]byte, 513))
		}},
		{name: "a writable disk twice", breakIt: func(_ *testing.T, c *framework.Configuration) { c.Disks = append(c.Disks, c.Disks[len(c.Disks)-1]) }},
	} {
		t.Run(c.rule+"/"+c.name, func(t *testing.T) {
			broken[c.rule] = true
			cfg := linux(t)
			if c.macOS {
				cfg = macOS(t)
			}
			f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
			// It is the change that is refused, and a refusal holds nothing.
			m, err := f.New(cfg)
			must(t, err)
			must(t, m.Close())
			c.breakIt(t, &cfg)
			want := c.want
			if want == 0 {
				want = framework.CodeInvalidVirtualMachineConfiguration
			}
			if m, err := f.New(cfg); code(err) != want {
				if err == nil {
					m.Close()
				}
				t.Errorf("%v, want code %d", err, want)
			}
		})
	}
	for _, name := range simulator.ConfigurationRules() {
		if !broken[name] {
			t.Errorf("nothing breaks the rule %q", name)
		}
	}
}

func temporary(t *testing.T) *os.File {
	f, err := os.Open(write(t, "file", nil))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func socket(t *testing.T, kind int) *os.File {
	fd, err := syscall.Socket(syscall.AF_UNIX, kind, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFilesAreTheMachinesOwn: writable disks and auxiliary storage belong to one machine
// until it is closed, read-only disks to any number.
func TestFilesAreTheMachinesOwn(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	refused := func(name, text string, cfg framework.Configuration) {
		t.Helper()
		if _, err := f.New(cfg); code(err) != framework.CodeInvalidVirtualMachineConfiguration || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want code 2 and %q", name, err, text)
		}
	}
	cfg := linux(t)
	m := newMachine(t, f, cfg)
	other := linux(t)
	other.Disks[0] = cfg.Disks[0] // read-only: both may
	newMachine(t, f, other)
	other.Disks = cfg.Disks[1:]
	refused("the same writable disk", "storage device attachment is invalid", other)
	link := write(t, "link", nil)
	must(t, os.Remove(link))
	must(t, os.Link(cfg.Disks[1].Path, link))
	other.Disks = []framework.Disk{{Path: link, ReadOnly: true}}
	refused("reading what another writes, by another name", "storage device attachment is invalid", other)
	other.Disks = []framework.Disk{{Path: cfg.Disks[0].Path}}
	refused("writing what others read", "storage device attachment is invalid", other)
	must(t, m.Close())
	other.Disks = cfg.Disks[1:]
	newMachine(t, f, other)

	mac := macOS(t)
	newMachine(t, f, mac)
	second := macOS(t)
	second.AuxiliaryStorage = mac.AuxiliaryStorage
	refused("the same auxiliary storage", "Failed to lock auxiliary storage", second)
}

// TestAttachmentsStay: what a machine was made with is still there when it starts.
func TestAttachmentsStay(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		breakIt func(t *testing.T, c framework.Configuration)
		want    framework.Code
	}{
		{"the network is closed", func(t *testing.T, c framework.Configuration) { must(t, c.Network.Close()) }, framework.CodeInvalidVirtualMachineConfiguration},
		{"a disk is removed", func(t *testing.T, c framework.Configuration) { must(t, os.Remove(c.Disks[0].Path)) }, framework.CodeInvalidDiskImage},
		{"a disk is replaced", func(t *testing.T, c framework.Configuration) {
			must(t, os.Rename(write(t, "new", make([]byte, 4096)), c.Disks[0].Path))
		}, framework.CodeInvalidDiskImage},
		{"a disk grows", func(t *testing.T, c framework.Configuration) { must(t, os.Truncate(c.Disks[1].Path, 1<<20)) }, framework.CodeInvalidDiskImage},
		{"the kernel is compressed with gzip", func(t *testing.T, c framework.Configuration) {
			must(t, os.WriteFile(c.Kernel, []byte{0x1f, 0x8b, 8, 0}, 0o600))
		}, framework.CodeInternal},
		{"the kernel is a self-extracting EFI image", func(t *testing.T, c framework.Configuration) {
			must(t, os.WriteFile(c.Kernel, []byte("MZ\x00\x00zimg...."), 0o600))
		}, framework.CodeInternal},
		{"the kernel is removed", func(t *testing.T, c framework.Configuration) { must(t, os.Remove(c.Kernel)) }, framework.CodeInvalidVirtualMachineConfiguration},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
			cfg := linux(t)
			m := newMachine(t, f, cfg)
			c.breakIt(t, cfg)
			if err := m.Start(); code(err) != c.want {
				t.Errorf("start: %v, want code %d", err, c.want)
			}
			wantState(t, m, framework.StateError)
		})
	}
}

// TestFreshIdentifier: a machine without an identifier gets one of its own, and so is
// not the machine that another configuration without one saves.
func TestFreshIdentifier(t *testing.T) {
	t.Parallel()
	f := open(t, t.TempDir(), simulator.NoGuest(simulator.Script{}))
	cfg := linux(t)
	cfg.MachineIdentifier = nil
	saved := savedMachine(t, f, cfg)
	if err := newMachine(t, f, cfg).Restore(saved); code(err) != framework.CodeRestore {
		t.Errorf("restore: %v, want code 12", err)
	}
}
