// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package stats measures the node and its pods, in the form of a kubelet's
// /stats/summary, from which the kubelet API makes /metrics/resource as well.
//
// A pod's numbers come from the agent of its machine. What a guest says is hostile: it
// is matched with what the pod is known to have, and numbers that cannot be are left
// out. Machines are asked at the same time, each for as long as it likes: an answer
// waits for a slow one only the first time, and then goes without it.
//
// A pod's CPU and memory are those of its machine: as the kubelet's are those of the
// pod's cgroup, with all that running the containers costs. Its counters begin when the
// machine's template was booted, which for counters says nothing.
package stats
