// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/json"
	"flag"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

var update = flag.Bool("update", false, "write the golden files")

func TestConfiguration(t *testing.T) {
	linux := vm.Config{
		Shape:  vm.Shape{VCPUs: 2, MemoryBytes: 512 << 20},
		Kit:    vm.Kit{Digest: "sha256:kit", Kernel: "/kit/kernel", Initramfs: "/kit/initramfs", Scratch: "/kit/scratch", Cmdline: "quiet"},
		Images: []string{"/images/a", "", "/images/c"},
	}
	explicit := linux
	explicit.GuestOS = vm.GuestLinux
	bare := linux
	bare.Images, bare.Kit.Cmdline = nil, ""
	macOS := vm.Config{
		Shape: vm.Shape{VCPUs: 4, MemoryBytes: 8 << 30}, GuestOS: vm.GuestMacOS,
		MacOS: &vm.MacOS{Digest: "sha256:macos", Disk: "/macos/disk", AuxiliaryStorage: "/macos/aux", HardwareModel: []byte("model"), MachineIdentifier: []byte("installed")},
	}
	for name, c := range map[string]struct {
		cfg  vm.Config
		file string
	}{
		"linux":            {linux, "linux.json"},
		"linux by name":    {explicit, "linux.json"},
		"without an image": {bare, "bare.json"},
		"macos":            {macOS, "macos.json"},
	} {
		got := configuration("/machines/a", layout.Record{Config: c.cfg, EmptySlot: "/empty"}, layout.Identity{MachineIdentifier: []byte("identifier")}, 4)
		text, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", c.file)
		if *update {
			if err := os.WriteFile(golden, append(text, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if string(want) != string(text)+"\n" {
			t.Errorf("%s is\n%s\nwant\n%s\nA change of the devices wants a new layout.DeviceVersion; write the files with -update", name, text, want)
		}
	}
}

// full has a value in every field that can be compared.
func full() framework.Configuration {
	return framework.Configuration{
		GuestOS: framework.Linux, CPUs: 2, MemoryBytes: 1 << 30, MachineIdentifier: []byte("id"),
		Kernel: "/kernel", Initramfs: "/initramfs", CommandLine: "quiet",
		HardwareModel: []byte("model"), AuxiliaryStorage: "/aux",
		Disks: []framework.Disk{{Path: "/a", ReadOnly: true, Serial: "slot0"}, {Path: "/b", Serial: "scratch"}},
		MAC:   net.HardwareAddr{2, 0, 0, 0, 0, 1}, Entropy: true,
	}
}

// The fingerprint changes with what the framework wants to be equal at restore, and with
// nothing else. A new field of the configuration is to be put into one of the two lists.
func TestFingerprint(t *testing.T) {
	equal := map[string]func(c *framework.Configuration){
		"GuestOS":           func(c *framework.Configuration) { c.GuestOS = framework.MacOS },
		"CPUs":              func(c *framework.Configuration) { c.CPUs++ },
		"MemoryBytes":       func(c *framework.Configuration) { c.MemoryBytes++ },
		"MachineIdentifier": func(c *framework.Configuration) { c.MachineIdentifier = []byte("other") },
		"CommandLine":       func(c *framework.Configuration) { c.CommandLine += " " },
		"HardwareModel":     func(c *framework.Configuration) { c.HardwareModel = nil },
		"MAC":               func(c *framework.Configuration) { c.MAC[5]++ },
		"Entropy":           func(c *framework.Configuration) { c.Entropy = false },
		"Disks":             func(c *framework.Configuration) { c.Disks = c.Disks[:1] },
		"Disks: more":       func(c *framework.Configuration) { c.Disks = append(c.Disks, framework.Disk{}) },
		"Disks: order":      func(c *framework.Configuration) { c.Disks[0], c.Disks[1] = c.Disks[1], c.Disks[0] },
		"Disks: ReadOnly":   func(c *framework.Configuration) { c.Disks[1].ReadOnly = true },
		"Disks: Serial":     func(c *framework.Configuration) { c.Disks[1].Serial = "other" },
	}
	free := map[string]func(c *framework.Configuration){
		"Kernel":           func(c *framework.Configuration) { c.Kernel = "/other" }, // known by the boot digest
		"Initramfs":        func(c *framework.Configuration) { c.Initramfs = "/other" },
		"AuxiliaryStorage": func(c *framework.Configuration) { c.AuxiliaryStorage = "/other" },
		"Network":          func(c *framework.Configuration) { c.Network = os.Stdin },
		"ConsoleIn":        func(c *framework.Configuration) { c.ConsoleIn = os.Stdin }, // follows from the guest's OS
		"ConsoleOut":       func(c *framework.Configuration) { c.ConsoleOut = os.Stdout },
		"Disks: Path":      func(c *framework.Configuration) { c.Disks[0].Path = "/other" },
	}
	for field := range reflect.TypeFor[framework.Configuration]().Fields() {
		if (equal[field.Name] == nil) == (free[field.Name] == nil) {
			t.Errorf("field %s must be in one of the lists", field.Name)
		}
	}
	if n := reflect.TypeFor[framework.Disk]().NumField(); n != 3 {
		t.Errorf("a disk has %d fields, this test knows 3", n)
	}
	was := fingerprint(full(), "sha256:boot")
	seen := map[string]string{was: "unchanged"}
	for name, change := range equal {
		c := full()
		change(&c)
		got := fingerprint(c, "sha256:boot")
		if seen[got] != "" {
			t.Errorf("%s: the fingerprint is that of %s", name, seen[got])
		}
		seen[got] = name
	}
	for name, change := range free {
		c := full()
		change(&c)
		if fingerprint(c, "sha256:boot") != was {
			t.Errorf("%s changes the fingerprint", name)
		}
	}
	if fingerprint(full(), "sha256:other") == was {
		t.Error("another kit has the same fingerprint")
	}
}
