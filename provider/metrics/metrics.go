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
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// startBuckets are the upper bounds, in seconds, of the times of a pod's start: from
// a checkout that only resumes a machine to the pull of a large image.
var startBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120}

// sampleBuckets are the upper bounds, in seconds, of samples: from a paused machine's
// resume to the build of a template.
var sampleBuckets = []float64{0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800}

// sampleNames are all samples, so that a scrape shows what has not happened yet.
var sampleNames = []string{
	string(warmpool.MetricWarmSnapshotRestore), string(warmpool.MetricWarmPoolCheckout), string(warmpool.MetricReadyProbe),
	string(warmpool.MetricSnapshotSave), string(warmpool.MetricColdTemplateBuild), string(provider.SampleCommandStart),
	string(provider.SampleFirstByte), string(provider.SampleResumeToFirstByte), string(warmpool.MetricKillDelete), string(provider.SampleRecovery),
}

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

// Sources are asked at every scrape. They must not block; nil leaves their metrics
// out.
type Sources struct {
	// Pods are the pods on the node with their status.
	Pods func() []*corev1.Pod
	// Supply is the node's account, its pools and its templates.
	Supply func() warmpool.Status
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
	samples         *prometheus.HistogramVec
	health          *prometheus.CounterVec
	pools           poolMetrics
	care            careMetrics
	pressure        pressureMetrics
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
		samples: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vk_firkin_sample_seconds", Buckets: sampleBuckets,
			Help: "Latencies that users wait for, each from its real start to its real end by the host's clock.",
		}, []string{"sample"}),
		health: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vk_firkin_machine_health_total",
			Help: "Changes of the health of pods' machines, by what they came to be: suspect does not answer, stuck was ended for it, healthy answers again.",
		}, []string{"health"}),
		pools:    newPoolMetrics(),
		care:     newCareMetrics(),
		pressure: newPressureMetrics(),
	}
	m.registry.MustRegister(m.phases, m.pulls, m.starts, m.reconnects, m.snapshotsBroken, m.samples, m.health,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if s.Pods != nil {
		m.registry.MustRegister(podCollector{pods: s.Pods})
	}
	m.pools.register(m.registry)
	m.care.register(m.registry)
	m.pressure.register(m.registry)
	if s.Supply != nil {
		m.registry.MustRegister(supplyCollector{supply: s.Supply, now: time.Now})
	}
	// A scrape shows what has not happened yet as 0, so that a rate sees the first.
	for _, r := range []string{"present", string(ResultSuccess), string(ResultError)} {
		m.pulls.WithLabelValues(r)
	}
	for _, h := range []provider.MachineHealth{provider.MachineHealthy, provider.MachineSuspect, provider.MachineStuck} {
		m.health.WithLabelValues(string(h))
	}
	for _, name := range sampleNames {
		m.samples.WithLabelValues(name)
	}
	return m
}

// Registry is what to serve on /metrics, and where others register theirs.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// ObservePhase implements provider.Observer.
func (m *Metrics) ObservePhase(phase provider.Phase, path string, took time.Duration) {
	m.phases.WithLabelValues(string(phase), path).Observe(max(took, 0).Seconds())
}

// ObserveSample implements provider.Observer.
func (m *Metrics) ObserveSample(sample provider.Sample, took time.Duration) {
	m.samples.WithLabelValues(string(sample)).Observe(max(took, 0).Seconds())
}

// ObserveMachine implements provider.Observer.
func (m *Metrics) ObserveMachine(health provider.MachineHealth) {
	m.health.WithLabelValues(string(health)).Inc()
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
