// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package layout is where things are in the guest's initramfs: what hack/guestkit
// writes and vm/guest/agent/linux reads.
package layout

// Files of the initramfs.
const (
	// Agent is the agent's binary, in a directory of its own: libcontainer makes a
	// read-only overlay of that directory for each container's first process.
	Agent = "/agent/firkin-agent"
	// Version holds the agent's version.
	Version = "/etc/firkin-agent-version"
	// Modules is the directory of kernel modules, NAME.ko.
	Modules = "/modules"
	// ModuleList has a line for each module, after those it depends on: its name and
	// the names of what it depends on.
	ModuleList = "/modules/list"
)

// Directories that the agent mounts on or writes to.
var Directories = []string{"/agent", "/etc", "/proc", "/root", "/run", "/sys", "/tmp"}
