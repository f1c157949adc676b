// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
)

var update = flag.Bool("update", false, "rewrite testdata")

// TestArguments compares command lines with testdata: a change there is a change of
// the machine and wants a new deviceVersion.
func TestArguments(t *testing.T) {
	kit := func(arch string) vm.Kit {
		return vm.Kit{Arch: arch, Digest: "sha256:kit", Kernel: "/kit/kernel", Initramfs: "/kit/initramfs", Scratch: "/kit/scratch", Cmdline: "console=test"}
	}
	empty := [imageSlots]string{"/empty", "/empty", "/empty", "/empty"}
	shape := vm.Shape{VCPUs: 2, MemoryBytes: 512 << 20}
	for name, l := range map[string]launch{
		"create-amd64-tcg": {arch: "amd64", accelerator: "tcg", shape: shape, kit: kit("amd64"), images: empty},
		"create-saveable":  {arch: "amd64", accelerator: "kvm", shape: shape, kit: kit("amd64"), images: empty, memory: "memory", shared: true},
		"create-arm64-tcg": {arch: "arm64", accelerator: "tcg", shape: shape, kit: kit("arm64"), images: empty},
		"restore": {arch: "amd64", accelerator: "tcg", shape: shape, kit: kit("amd64"), images: [imageSlots]string{"/images/a,b", "/empty", "/empty", "/empty"},
			memory: "/snapshot/memory", parentScratch: "/snapshot/scratch.qcow2", incoming: true},
		"restore-saveable": {arch: "amd64", accelerator: "tcg", shape: shape, kit: kit("amd64"), images: empty, memory: "memory", shared: true, incoming: true},
	} {
		t.Run(name, func(t *testing.T) {
			// One option with its value per line.
			got := strings.ReplaceAll(strings.Join(arguments(l), "\n"), "\n-", "\x00-")
			got = strings.ReplaceAll(strings.ReplaceAll(got, "\n", " "), "\x00", "\n") + "\n"
			path := filepath.Join("testdata", name+".args")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("arguments (-want +got), -update rewrites them:\n%s", diff)
			}
		})
	}
}
