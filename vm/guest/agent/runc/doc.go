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
// the scratch disk above. The rest is what containerd gives a container that asks for
// nothing: default devices, capabilities, masked and read-only paths, no seccomp filter (the
// kubelet's default is Unconfined) and no AppArmor. agent.Security changes that, up to a
// privileged container, which has the machine's devices and may do to the machine what root
// may: the pod is alone in it, and the host takes the whole machine for hostile anyway.
//
// Filters are compiled by libseccomp in the copy of this program that becomes the container's
// process, be it libcontainer's or the one that waits in a prepared container.
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
