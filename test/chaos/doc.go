// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package chaos disturbs a node at random while pods and pools change, on real machines and
// under a real control plane, and then asks whether everything is as it must be.
//
// What is done, and in which order, is a pure function of a seed (Planner). What it does to
// a cluster depends on how fast that is, so the same seed gives the same decisions and not
// the same interleaving. The run is behind the build tag e2e and has the environment of
// test/e2e, and needs root for a disk that it fills; `make chaos` runs it for ten minutes, `make test-e2e` for two:
//
//	CHAOS_TIME  how long to disturb, without the pauses in which the invariants are checked
//	CHAOS_SEED  the decisions of an earlier run; it prints its seed
package chaos
