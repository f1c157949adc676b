// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package native runs a pod's "containers" as plain processes of the machine's own
// operating system. It implements agent.Runtime where there is nothing like containers:
// in a macOS guest, on top of vm/guest/agent/darwin. It runs on Linux as well, which is
// where it is tested; on macOS it is type-checked only and unproven on hardware.
//
// # What a container is
//
// A first process in a session of its own, with the container's arguments, environment,
// user and working directory, its standard streams or a terminal, and whatever these
// processes start. A further process (exec) gets a session of its own and the same
// environment. When the first process ends, all others of the container are killed, as
// the kernel does it with a PID namespace; Remove and SignalAll find them by session and
// by descent. A daemon that leaves its session and survives its parent is found by
// neither: it lives until the machine ends.
//
// The first process does not exist before Start: Pid is 0 until then. Only SIGKILL ends a
// container that was created and not started.
//
// # What the machine is
//
// The machine is the image: the only image there is is the machine's own system, which
// agent.System.MountImage gives as [Options.Root] for slot 0. Containers see each other's
// processes and files, and nothing but the machine isolates a pod from another. So named
// layers mean nothing but their names: what any container writes, all others find, until
// the machine ends.
//
// # What it does not do
//
// Refused by name, with agent.ErrPrecondition: another image, a read-only root, a memory
// limit, a CPU limit, a memory volume without a [Platform]. A CPU weight is a wish among a
// pod's containers and is ignored. A read-only volume mount is made, and not enforced:
// service account tokens and ConfigMaps are mounted so.
//
// # Volumes
//
// There are no bind mounts: a volume appears at its mount path by a symbolic link, and
// directories above it that are missing are made. That needs a path that is free, and on
// macOS one that is not on the read-only system volume: agent.ErrPrecondition otherwise.
// Containers may share a path when they mean the same volume by it. Remove takes away what
// the last of them needed.
package native
