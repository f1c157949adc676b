// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// Metrics of the controller. A nil one measures nothing.
type Metrics struct {
	replicas, desired, ready, unplaced *prometheus.GaugeVec
	nodes                              *prometheus.GaugeVec
	invalid                            prometheus.Gauge
	writes                             *prometheus.CounterVec
	stalePasses                        prometheus.Counter
	passes                             prometheus.Histogram
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "firkin", Subsystem: "controller", Name: name, Help: help}, labels)
	}
	m := &Metrics{
		replicas: gauge("pool_replicas", "Machines that a pool is to have ready.", "namespace", "pool"),
		desired:  gauge("pool_desired", "Sum of a pool's targets on reachable nodes.", "namespace", "pool"),
		ready:    gauge("pool_ready", "Machines of a pool that are ready on reachable nodes.", "namespace", "pool"),
		unplaced: gauge("pool_unplaced", "Replicas of a pool that no node has room for.", "namespace", "pool"),
		nodes:    gauge("nodes", "Nodes with a ledger by state: Ready, Waiting, Cordoned, Unreachable.", "state"),
		invalid:  prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "firkin", Subsystem: "controller", Name: "nodes_invalid", Help: "Nodes that report what cannot be."}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "firkin", Subsystem: "controller", Name: "writes_total",
			Help: "Writes to the API server by kind and result: ok, conflict, error."}, []string{"kind", "result"}),
		stalePasses: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "firkin", Subsystem: "controller", Name: "stale_passes_total",
			Help: "Passes that decided nothing because the caches had not seen the controller's own writes yet."}),
		passes: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "firkin", Subsystem: "controller", Name: "pass_seconds",
			Help: "How long passes over all pools and nodes took.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}),
	}
	for _, c := range m.collectors() {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.replicas, m.desired, m.ready, m.unplaced, m.nodes, m.invalid, m.writes, m.stalePasses, m.passes}
}

func (m *Metrics) unregister(registry prometheus.Registerer) {
	for _, c := range m.collectors() {
		registry.Unregister(c)
	}
}

func (m *Metrics) write(kind string, err error) {
	if m == nil {
		return
	}
	result := "ok"
	switch {
	case apierrors.IsConflict(err):
		result = "conflict"
	case err != nil:
		result = "error"
	}
	m.writes.WithLabelValues(kind, result).Inc()
}

func (m *Metrics) stale() {
	if m != nil {
		m.stalePasses.Inc()
	}
}

// observe measures what a pass saw. Gauges of what is gone go with it.
func (m *Metrics) observe(f *fleet, p *plan, took time.Duration) {
	if m == nil {
		return
	}
	m.passes.Observe(took.Seconds())
	for _, g := range []*prometheus.GaugeVec{m.replicas, m.desired, m.ready, m.unplaced, m.nodes} {
		g.Reset()
	}
	for _, state := range []NodeState{NodeReady, NodeWaiting, NodeCordoned, NodeUnreachable} {
		m.nodes.WithLabelValues(string(state))
	}
	invalid := 0
	for _, n := range f.nodes {
		m.nodes.WithLabelValues(string(n.State)).Inc()
		if len(n.faults) > 0 {
			invalid++
		}
	}
	m.invalid.Set(float64(invalid))
	for _, pool := range f.pools {
		var s v1alpha1.WarmPoolStatus
		v := poolView{pool: pool}
		for _, n := range f.nodes {
			v.look(n, &s)
		}
		set := func(g *prometheus.GaugeVec, value int) {
			g.WithLabelValues(pool.Key.Namespace, pool.Key.Name).Set(float64(value))
		}
		set(m.replicas, pool.Replicas)
		set(m.desired, int(s.Desired))
		set(m.ready, int(s.Ready))
		set(m.unplaced, p.shortfalls[pool.Key].Unplaced)
	}
}
