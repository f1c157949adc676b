// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package probe keeps time for the probes of one run of a container and draws the
// conclusions from their outcomes, as
// https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/
// has it. It knows nothing of pods and machines: what a probe does is its caller's.
//
// A [Probe] is the state of one probe: pure, without a clock. A [Runner] gives the probes of
// one run their time: first the startup probe alone, then liveness and readiness beside each
// other. A run without probes needs no runner, and none of its goroutines and timers.
package probe
