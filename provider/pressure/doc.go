// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package pressure relieves a node that runs short of disk or memory.
//
// What the host has left is measured and judged against floors (judge.go). What is done
// about it, and in which order, is a pure plan (plan.go): pools are not refilled, warm
// machines go, then snapshots and images that nobody uses, then new pods are refused, and
// only then are running pods ended, one by one, in the kubelet's order (rank.go). After each
// step the host is measured again before the next. A Manager does it.
package pressure
