// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
)

// TestKit makes of a guest kit one whose init is vm/vmtest/testguest/init, which it
// builds. Kernel, modules and scratch disk are the kit's.
func TestKit(t *testing.T, kit vm.Kit) vm.Kit {
	t.Helper()
	dir := t.TempDir()
	init := filepath.Join(dir, "init")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init,
		"github.com/vk-firkin/vk-firkin/vm/vmtest/testguest/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+kit.Arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test guest: %v\n%s", err, out)
	}
	program, err := os.ReadFile(init)
	if err != nil {
		t.Fatal(err)
	}
	initramfs, err := os.ReadFile(kit.Initramfs)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel unpacks one archive after the other; the last file of a name stays.
	for len(initramfs)%4 != 0 {
		initramfs = append(initramfs, 0)
	}
	initramfs = appendFile(initramfs, "init", 0o100755, program)
	initramfs = appendFile(initramfs, "TRAILER!!!", 0, nil)
	kit.Initramfs = filepath.Join(dir, "initramfs.cpio")
	if err := os.WriteFile(kit.Initramfs, initramfs, 0o600); err != nil {
		t.Fatal(err)
	}
	kit.Digest += "-testguest"
	return kit
}

// appendFile appends a member to an archive in the kernel's format: "newc" cpio, from
// Documentation/driver-api/early-userspace/buffer-format.rst.
func appendFile(archive []byte, name string, mode int, data []byte) []byte {
	b := bytes.NewBuffer(archive)
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	b.WriteString("070701")
	// ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check
	for _, v := range []int{1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0} {
		fmt.Fprintf(b, "%08x", v)
	}
	b.WriteString(name + "\x00")
	pad()
	b.Write(data)
	pad()
	return b.Bytes()
}
