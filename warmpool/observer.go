// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import "time"

// Metric names what a sample measures. Stable.
type Metric string

// The samples that the supply measures, each from its real start to its real end.
const (
	// MetricWarmSnapshotRestore: a machine restored, refreshed and proved, for a pool or
	// for a pod.
	MetricWarmSnapshotRestore Metric = "warm_snapshot_restore"
	// MetricWarmPoolCheckout: from the request to the answer of the agent of a warm
	// entry. None for a request that got another machine.
	MetricWarmPoolCheckout Metric = "warm_pool_checkout"
	// MetricReadyProbe: from the running machine to its proof that it is ready; for an
	// entry of a pool with the rehearsal.
	MetricReadyProbe Metric = "ready_probe"
	// MetricKillDelete: ending a machine by force and deleting all of it, without the
	// grace before.
	MetricKillDelete Metric = "kill_delete"
	// MetricSnapshotSave and MetricColdTemplateBuild are told by SnapshotBuilt.
	MetricSnapshotSave      Metric = "snapshot_save"
	MetricColdTemplateBuild Metric = "cold_template_build"
	// MetricRefill: an entry of a pool from its reservation to being ready.
	MetricRefill Metric = "refill"
)

// Sample is one measurement.
type Sample struct {
	Metric   Metric
	Duration time.Duration
	// Pool and Template, "namespace/name", where they are known.
	Pool, Template string
}

// Observer is told what happens, from any goroutine, without locks held. Its methods
// must not block.
type Observer interface {
	// Sampled tells a measurement. What failed is not measured.
	Sampled(Sample)
	// CheckedOut tells by which path a request got its machine.
	CheckedOut(path Path, template string)
	// Refilled tells how an attempt to restore an entry ended; nil is well.
	Refilled(pool string, err error)
	// Evicted tells of an entry that ended without a pod.
	Evicted(pool string, reason EvictReason)
	// Skipped tells why a pool is not filled further, once each time that the reason
	// changes.
	Skipped(pool string, reason SkipReason)
}

// nobody observes.
type nobody struct{}

func (nobody) Sampled(Sample)              {}
func (nobody) CheckedOut(Path, string)     {}
func (nobody) Refilled(string, error)      {}
func (nobody) Evicted(string, EvictReason) {}
func (nobody) Skipped(string, SkipReason)  {}
