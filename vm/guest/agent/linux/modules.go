// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"fmt"
	"strings"
)

// busModules are loaded first: they make the devices appear.
var busModules = []string{"virtio_pci"}

// alwaysModules are loaded whatever the devices. dummy is what a privileged container can make
// network interfaces of: elsewhere the kernel has modprobe load it then, here there is none. veth
// is what ListenAddress makes its cable of.
var alwaysModules = []string{"overlay", "button", "evdev", "dummy", "veth"}

// moduleParameters are the parameters that modules are loaded with. dummy would make an
// interface of its own.
var moduleParameters = map[string]string{"dummy": "numdummies=0"}

// deviceModules are the modules for virtio devices, by the device id of the virtio
// specification, section 5.
var deviceModules = map[string]string{
	"0x0001": "virtio_net",
	"0x0002": "virtio_blk",
	"0x0003": "virtio_console",
	"0x0013": "vmw_vsock_virtio_transport",
}

// moduleTable is what layout.ModuleList says: name to the names it depends on. A module
// that is not in it is built into the kernel.
type moduleTable map[string][]string

func parseModuleList(list string) moduleTable {
	t := moduleTable{}
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) > 0 {
			t[fields[0]] = fields[1:]
		}
	}
	return t
}

// order returns the modules to load for names, in an order in which each comes after
// what it depends on, without those in loaded.
func (t moduleTable) order(names []string, loaded map[string]bool) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	var visit func(name string, depth int) error
	visit = func(name string, depth int) error {
		if depth > len(t) {
			return fmt.Errorf("module %s depends on itself", name)
		}
		deps, ok := t[name]
		if !ok || seen[name] || loaded[name] {
			return nil
		}
		for _, d := range deps {
			if err := visit(d, depth+1); err != nil {
				return err
			}
		}
		if !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
		return nil
	}
	for _, name := range names {
		if err := visit(name, 0); err != nil {
			return nil, err
		}
	}
	return out, nil
}
