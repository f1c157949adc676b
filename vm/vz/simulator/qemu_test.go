// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// TestQEMUArguments compares command lines with recorded ones: a change of the machine
// that a guest sees wants qemuDevices raised with it.
func TestQEMUArguments(t *testing.T) {
	cfg := framework.Configuration{
		GuestOS: framework.Linux, CPUs: 2, MemoryBytes: 512 << 20,
		Kernel: "/kit/kernel", Initramfs: "/kit/initramfs", CommandLine: "console=hvc0 quiet",
		Disks:      []framework.Disk{{Path: "/images/a,b", ReadOnly: true, Serial: "slot0"}, {Path: "/scratch", Serial: "scratch"}},
		MAC:        net.HardwareAddr{2, 0, 0, 0, 0, 1},
		ConsoleOut: os.Stdout,
	}
	bare := framework.Configuration{GuestOS: framework.Linux, CPUs: 1, MemoryBytes: 1 << 20, Kernel: "/kernel", MAC: cfg.MAC, Entropy: true}
	for name, got := range map[string][]string{
		"boot-arm64": qemuArguments(archARM64, cfg, false),
		"load-amd64": qemuArguments(archAMD64, cfg, true),
		"bare-arm64": qemuArguments(archARM64, bare, false),
	} {
		path := filepath.Join("testdata", name+".args")
		text := strings.Join(got, "\n") + "\n"
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("%s: UPDATE=1 writes it:\n%s", path, text)
		}
	}
	if last := firstDiskSlot + maxDisks - 1; last >= 0x1f {
		t.Errorf("the last disk has address %#x, which is the chipset's", last)
	}
}
