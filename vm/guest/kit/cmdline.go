// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kit

import "strings"

// Cmdline is the kernel command line that a kit of this architecture boots with. A
// driver uses it as it is, or appends to it.
func Cmdline(arch string) string {
	var args []string
	switch arch {
	case "amd64":
		args = append(args, "console=ttyS0", "8250.nr_uarts=1")
	case "arm64":
		// hvc0 on Virtualization.framework, ttyAMA0 on QEMU's virt machine: the last one
		// that exists becomes /dev/console.
		args = append(args, "console=hvc0", "console=ttyAMA0")
	}
	args = append(args,
		// Warnings and worse only: a character costs a trap into the hypervisor.
		"quiet",
		// A kernel that panics ends its machine, at once: the driver sees the exit.
		"panic=-1",
		// Nor does one go on that has lost its footing: a pod is restarted elsewhere.
		"oops=panic",
	)
	return strings.Join(args, " ")
}
