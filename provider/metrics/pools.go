// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vk-firkin/vk-firkin/warmpool"
)

// refillBuckets are the upper bounds, in seconds, of an entry's making.
var refillBuckets = []float64{0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 60, 120}

// poolMetrics count what the supply decides.
type poolMetrics struct {
	checkouts, hits, refills, evictions, skips *prometheus.CounterVec
	refill                                     prometheus.Histogram
}

// Results of requests for a machine of a template.
const (
	resultHit  = "hit"
	resultMiss = "miss"
)

func newPoolMetrics() poolMetrics {
	counter := func(name, help string, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v)
		}
		return c
	}
	return poolMetrics{
		checkouts: counter("vk_firkin_checkouts_total", "Machines given to pods, by path.", "path",
			string(warmpool.PathWarm), string(warmpool.PathRestore), string(warmpool.PathBuild), string(warmpool.PathCold)),
		// The ratio: sum(rate(vk_firkin_pool_checkouts_total{result="hit"}[5m])) / sum(rate(vk_firkin_pool_checkouts_total[5m]))
		hits: counter("vk_firkin_pool_checkouts_total",
			"Machines of templates given to pods: hit is a warm one, miss was restored or built first. Cold ones were asked for and are neither.", "result", resultHit, resultMiss),
		refills: counter("vk_firkin_pool_refills_total", "Attempts to restore a warm machine, by result.", "result", string(ResultSuccess), string(ResultError)),
		evictions: counter("vk_firkin_pool_evictions_total", "Warm machines that ended without a pod, by reason.", "reason",
			string(warmpool.EvictDemand), string(warmpool.EvictPriority), string(warmpool.EvictSurplus), string(warmpool.EvictOutdated),
			string(warmpool.EvictAged), string(warmpool.EvictPressure), string(warmpool.EvictDead), string(warmpool.EvictAbandoned), string(warmpool.EvictDrained)),
		skips: counter("vk_firkin_pool_skips_total", "Times that a pool was found not to be filled further, by reason.", "reason",
			string(warmpool.SkipInsufficientCapacity), string(warmpool.SkipDiskPressure), string(warmpool.SkipMemoryPressure), string(warmpool.SkipSnapshotNotReady), string(warmpool.SkipBackoff)),
		refill: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "vk_firkin_pool_refill_seconds", Buckets: refillBuckets, Help: "Time from the reservation of a warm machine until it was ready.",
		}),
	}
}

func (p poolMetrics) register(r *prometheus.Registry) {
	r.MustRegister(p.checkouts, p.hits, p.refills, p.evictions, p.skips, p.refill)
}

var _ warmpool.Observer = (*Metrics)(nil)

// Sampled implements warmpool.Observer.
func (m *Metrics) Sampled(s warmpool.Sample) {
	took := max(s.Duration, 0).Seconds()
	if s.Metric == warmpool.MetricRefill {
		m.pools.refill.Observe(took)
		return
	}
	m.samples.WithLabelValues(string(s.Metric)).Observe(took)
}

// CheckedOut implements warmpool.Observer.
func (m *Metrics) CheckedOut(path warmpool.Path, template string) {
	m.pools.checkouts.WithLabelValues(string(path)).Inc()
	if template == "" {
		return
	}
	switch path {
	case warmpool.PathWarm:
		m.pools.hits.WithLabelValues(resultHit).Inc()
	case warmpool.PathRestore, warmpool.PathBuild:
		m.pools.hits.WithLabelValues(resultMiss).Inc()
	default:
	}
}

// Refilled implements warmpool.Observer.
func (m *Metrics) Refilled(_ string, err error) {
	m.pools.refills.WithLabelValues(string(ResultOf(err))).Inc()
}

// Evicted implements warmpool.Observer.
func (m *Metrics) Evicted(_ string, reason warmpool.EvictReason) {
	m.pools.evictions.WithLabelValues(string(reason)).Inc()
}

// Skipped implements warmpool.Observer. A pool that is full is not skipped.
func (m *Metrics) Skipped(_ string, reason warmpool.SkipReason) {
	if reason != "" && reason != warmpool.SkipAlreadyWarm {
		m.pools.skips.WithLabelValues(string(reason)).Inc()
	}
}

// supplyCollector shows the node's account, its pools and its templates.
type supplyCollector struct {
	supply func() warmpool.Status
	now    func() time.Time
}

