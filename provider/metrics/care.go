// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// careMetrics are about what the node keeps on its disks: its collections and scrubs.
type careMetrics struct {
	reclaimable              *prometheus.GaugeVec
	collections              *prometheus.CounterVec
	collected, collectedSize *prometheus.CounterVec
	lastCollection           *prometheus.GaugeVec
	scrubs                   *prometheus.CounterVec
	scrubbed                 prometheus.Counter
}

func newCareMetrics() careMetrics {
	c := careMetrics{
		reclaimable: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "vk_firkin_reclaimable_bytes", Help: "Disk that nobody needs and that nothing but its age keeps, by kind, when it was last looked at.",
		}, []string{"kind"}),
		collections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_gc_runs_total", Help: "Collections of what nobody needs, by result.",
		}, []string{"result"}),
		collected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_gc_removed_total", Help: "Things that were collected, by kind.",
		}, []string{"kind"}),
		collectedSize: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_gc_removed_bytes_total", Help: "Disk that collections made free, by kind.",
		}, []string{"kind"}),
		lastCollection: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "vk_firkin_gc_last_run_timestamp_seconds", Help: "When a collection last ended, by result; 0 is never in this process.",
		}, []string{"result"}),
		scrubs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_scrubs_total", Help: "Snapshots that were read in the background, by result: whole, damaged.",
		}, []string{"result"}),
		scrubbed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vk_firkin_scrub_bytes_total", Help: "Bytes of snapshots that were read in the background.",
		}),
	}
	for _, r := range []Result{ResultSuccess, ResultError} {
		c.collections.WithLabelValues(string(r))
		c.lastCollection.WithLabelValues(string(r))
	}
	for _, r := range []string{resultWhole, resultDamaged} {
		c.scrubs.WithLabelValues(r)
	}
	return c
}

// Results of a scrub.
const (
	resultWhole   = "whole"
	resultDamaged = "damaged"
)

func (c careMetrics) register(r *prometheus.Registry) {
	r.MustRegister(c.reclaimable, c.collections, c.collected, c.collectedSize, c.lastCollection, c.scrubs, c.scrubbed)
}

// Reclaimable is what of a kind nothing but its age keeps.
func (m *Metrics) Reclaimable(kind string, bytes int64) {
	m.care.reclaimable.WithLabelValues(kind).Set(float64(bytes))
}

// Collected counts what of a kind a collection has removed.
func (m *Metrics) Collected(kind string, count int, bytes int64) {
	m.care.collected.WithLabelValues(kind).Add(float64(count))
	m.care.collectedSize.WithLabelValues(kind).Add(float64(max(bytes, 0)))
}

// CollectionEnded counts a collection.
func (m *Metrics) CollectionEnded(at time.Time, err error) {
	result := string(ResultOf(err))
	m.care.collections.WithLabelValues(result).Inc()
	m.care.lastCollection.WithLabelValues(result).Set(float64(at.Unix()))
}

// SnapshotScrubbed counts a snapshot that was read in the background.
func (m *Metrics) SnapshotScrubbed(bytes int64, damaged bool) {
	result := resultWhole
	if damaged {
		result = resultDamaged
	}
	m.care.scrubs.WithLabelValues(result).Inc()
	m.care.scrubbed.Add(float64(max(bytes, 0)))
}
