// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package metrics is what a node tells Prometheus about its pods and machines.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
)

// startBuckets are the upper bounds, in seconds, of the times of a pod's start: from
// a checkout that only resumes a machine to the pull of a large image.
var startBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120}

// Result tells how something ended.
type Result string

// Results.
const (
	ResultSuccess Result = "success"
	ResultError   Result = "error"
)

// ResultOf is the result that an error means.
func ResultOf(err error) Result {
	if err != nil {
		return ResultError
	}
	return ResultSuccess
}

// Ledger is the node's account at one time, for its gauges.
type Ledger struct {
	Capacity, Active, Warm, Available Amount
	// ActiveMachines and WarmMachines count machines.
	ActiveMachines, WarmMachines int
}

// Amount is a part of a node.
type Amount struct {
	MilliCPU, MemoryBytes, DiskBytes int64
}

// Sources are asked at every scrape. They must not block; nil leaves their metrics
// out.
type Sources struct {
	// Pods are the pods on the node with their status.
	Pods func() []*corev1.Pod
	// Ledger is the node's account.
	Ledger func() Ledger
}

// Metrics holds the node's metrics in a registry of its own. Safe for concurrent
// use.
type Metrics struct {
	registry        *prometheus.Registry
	phases          *prometheus.HistogramVec
	pulls           *prometheus.CounterVec
	starts          *prometheus.CounterVec
	reconnects      prometheus.Counter
	snapshotsBroken prometheus.Counter
}

var _ provider.Observer = (*Metrics)(nil)

// New makes the metrics of a node.
func New(s Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vk_firkin_pod_start_phase_seconds", Buckets: startBuckets,
			Help: "Time that each phase of a pod's start took, by the path that its machine came by.",
		}, []string{"phase", "path"}),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_image_pulls_total", Help: "Images asked for, by result: present, success, error.",
		}, []string{"result"}),
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_machine_starts_total", Help: "Machines asked for, by the path they came by and result.",
		}, []string{"path", "result"}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vk_firkin_guest_reconnects_total", Help: "Connections to agents that were lost and made again.",
		}),
		snapshotsBroken: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vk_firkin_snapshots_quarantined_total", Help: "Snapshots that could not be restored and were put aside.",
		}),
	}
	m.registry.MustRegister(m.phases, m.pulls, m.starts, m.reconnects, m.snapshotsBroken,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if s.Pods != nil {
		m.registry.MustRegister(podCollector{pods: s.Pods})
	}
	if s.Ledger != nil {
		m.registry.MustRegister(ledgerCollector{ledger: s.Ledger})
	}
	// A scrape shows what has not happened yet as 0, so that a rate sees the first.
	for _, r := range []string{"present", string(ResultSuccess), string(ResultError)} {
		m.pulls.WithLabelValues(r)
	}
	return m
}

// Registry is what to serve on /metrics, and where others register theirs.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// ObservePhase implements provider.Observer.
func (m *Metrics) ObservePhase(phase provider.Phase, path string, took time.Duration) {
	m.phases.WithLabelValues(string(phase), path).Observe(max(took, 0).Seconds())
}

// ImagePulled counts an image that a pod asked for. present: it was on the node.
func (m *Metrics) ImagePulled(present bool, err error) {
	result := string(ResultOf(err))
	if err == nil && present {
		result = "present"
	}
	m.pulls.WithLabelValues(result).Inc()
}

// MachineStarted counts a machine that was asked for. path is empty when it failed
// before that was known.
func (m *Metrics) MachineStarted(path string, err error) {
	m.starts.WithLabelValues(path, string(ResultOf(err))).Inc()
}

// GuestReconnected counts a connection to an agent that had to be made again.
func (m *Metrics) GuestReconnected() { m.reconnects.Inc() }

// SnapshotQuarantined counts a snapshot that was put aside.
func (m *Metrics) SnapshotQuarantined() { m.snapshotsBroken.Inc() }

// podCollector counts pods by phase.
type podCollector struct {
	pods func() []*corev1.Pod
}

var podsDesc = prometheus.NewDesc("vk_firkin_pods", "Pods on the node, by phase.", []string{"phase"}, nil)

// Describe implements prometheus.Collector.
func (podCollector) Describe(ch chan<- *prometheus.Desc) { ch <- podsDesc }

// Collect implements prometheus.Collector.
func (c podCollector) Collect(ch chan<- prometheus.Metric) {
	counts := map[corev1.PodPhase]int{}
	for _, p := range c.pods() {
		phase := p.Status.Phase
		if phase == "" {
			phase = corev1.PodPending
		}
		counts[phase]++
	}
	for _, phase := range []corev1.PodPhase{corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown} {
		ch <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(counts[phase]), string(phase))
	}
}

// ledgerCollector shows the node's account.
type ledgerCollector struct {
	ledger func() Ledger
}

var (
	ledgerCPUDesc    = prometheus.NewDesc("vk_firkin_ledger_cpu_cores", "Processor cores of the node, by what holds them.", []string{"state"}, nil)
	ledgerMemoryDesc = prometheus.NewDesc("vk_firkin_ledger_memory_bytes", "Memory of the node, by what holds it.", []string{"state"}, nil)
	ledgerDiskDesc   = prometheus.NewDesc("vk_firkin_ledger_disk_bytes", "Disk of the node, by what holds it.", []string{"state"}, nil)
	machinesDesc     = prometheus.NewDesc("vk_firkin_machines", "Machines on the node, by state.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (ledgerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{ledgerCPUDesc, ledgerMemoryDesc, ledgerDiskDesc, machinesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c ledgerCollector) Collect(ch chan<- prometheus.Metric) {
	l := c.ledger()
	for state, a := range map[string]Amount{"capacity": l.Capacity, "active": l.Active, "warm": l.Warm, "available": l.Available} {
		ch <- prometheus.MustNewConstMetric(ledgerCPUDesc, prometheus.GaugeValue, float64(a.MilliCPU)/1000, state)
		ch <- prometheus.MustNewConstMetric(ledgerMemoryDesc, prometheus.GaugeValue, float64(a.MemoryBytes), state)
		ch <- prometheus.MustNewConstMetric(ledgerDiskDesc, prometheus.GaugeValue, float64(a.DiskBytes), state)
	}
	ch <- prometheus.MustNewConstMetric(machinesDesc, prometheus.GaugeValue, float64(l.ActiveMachines), "active")
	ch <- prometheus.MustNewConstMetric(machinesDesc, prometheus.GaugeValue, float64(l.WarmMachines), "warm")
}
