// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package runc runs the pod's containers with libcontainer, the library of runc. It
// implements agent.Runtime on Linux, and needs cgo for libcontainer's nsenter.
//
// # What a container gets
//
// Its own root file system, mount, PID and cgroup namespaces, and cgroup. One pod is
// one machine, so what a pod's containers share is the machine's own: network, IPC
// and UTS namespace. No holder process is needed for them. Where the pod shares
// processes, its containers join one PID namespace that a process of the agent
// holds: the machine's own is not theirs, for the agent is in it.
//
// The root file system is an overlay: the image below, read-only, and a directory of
// the scratch disk above. The rest is what containerd gives an unprivileged
// container: default devices, capabilities, masked and read-only paths; no seccomp
// profile (the kubelet's default is Unconfined) and no AppArmor.
//
// # Children
//
// Every process that this package starts is waited for here, from the moment it
// exists, by libcontainer or os/exec: a reaper in the same process must leave
// them alone. See vm/guest/agent/linux.Reaper for its half of the rule.
//
// # The program itself
//
// A container's first process begins as a copy of this very program: main calls
// [Init] before anything else. libcontainer shields the binary from the container by
// an overlay over it, or does nothing when it already runs from a sealed memfd.
package runc
