// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// modules are what the agent loads, if the kernel does not have them built in: the
// agent decides by the devices it finds. What they depend on is added.
var modules = []string{
	"button", // ACPI's power key
	"dummy",  // interfaces that a privileged container makes
	"evdev",  // which is read through it
	"ext4",
	"overlay",
	"veth", // the cable to an address of the cluster
	"virtio_blk",
	"virtio_console",
	"virtio_net",
	"virtio_pci",
	"vmw_vsock_virtio_transport",
}

// module is a kernel module and what it says about itself.
type module struct {
	name    string
	path    string
	depends []string
}

// resolveModules returns the named modules and everything they depend on, each after
// what it depends on, siblings in lexical order. Debian makes modules.dep when a kernel
// is installed, so a package does not have it: the modules themselves are asked.
func resolveModules(ctx context.Context, dir string, names []string) ([]module, error) {
	builtin, err := builtinModules(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, _ fs.DirEntry, err error) error {
		if name, ok := moduleName(path); ok {
			paths[name] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	return orderModules(names, func(name string) (module, bool, error) {
		path, ok := paths[name]
		if !ok {
			if builtin[name] {
				return module{}, false, nil
			}
			return module{}, false, fmt.Errorf("the kernel has no module %s", name)
		}
		m, err := readModule(ctx, name, path)
		return m, true, err
	})
}

// orderModules walks the dependencies of names. The function find returns false for
// what is built into the kernel.
func orderModules(names []string, find func(name string) (module, bool, error)) ([]module, error) {
	const visiting, done = 1, 2
	state := map[string]int{}
	var out []module
	var visit func(name string) error
	visit = func(name string) error {
		switch state[name] {
		case visiting:
			return fmt.Errorf("module %s depends on itself", name)
		case done:
			return nil
		}
		state[name] = visiting
		m, ok, err := find(name)
		if err != nil {
			return err
		}
		if ok {
			slices.Sort(m.depends)
			for _, d := range m.depends {
				if err := visit(d); err != nil {
					return fmt.Errorf("module %s: %w", name, err)
				}
			}
			out = append(out, m)
		}
		state[name] = done
		return nil
	}
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	for _, name := range sorted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleName is the name the kernel knows the module file by.
func moduleName(path string) (string, bool) {
	name, ok := strings.CutSuffix(filepath.Base(path), ".ko")
	if !ok {
		// Newer packages compress their modules.
		if name, ok = strings.CutSuffix(filepath.Base(path), ".ko.xz"); !ok {
			return "", false
		}
	}
	return strings.ReplaceAll(name, "-", "_"), true
}

func builtinModules(path string) (map[string]bool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		if name, ok := moduleName(strings.TrimSpace(s.Text())); ok {
			out[name] = true
		}
	}
	return out, s.Err()
}

// readModule reads the section .modinfo: NUL-terminated key=value.
func readModule(ctx context.Context, name, path string) (module, error) {
	m := module{name: name, path: path}
	b, err := readModuleFile(ctx, path)
	if err != nil {
		return m, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return m, fmt.Errorf("module %s: %w", path, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return m, fmt.Errorf("module %s has no .modinfo", path)
	}
	info, err := section.Data()
	if err != nil {
		return m, fmt.Errorf("module %s: %w", path, err)
	}
	m.depends = dependsOf(info)
	return m, nil
}

func dependsOf(modinfo []byte) []string {
	var out []string
	for entry := range bytes.SplitSeq(modinfo, []byte{0}) {
		list, ok := strings.CutPrefix(string(entry), "depends=")
		if !ok {
			continue
		}
		for d := range strings.SplitSeq(list, ",") {
			if d != "" {
				out = append(out, strings.ReplaceAll(d, "-", "_"))
			}
		}
	}
	return out
}