var (
	ledgerCPUDesc    = prometheus.NewDesc("vk_firkin_ledger_cpu_cores", "Processor cores of the node, by what holds them.", []string{"state"}, nil)
	ledgerMemoryDesc = prometheus.NewDesc("vk_firkin_ledger_memory_bytes", "Memory of the node, by what holds it.", []string{"state"}, nil)
	ledgerDiskDesc   = prometheus.NewDesc("vk_firkin_ledger_disk_bytes", "Disk of the node, by what holds it.", []string{"state"}, nil)
	ledgerSlotsDesc  = prometheus.NewDesc("vk_firkin_ledger_slots", "Slots for macOS machines of the node, by what holds them.", []string{"state"}, nil)
	machinesDesc     = prometheus.NewDesc("vk_firkin_machines", "Machines on the node, by state.", []string{"state"}, nil)
	entriesDesc      = prometheus.NewDesc("vk_firkin_pool_entries", "Machines of a pool on the node, by state; desired is the target.", []string{"namespace", "pool", "state"}, nil)
	skippedDesc      = prometheus.NewDesc("vk_firkin_pool_skipped", "1 while a pool is not filled further, with the reason.", []string{"namespace", "pool", "reason"}, nil)
	unmetDesc        = prometheus.NewDesc("vk_firkin_pool_unmet_seconds", "How long a pool has had fewer ready machines than it should; 0 while it has them.", []string{"namespace", "pool"}, nil)
	oldestUnmetDesc  = prometheus.NewDesc("vk_firkin_pool_oldest_unmet_seconds", "The longest of vk_firkin_pool_unmet_seconds; 0 without pools.", nil, nil)
	quarantinedDesc  = prometheus.NewDesc("vk_firkin_quarantined_machines", "Machines that are kept because it is not clear whose they are; see vk-firkin quarantine list.", nil, nil)
	templateDesc     = prometheus.NewDesc("vk_firkin_template_phase", "1 for the phase that the snapshot of a template's revision is in on the node.", []string{"namespace", "template", "revision", "phase"}, nil)
)

// Describe implements prometheus.Collector.
func (supplyCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{ledgerCPUDesc, ledgerMemoryDesc, ledgerDiskDesc, ledgerSlotsDesc, machinesDesc, entriesDesc, skippedDesc, unmetDesc, oldestUnmetDesc, quarantinedDesc, templateDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c supplyCollector) Collect(ch chan<- prometheus.Metric) {
	s, now := c.supply(), c.now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	a := s.Account
	for state, b := range map[string]warmpool.Budget{"capacity": a.Capacity, "active": a.Active, "warm": a.Warm, "available": a.Available} {
		gauge(ledgerCPUDesc, float64(b.MilliCPU)/1000, state)
		gauge(ledgerMemoryDesc, float64(b.MemoryBytes), state)
		gauge(ledgerDiskDesc, float64(b.DiskBytes), state)
		gauge(ledgerSlotsDesc, float64(b.Slots), state)
	}
	gauge(ledgerSlotsDesc, float64(a.Withheld.Slots), "withheld")
	warm, active := 0, 0
	for _, m := range a.Machines {
		switch {
		case m.IsBuild():
		case m.Warm:
			warm++
		default:
			active++
		}
	}
	gauge(machinesDesc, float64(active), "active")
	gauge(machinesDesc, float64(warm), "warm")
	oldest := time.Duration(0)
	for _, p := range s.Pools {
		namespace, name, _ := strings.Cut(p.Pool, "/")
		for state, n := range map[string]int{"desired": p.Desired, "ready": p.Ready, "restoring": p.Restoring, "outdated": p.Outdated, "active": p.Active} {
			gauge(entriesDesc, float64(n), namespace, name, state)
		}
		if p.Skip != "" {
			gauge(skippedDesc, 1, namespace, name, string(p.Skip))
		}
		unmet := time.Duration(0)
		if !p.UnmetSince.IsZero() {
			unmet = max(0, now.Sub(p.UnmetSince))
		}
		oldest = max(oldest, unmet)
		gauge(unmetDesc, unmet.Seconds(), namespace, name)
	}
	gauge(oldestUnmetDesc, oldest.Seconds())
	gauge(quarantinedDesc, float64(len(s.Quarantined)))
	for _, t := range s.Templates {
		gauge(templateDesc, 1, t.Namespace, t.Name, t.Revision, string(t.Phase))
	}
}
